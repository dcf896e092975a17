package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
)

// openAt takes TCP connections to a port of a node.
func openAt(t *testing.T, l *lab.Lab, node string, port int) {
	t.Helper()
	var ln net.Listener
	if err := l.Within(node, func() (err error) { ln, err = net.Listen("tcp", ":"+strconv.Itoa(port)); return err }); err != nil {
		t.Fatal(err)
	}
	accept(t, ln)
}

// opener calls a function within a pod, a node or outside.
type opener func(func() error) error

func podOpener(l *lab.Lab, name string) opener {
	return func(fn func() error) error { return l.WithinPod(name, fn) }
}

func hostOpener(l *lab.Lab, where string) opener {
	return func(fn func() error) error { return l.Within(where, fn) }
}

// becomes waits until a connection can be opened, or cannot.
func becomes(t *testing.T, what string, open bool, from opener, to netip.Addr, port int) {
	t.Helper()
	nettest.Eventually(t, func() error {
		err := from(func() error {
			c, err := net.DialTimeout("tcp", netip.AddrPortFrom(to, uint16(port)).String(), 500*time.Millisecond)
			if err != nil {
				return err
			}
			return c.Close()
		})
		if (err == nil) != open {
			return fmt.Errorf("%s: want open %t: %w", what, open, errors.Join(err, errors.New("not so")))
		}
		return nil
	})
}

// TestPoliciesOfHostsWithPackets has every kind of what concerns a host decide about packets from outside to node-1 and to a pod behind it.
func TestPoliciesOfHostsWithPackets(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 1, lab.VXLAN })
	node, web := nodesOf(t, l)[0].Addr, pod(t, l, "a1").Addr
	outside := hostOpener(l, "outside")
	const port, published = 8000, 9000
	openAt(t, l, "node-1", port)
	listenTCP(t, l, "a1", 80)
	run(t, l, "node-1", "iptables", "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", strconv.Itoa(published), "-j", "DNAT", "--to", web.String()+":80")
	becomes(t, "without endpoint", true, outside, node, port)
	becomes(t, "published, without endpoint", true, outside, node, published)

	const hosts = `"selector": "has(host)", `
	hep := func(spec string) {
		t.Helper()
		put(t, l, "/calico/resources/v3/projectcalico.org/hostendpoints/h", `{"kind": "HostEndpoint", "apiVersion": "projectcalico.org/v3",
			"metadata": {"name": "h", "labels": {"host": ""}}, "spec": {"node": "node-1", `+spec+`}}`)
	}
	gnp := func(name, spec string) {
		t.Helper()
		resource(t, l, "GlobalNetworkPolicy", "globalnetworkpolicies/default."+name, hosts+spec)
	}
	dport := func(action string, port int) string {
		return fmt.Sprintf(`{"action": %q, "protocol": "TCP", "destination": {"ports": [%d]}}`, action, port)
	}
	for what, spec := range map[string]string{
		"by its interface": `"interfaceName": "eth0"`, "by its address": `"expectedIPs": ["` + node.String() + `"]`, "for every interface": `"interfaceName": "*"`,
	} {
		hep(spec)
		becomes(t, "endpoint "+what, false, outside, node, port)
		gnp("in", `"types": ["Ingress"], "ingress": [`+dport("Allow", port)+`]`)
		becomes(t, "allowed at the endpoint "+what, true, outside, node, port)
		remove(t, l, "globalnetworkpolicies/default.in")
		remove(t, l, "hostendpoints/h")
		becomes(t, "no endpoint "+what, true, outside, node, port)
	}

	hep(`"interfaceName": "eth0"`)
	becomes(t, "before it is failsafe", false, outside, node, port)
	setFelix(t, l, toHost+`, "failsafeInboundHostPorts": [{"protocol": "tcp", "port": 8000}]`)
	becomes(t, "failsafe", true, outside, node, port)
	setFelix(t, l, toHost+`, "failsafeInboundHostPorts": [{"protocol": "tcp", "port": 8000, "net": "198.51.100.0/24"}]`)
	becomes(t, "failsafe for others", false, outside, node, port)
	setFelix(t, l, toHost)

	gnp("in", `"types": ["Ingress"], "ingress": [`+dport("Allow", port)+`]`)
	becomes(t, "allowed", true, outside, node, port)
	gnp("raw", `"doNotTrack": true, "applyOnForward": true, "types": ["Ingress"], "ingress": [`+dport("Deny", port)+`]`)
	becomes(t, "denied untracked", false, outside, node, port)
	remove(t, l, "globalnetworkpolicies/default.in")
	gnp("raw", `"doNotTrack": true, "applyOnForward": true, "types": ["Ingress", "Egress"], "ingress": [`+dport("Allow", port)+`],
		"egress": [{"action": "Allow", "protocol": "TCP", "source": {"ports": [8000]}}]`)
	becomes(t, "allowed untracked, both ways", true, outside, node, port)
	remove(t, l, "globalnetworkpolicies/default.raw")
	becomes(t, "by no policy", false, outside, node, port)

	becomes(t, "forwarded, of which no policy speaks", true, outside, node, published)
	gnp("dnat", `"preDNAT": true, "applyOnForward": true, "types": ["Ingress"], "ingress": [`+dport("Deny", published)+`]`)
	becomes(t, "denied before its destination is rewritten", false, outside, node, published)
	remove(t, l, "globalnetworkpolicies/default.dnat")
	becomes(t, "not denied any more", true, outside, node, published)
	gnp("fwd", `"types": ["Ingress"], "ingress": [`+dport("Deny", 80)+`]`)
	becomes(t, "of a policy that is not for what is forwarded", true, outside, node, published)
	gnp("fwd", `"applyOnForward": true, "types": ["Ingress"], "ingress": [`+dport("Deny", 80)+`]`)
	becomes(t, "denied as forwarded", false, outside, node, published)
	gnp("fwd", `"applyOnForward": true, "types": ["Ingress"], "ingress": [`+dport("Allow", 80)+`]`)
	becomes(t, "allowed as forwarded", true, outside, node, published)
}

// heard is what a command has printed so far.
type heard struct {
	mu   sync.Mutex
	text strings.Builder
}

func (h *heard) Write(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.text.Write(b)
}

func (h *heard) has(word string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !strings.Contains(h.text.String(), word) {
		return fmt.Errorf("want %q in:\n%s", word, h.text.String())
	}
	return nil
}

// follow runs `node drops --follow` on node-1 until the test ends.
func follow(t *testing.T, l *lab.Lab) *heard {
	t.Helper()
	h := &heard{}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = l.Exec(ctx, "node-1", lab.Command{Args: []string{"muslinctl", "node", "drops", "--follow"}, Stdout: h, Stderr: h})
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return h
}

// TestSettingsAndToolsOfPolicyWithPackets has what is denied, logged, staged and sent to the host fare as settings say, and tools tell of it.
func TestSettingsAndToolsOfPolicyWithPackets(t *testing.T) {
	l := up(t, func(o *lab.Options) {
		o.Nodes, o.Mode, o.AgentEnv = 1, lab.VXLAN, []string{"MUSLIN_CUT_DENIED_FLOWS=true", "FELIX_PROMETHEUSMETRICSENABLED=true"}
	})
	node, client := nodesOf(t, l)[0].Addr, podOpener(l, "b1")
	addPodOf(t, l, lab.PodSpec{Name: "web", Node: "node-1", Labels: map[string]string{"app": "web"}})
	web := pod(t, l, "web").Addr
	listenTCP(t, l, "web", 80)

	openAt(t, l, "node-1", 8000)
	run(t, l, "node-1", "iptables", "-A", "INPUT", "-p", "tcp", "--dport", "8000", "-j", "DROP")
	becomes(t, "Return, to a host that drops", false, client, node, 8000)
	setFelix(t, l, `"defaultEndpointToHostAction": "Accept"`)
	becomes(t, "Accept, to a host that drops", true, client, node, 8000)
	run(t, l, "node-1", "iptables", "-D", "INPUT", "-p", "tcp", "--dport", "8000", "-j", "DROP")
	setFelix(t, l, `"defaultEndpointToHostAction": "Drop"`)
	becomes(t, "Drop, to a host that accepts", false, client, node, 8000)
	setFelix(t, l, toHost)
	becomes(t, "Return, to a host that accepts", true, client, node, 8000)

	stagedAndLogged(t, l, client, web)
	denied(t, l, client, web)
	cutOff(t, l, web)
}

// stagedAndLogged ends without policy.
func stagedAndLogged(t *testing.T, l *lab.Lab, client opener, web netip.Addr) {
	put(t, l, "/calico/resources/v3/projectcalico.org/stagednetworkpolicies/default/default.dry", `{"kind": "StagedNetworkPolicy", "apiVersion": "projectcalico.org/v3",
		"metadata": {"name": "default.dry", "namespace": "default"}, "spec": {"selector": "app == 'web'", "types": ["Ingress"], "ingress": [{"action": "Deny"}]}}`)
	policy(t, l, "log", `"selector": "app == 'web'", "types": ["Ingress"], "ingress": [{"action": "Log"}, {"action": "Allow"}]`)
	eventually(t, l, has(`log prefix "calico-packet: "`), "nft", "list", "table", "inet", "muslin")
	two := []*heard{follow(t, l), follow(t, l)}
	nettest.Eventually(t, func() error {
		becomes(t, "staged", true, client, web, 80)
		return errors.Join(two[0].has("logged by NetworkPolicy(default/log)"), two[1].has("logged by NetworkPolicy(default/log)"))
	})
	eventually(t, l, has(`Deny (staged)`), "muslinctl", "node", "drops", "--all")
	eventually(t, l, has(`taged`), "muslinctl", "policy", "explain", "--from", "default/b1", "--to", "default/web", "--port", "80")
	nettest.Eventually(t, func() error {
		text, err := scrape(l)
		for _, want := range []string{`muslin_policy_packets_total{action="deny",reason="",staged="true"}`, "muslin_active_staged_policies 1", "muslin_cluster_staged_policies 1"} {
			if err == nil && !strings.Contains(text, want) {
				err = fmt.Errorf("want %s in\n%s", want, text)
			}
		}
		return err
	})
	remove(t, l, "stagednetworkpolicies/default/default.dry")
	remove(t, l, "networkpolicies/default/default.log")
}

// scrape reads the metrics of node-1's agent.
func scrape(l *lab.Lab) (text string, err error) {
	err = l.Within("node-1", func() error {
		c, err := net.DialTimeout("tcp", "127.0.0.1:9091", time.Second)
		if err != nil {
			return err
		}
		once := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) { return c, nil }}, Timeout: 5 * time.Second}
		r, err := once.Get("http://127.0.0.1:9091/metrics")
		if err != nil {
			return err
		}
		b, err := io.ReadAll(r.Body)
		text = string(b)
		return errors.Join(err, r.Body.Close())
	})
	return text, err
}

// denied tells drops from rejections.
func denied(t *testing.T, l *lab.Lab, client opener, web netip.Addr) {
	policy(t, l, "none", `"selector": "app == 'web'", "types": ["Ingress"]`)
	answered := func() (timeout bool, err error) {
		err = client(func() error {
			c, err := net.DialTimeout("tcp", netip.AddrPortFrom(web, 80).String(), time.Second)
			if err == nil {
				_ = c.Close()
			}
			return err
		})
		var n net.Error
		return errors.As(err, &n) && n.Timeout(), err
	}
	becomesSilent := func(what string, silent bool) {
		t.Helper()
		nettest.Eventually(t, func() error {
			if timeout, err := answered(); err == nil || timeout != silent {
				return fmt.Errorf("%s: want silence %t: %w", what, silent, errors.Join(err, errors.New("not so")))
			}
			return nil
		})
	}
	becomesSilent("dropped", true)
	setFelix(t, l, toHost+`, "nftablesFilterDenyAction": "Reject"`)
	becomesSilent("rejected", false)
	setFelix(t, l, toHost+`, "nftablesFilterDenyAction": "Drop", "iptablesFilterDenyAction": "Reject"`)
	becomesSilent("dropped by the newer name", true)
	setFelix(t, l, toHost+`, "iptablesFilterDenyAction": "Reject"`)
	becomesSilent("rejected by the older name", false)
	setFelix(t, l, toHost)
	remove(t, l, "networkpolicies/default/default.none")
}

// cutOff holds that a connection that policy denies by now ends, and another does not.
func cutOff(t *testing.T, l *lab.Lab, web netip.Addr) {
	becomes(t, "without policy", true, podOpener(l, "b1"), web, 80)
	cut, kept := startChat(t, l, "b1", "web", web, 20*time.Millisecond), startStream(t, l, "a1", "web")
	policy(t, l, "a1", `"selector": "app == 'web'", "types": ["Ingress"], "ingress": [{"action": "Allow", "source": {"nets": ["`+pod(t, l, "a1").Addr.String()+`"]}}]`)
	nettest.Eventually(t, func() error {
		cut.mu.Lock()
		before := cut.now.rounds
		cut.mu.Unlock()
		<-time.After(500 * time.Millisecond)
		cut.mu.Lock()
		defer cut.mu.Unlock()
		if cut.now.rounds > before {
			return errors.New("the denied connection goes on")
		}
		return nil
	})
	cut.finish()
	if got := kept.stop(t); got.lost != 0 {
		t.Errorf("%d of %d packets of a flow that is allowed were lost", got.lost, got.sent)
	}
}
