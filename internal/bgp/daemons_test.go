package bgp

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/internal/peering"
	"github.com/muslin-cni/muslin/pkg/api"
)

// segment is an Ethernet that namespaces hang on.
type segment struct {
	t   *testing.T
	hub *nettest.NS
	n   int
}

func newSegment(t *testing.T) *segment {
	t.Helper()
	nettest.Need(t, "root")
	s := &segment{t: t, hub: nettest.New(t)}
	s.hub.Exec("ip", "link", "add", "br0", "type", "bridge")
	s.hub.Exec("ip", "link", "set", "br0", "up")
	return s
}

// host adds a namespace with the addresses on eth0.
func (s *segment) host(addrs ...string) *nettest.NS {
	s.t.Helper()
	ns := nettest.New(s.t)
	s.n++
	port := fmt.Sprintf("p%d", s.n)
	nettest.Pair(ns, "eth0", s.hub, port)
	s.hub.Exec("ip", "link", "set", port, "master", "br0")
	for _, a := range addrs {
		ns.Exec("ip", "address", "add", a, "dev", "eth0", "nodad")
	}
	return ns
}

// bird is a running BIRD.
type bird struct {
	*process
	ns     *nettest.NS
	socket string
}

// template is what a Calico node has in its BIRD's configuration for every peer.
const template = `
protocol device { scan time 2; }
protocol direct { ipv4; }
protocol kernel { persist; learn; scan time 2; merge paths on; graceful restart; ipv4 { import all; export where source = RTS_BGP; }; }
filter to_peers { if source = RTS_STATIC then { bgp_local_pref = 2147482623; accept; } reject; }
template bgp t { local as 64512; multihop; hold time 240; connect delay time 2; connect retry time 5; error wait time 5,30;
  graceful restart; graceful restart time 120; ipv4 { import all; export filter to_peers; add paths on; gateway recursive; }; }
`

func startBIRD(t *testing.T, ns *nettest.NS, config string) *bird {
	t.Helper()
	nettest.Need(t, "bird", "birdc")
	dir := t.TempDir()
	file, socket := filepath.Join(dir, "bird.conf"), filepath.Join(dir, "ctl")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("bird", "-f", "-c", file, "-s", socket)
	cmd.Stderr = os.Stderr
	b := &bird{process: start(t, ns, cmd), ns: ns, socket: socket}
	nettest.Eventually(t, func() error { _, err := ns.Try("birdc", "-s", socket, "show", "status"); return err })
	return b
}

// configure gives BIRD another configuration. Sessions whose own part of it is the same go on.
func (b *bird) configure(config string) {
	b.t.Helper()
	if err := os.WriteFile(filepath.Join(filepath.Dir(b.socket), "bird.conf"), []byte(config), 0o600); err != nil {
		b.t.Fatal(err)
	}
	b.ns.Exec("birdc", "-s", b.socket, "configure")
}

// show returns what birdc says.
func (b *bird) show(args ...string) string {
	b.t.Helper()
	return b.ns.Exec(append([]string{"birdc", "-s", b.socket, "show"}, args...)...)
}

// resumed waits until BIRD has been told everything by a neighbor that was away. One that goes away again before that loses what BIRD kept for it (RFC
// 4724 section 4.2).
func (b *bird) resumed(protocol string) {
	b.t.Helper()
	within(b.t, waitLong, func() error {
		out := b.show("protocols", "all", protocol)
		if !strings.Contains(out, "Established") || strings.Contains(out, "Neighbor graceful restart active") {
			return fmt.Errorf("not everything has been told again: %s", out)
		}
		return nil
	})
}

// has waits until BIRD's table entry for a prefix contains all of the texts.
func (b *bird) has(prefix string, texts ...string) {
	b.t.Helper()
	within(b.t, waitLong, func() error {
		out, err := b.ns.Try("birdc", "-s", b.socket, "show", "route", "for", prefix, "all") // it fails where there is no route at all
		if err != nil {
			return err
		}
		return contains(out, append(texts, prefix)...)
	})
}

func contains(out string, texts ...string) error {
	for _, want := range texts {
		if !strings.Contains(out, want) {
			return fmt.Errorf("%q is not in:\n%s", want, out)
		}
	}
	return nil
}

// frr is FRR's zebra and bgpd.
type frr struct {
	bgpd *process
	ns   *nettest.NS
	dir  string
}

func startFRR(t *testing.T, ns *nettest.NS, config string) *frr {
	t.Helper()
	const folder = "/usr/lib/frr/"
	nettest.Need(t, folder+"bgpd", "vtysh")
	dir, err := os.MkdirTemp("", "frr") // a socket's path is 107 characters at most, and t.TempDir's may be longer
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // in the system's temporary folder
	f := &frr{ns: ns, dir: dir}
	run := func(name, config string, more ...string) *process {
		file := filepath.Join(dir, name+".conf")
		if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		args := append([]string{"-u", "root", "-g", "frrvty", "-f", file, "-i", filepath.Join(dir, name+".pid"), "-z", filepath.Join(dir, "zserv"), "--vty_socket", dir, "-P", "0"}, more...)
		p := start(t, ns, exec.Command(folder+name, args...))
		within(t, waitLong, func() error { _, err := os.Stat(filepath.Join(dir, name+".vty")); return err })
		return p
	}
	run("zebra", "")
	f.bgpd = run("bgpd", config)
	return f
}

// has waits until the answer of a command contains all of the texts.
func (f *frr) has(command string, texts ...string) {
	f.bgpd.t.Helper()
	within(f.bgpd.t, waitLong, func() error {
		out, err := f.ns.Try("vtysh", "--vty_socket", f.dir, "-d", "bgpd", "-c", command)
		if err != nil {
			return err
		}
		return contains(out, texts...)
	})
}

func node(name, addr string) *api.Node {
	n := &api.Node{Spec: api.NodeSpec{BGP: &api.NodeBGP{IPv4Address: api.Prefix{Prefix: netip.MustParsePrefix(addr)}}}}
	n.Metadata.Name = name
	return n
}

func pool(cidr string) *api.IPPool {
	p := &api.IPPool{Spec: api.IPPoolSpec{CIDR: netip.MustParsePrefix(cidr)}}
	p.Metadata.Name = "pool"
	return p
}

func peer(name string, spec api.BGPPeerSpec) *api.BGPPeer {
	p := &api.BGPPeer{Spec: spec}
	p.Metadata.Name = name
	return p
}

// configured computes what a node's speaker should do, and has it do that.
func configured(s *speaker, name string, m peering.Model) {
	s.t.Helper()
	r := peering.Compute(name, m)
	for _, p := range r.Problems {
		s.t.Logf("%s: %v", name, p)
	}
	s.do(request{Announce: r.Routes, Apply: &r.Speaker})
}

func blocks(cidrs ...string) (out []netip.Prefix) {
	for _, c := range cidrs {
		out = append(out, netip.MustParsePrefix(c))
	}
	return out
}

// table is what a speaker has learned, a line "prefix via next hop" each, stale ones marked, sorted.
func table(r reply) []string {
	out := []string{}
	for _, p := range r.Learned {
		line := fmt.Sprintf("%v via %v", p.Prefix, p.NextHop)
		if p.Stale {
			line += " stale"
		}
		out = append(out, line)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// learns is the condition that exactly these routes are learned.
func learns(want ...string) func(reply) error {
	return func(r reply) error {
		if got := table(r); !slices.Equal(got, want) {
			return fmt.Errorf("learned %q, want %q", got, want)
		}
		return nil
	}
}

func statusOf(r reply, peer string) Status {
	for _, s := range r.Status {
		if s.Peer.String() == peer {
			return s
		}
	}
	return Status{}
}

// saysOf is the condition that the peer's session is in the state and that its last error contains the text.
func saysOf(peer, state, text string) func(reply) error {
	return func(r reply) error {
		s := statusOf(r, peer)
		if s.State == state && strings.Contains(s.LastError, text) || state == "" && !s.Established() && strings.Contains(s.LastError, text) {
			return nil
		}
		return fmt.Errorf("session with %s: %+v, want state %q and error %q", peer, s, state, text)
	}
}

// monitor records the kernel's route events in a namespace. The function that it returns says what there was so far.
func monitor(t *testing.T, ns *nettest.NS) func() string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "events")
	out, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = out.Close() }) // it is read as a file
	cmd := exec.Command("ip", "monitor", "route")
	cmd.Stdout = out
	start(t, ns, cmd)
	read := func() string {
		t.Helper()
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	nettest.Eventually(t, func() error { // until it says so, it may not listen yet
		ns.Exec("ip", "route", "replace", "blackhole", "198.18.0.1/32", "metric", "9")
		ns.Exec("ip", "route", "del", "blackhole", "198.18.0.1/32", "metric", "9")
		return contains(read(), "198.18.0.1")
	})
	return read
}
