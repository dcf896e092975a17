package e2e

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/pkg/api"
)

// crowd is many connections from one pod to another, each of which says something now and then and hears it back.
type crowd struct {
	rounds []atomic.Int64 // by connection
	failed atomic.Pointer[error]
	end    chan struct{}
	going  sync.WaitGroup
}

const crowdPort = 7171

func startCrowd(t *testing.T, l *lab.Lab, n int, from, to string) *crowd {
	t.Helper()
	c := &crowd{rounds: make([]atomic.Int64, n), end: make(chan struct{})}
	target := netip.AddrPortFrom(pod(t, l, to).Addr, crowdPort).String()
	var door net.Listener
	if err := l.WithinPod(to, func() (err error) { door, err = net.Listen("tcp", target); return err }); err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			conn, err := door.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(conn, conn); _ = conn.Close() }() // who talks sees what goes wrong
		}
	}()
	conns := make([]net.Conn, n)
	for i := range conns {
		if err := l.WithinPod(from, func() (err error) { conns[i], err = net.DialTimeout("tcp", target, 10*time.Second); return err }); err != nil {
			t.Fatal(err)
		}
		c.going.Go(func() { c.talk(i, conns[i]) })
	}
	t.Cleanup(func() {
		_ = door.Close()
		for _, conn := range conns {
			_ = conn.Close()
		}
		c.going.Wait()
	})
	return c
}

func (c *crowd) talk(i int, conn net.Conn) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	said, got := make([]byte, 8), make([]byte, 8)
	for {
		select {
		case <-c.end:
			return
		case <-tick.C:
		}
		n := c.rounds[i].Load()
		binary.BigEndian.PutUint64(said, uint64(n))
		_, err := conn.Write(said)
		if err == nil {
			_, err = io.ReadFull(conn, got)
		}
		if err == nil && string(got) != string(said) {
			err = fmt.Errorf("connection %d hears %x instead of %x", i, got, said)
		}
		if err != nil {
			c.failed.Store(&err)
			return
		}
		c.rounds[i].Add(1)
	}
}

// goOn waits until each connection has made more rounds.
func (c *crowd) goOn(t *testing.T) {
	t.Helper()
	before := make([]int64, len(c.rounds))
	for i := range c.rounds {
		before[i] = c.rounds[i].Load()
	}
	nettest.Eventually(t, func() error {
		if err := c.failed.Load(); err != nil {
			return *err
		}
		for i := range c.rounds {
			if n := c.rounds[i].Load(); n < before[i]+2 {
				return fmt.Errorf("connection %d stands still after %d rounds", i, n)
			}
		}
		return nil
	})
}

// TestPolicyEditsUnder200Connections edits policy in ways that change nothing for anybody, while connections go on, and new flows knock in both directions, of
// which policy allows some and denies others. The hosts drop what nobody accepts, so that our accepts are needed.
func TestPolicyEditsUnder200Connections(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 2, lab.VXLAN })
	addPodOf(t, l, lab.PodSpec{Name: "web", Node: "node-1", Labels: map[string]string{"app": "web"}})
	addPodOf(t, l, lab.PodSpec{Name: "client", Node: "node-2", Labels: map[string]string{"role": "client"}})
	for _, node := range []string{"node-1", "node-2"} {
		run(t, l, node, "iptables", "-P", "FORWARD", "DROP")
	}
	client, stranger, web := pod(t, l, "client").Addr, pod(t, l, "b2"), pod(t, l, "web").Addr
	bySelector, byNet := `"selector": "role == 'client'"`, `"nets": ["`+client.String()+`"]`
	spec := func(order int, peer string) string {
		return fmt.Sprintf(`"selector": "app == 'web'", "order": %d, "types": ["Ingress", "Egress"], "ingress": [{"action": "Allow", "source": {%s}}],
			"egress": [{"action": "Allow", "destination": {%s}}]`, order, peer, peer)
	}
	policy(t, l, "web", spec(5, bySelector))
	listenTCP(t, l, "web", 80)
	listenTCP(t, l, "b2", 80)
	ways(t, l, "at first", reach{"client", "web", 80, true}, reach{"b2", "web", 80, false}, reach{"web", "b2", 80, false})
	all := startCrowd(t, l, 200, "client", "web")
	allowed := []*knocker{knock(t, l, "client", "web", web), knock(t, l, "web", "client", client)}
	addPodOf(t, l, lab.PodSpec{Name: "web2", Node: "node-1", Labels: map[string]string{"app": "web"}})
	denied := []*knocker{knock(t, l, "b2", "web2", pod(t, l, "web2").Addr), knock(t, l, "web", "b2", stranger.Addr)}
	felix := func(node, extra string) {
		put(t, l, api.ResourcesRoot+"felixconfigurations/node."+node, `{"kind": "FelixConfiguration", "apiVersion": "projectcalico.org/v3", "metadata": {"name": "node.`+node+`"},
			"spec": {`+toHost+extra+`}}`)
	}
	masks := []string{"0xfff00000", "0x0000ff00", "0xfffe0000", "0xffff0000"}
	for i := range 2 * len(masks) {
		policy(t, l, "unrelated", fmt.Sprintf(`"selector": "app == 'other'", "types": ["Ingress"], "ingress": [{"action": "Deny", "source": {"nets": ["198.51.%d.0/24"]}}]`, i))
		resource(t, l, "GlobalNetworkSet", "globalnetworksets/others", fmt.Sprintf(`"nets": ["203.0.113.%d/32", "203.0.%d.0/24"]`, i, i))
		policy(t, l, "sets", fmt.Sprintf(`"selector": "app == 'web'", "order": %d, "types": ["Ingress"], "ingress": [{"action": "Allow", "source": {"selector": "n == '%d'"}}]`, 9-i, i%2))
		policy(t, l, "web", spec(5+i%3, []string{bySelector, byNet}[i%2]))
		policy(t, l, "again", spec(1, []string{byNet, bySelector}[i%2]))
		remove(t, l, "networkpolicies/default/default.web")
		policy(t, l, "web", spec(2, bySelector))
		remove(t, l, "networkpolicies/default/default.again")
		resource(t, l, "Tier", "tiers/first", fmt.Sprintf(`"order": %d, "defaultAction": "Pass"`, 10+i))
		resource(t, l, "GlobalNetworkPolicy", "globalnetworkpolicies/first.pass", fmt.Sprintf(`"tier": "first", "order": %d, "selector": "all()", "types": ["Ingress", "Egress"],
			"ingress": [{"action": "Pass"}], "egress": [{"action": "Pass"}]`, i))
		mask := masks[i%len(masks)]
		var number uint32
		if _, err := fmt.Sscanf(mask, "0x%x", &number); err != nil {
			t.Fatal(err)
		}
		for _, node := range []string{"node-1", "node-2"} {
			felix(node, fmt.Sprintf(`, "iptablesMarkMask": %d`, number))
		}
		accept := number & -number
		eventually(t, l, has(fmt.Sprintf("--mark %#x/%#[1]x", accept)), "iptables", "-S", "cali-FORWARD")
		eventually(t, l, has(fmt.Sprintf("meta mark set meta mark | %#08x", accept)), "nft", "list", "chain", "inet", "muslin", "accepted")
		all.goOn(t)
	}
	close(all.end)
	for i, k := range denied {
		if sent, seen := k.stop(t); seen != 0 || sent < 100 {
			t.Errorf("denied flows %d: %d of %d datagrams got through", i, seen, sent)
		}
	}
	for i, k := range allowed {
		if sent, seen := k.stop(t); seen != sent || sent < 100 {
			t.Errorf("allowed flows %d: %d of %d datagrams were lost", i, sent-seen, sent)
		}
	}
}
