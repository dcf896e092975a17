package lab

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/pkg/api"
)

func needDaemons(t *testing.T) {
	t.Helper()
	for _, program := range append(BIRD.programs(), FRR.programs()...) {
		if _, err := exec.LookPath(program); err != nil && os.Getenv("NETTEST") == "require" {
			t.Fatal(err)
		} else if err != nil {
			t.Skip(err)
		}
	}
}

// says waits until a command's output in a place contains the text.
func says(t *testing.T, l *Lab, where, text string, args ...string) {
	t.Helper()
	deadline := time.Now().Add(patient(40 * time.Second))
	for {
		var out bytes.Buffer
		err := l.Exec(t.Context(), where, Command{Args: args, Stdout: &out, Stderr: &out})
		if err == nil && strings.Contains(out.String(), text) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v does not say %q: %v\n%s", where, args, text, err, &out)
		}
		<-time.After(50 * time.Millisecond)
	}
}

func network(cidr string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(cidr)} }

func TestBIRDAndFRRExchangeRoutesAndCarryPackets(t *testing.T) {
	needDaemons(t)
	cfg := bare(t)
	cfg.Options.DualStack = true
	l := up(t, cfg)
	bird, err := l.AddRouter(t.Context(), RouterSpec{
		Name: "east", Kind: BIRD, AS: 65010, Announce: append(network("192.0.2.0/24"), network("2001:db8:1::/64")...), Password: "s3cret", Peers: []RouterPeer{{Host: "172.30.1.202", AS: 65020}, {Host: "fd00:172:30:1::ca", AS: 65020}},
	})
	if err != nil {
		t.Fatal(err)
	}
	frr, err := l.AddRouter(t.Context(), RouterSpec{
		Name: "west", Kind: FRR, AS: 65020, Announce: append(network("198.51.100.0/24"), network("2001:db8:2::/64")...), Password: "s3cret", Peers: []RouterPeer{{Host: "east"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if bird.Addr != netip.MustParseAddr("172.30.1.201") || frr.Addr6 != netip.MustParseAddr("fd00:172:30:1::ca") {
		t.Errorf("addresses %v and %v", bird.Addr, frr.Addr6)
	}
	exchanged := func() {
		t.Helper()
		says(t, l, "east", "198.51.100.0/24 via 172.30.1.202", "ip", "route", "show", "proto", "bird")
		says(t, l, "east", "2001:db8:2::/64 via", "ip", "-6", "route", "show", "proto", "bird")
		says(t, l, "west", "192.0.2.0/24", "vtysh", "-c", "show ip route bgp")
		says(t, l, "west", "1 received", "ping", "-c", "1", "-W", "2", "-I", "198.51.100.1", "192.0.2.1")
		says(t, l, "west", "1 received", "ping", "-c", "1", "-W", "2", "-I", "2001:db8:2::1", "2001:db8:1::1")
	}
	exchanged()
	if err := errors.Join(l.KillRouter(t.Context(), "west"), l.StartRouter(t.Context(), "west"), l.StopRouter(t.Context(), "east"), l.StartRouter(t.Context(), "east")); err != nil {
		t.Fatal(err)
	}
	exchanged()
	if err := l.RemoveRouter(t.Context(), "west"); err != nil {
		t.Fatal(err)
	}
	if frr.Holder.alive() || frr.Daemons[0].alive() {
		t.Error("a process of the router that was removed lives")
	}
	if err := l.Exec(t.Context(), "west", Command{Args: []string{"true"}}); err == nil {
		t.Error("a command runs on a router that was removed")
	}
}

func TestDownEndsRoutersWhoseHolderWasKilled(t *testing.T) {
	needDaemons(t)
	cfg := bare(t)
	l := up(t, cfg)
	r, err := l.AddRouter(t.Context(), RouterSpec{Name: "east", Kind: FRR})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r.Holder.end(t.Context(), unix.SIGKILL), l.Down(t.Context())); err != nil {
		t.Fatal(err)
	}
	for _, p := range append(r.Daemons, r.Holder) {
		if p.alive() {
			t.Errorf("process %d outlives the lab", p.PID)
		}
	}
}

func TestRoutersFollowWhoIsInTheLab(t *testing.T) {
	needDaemons(t)
	l := up(t, bare(t))
	for name, kind := range map[string]RouterKind{"east": BIRD, "west": FRR} {
		if _, err := l.AddRouter(t.Context(), RouterSpec{Name: name, Kind: kind}); err != nil {
			t.Fatal(err)
		}
	}
	n, err := l.AddNode(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	says(t, l, "east", "peer_172_30_1_3", "birdc", "show", "protocols")
	says(t, l, "west", "172.30.1.3", "vtysh", "-c", "show bgp summary")
	if err := l.RemoveNode(t.Context(), n.Name); err != nil {
		t.Fatal(err)
	}
	if out := output(t, l, "east", "birdc", "show", "protocols"); strings.Contains(out, "peer_172_30_1_3") {
		t.Errorf("BIRD still has a session with %s:\n%s", n.Name, out)
	}
}

func TestRouterSpecNamesWhatCannotWork(t *testing.T) {
	needDaemons(t)
	o := Defaults()
	s := &state{Options: o, Nodes: plannedNodes(o), Routers: []Router{{Spec: RouterSpec{Name: "there"}, Addr: underlay(1, firstRouter)}}}
	for want, spec := range map[string]RouterSpec{
		"router name":                 {Name: "No", Kind: BIRD},
		"the lab's own":               {Name: "node-7", Kind: BIRD},
		"exists already":              {Name: "there", Kind: BIRD},
		"want bird or frr":            {Name: "r", Kind: "quagga"},
		"subnet 2":                    {Name: "r", Kind: BIRD, Subnet: 2},
		"driven by bird, not by frr":  {Name: "r", Kind: FRR, CalicoNode: true},
		"bring the lab up with --bgp": {Name: "r", Kind: BIRD, CalicoNode: true},
		"hold time":                   {Name: "r", Kind: BIRD, Hold: time.Second},
		"without host bits":           {Name: "r", Kind: BIRD, Announce: network("192.0.2.1/24")},
		"of a family of this lab":     {Name: "r", Kind: BIRD, Announce: network("2001:db8::/64")},
		"password":                    {Name: "r", Kind: BIRD, Password: `a"b`},
		"peer \"nobody\"":             {Name: "r", Kind: BIRD, Peers: []RouterPeer{{Host: "nobody"}}},
		"cluster id":                  {Name: "r", Kind: BIRD, Cluster: netip.MustParseAddr("::1")},
	} {
		if err := spec.complete(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: error %v, want %q", spec, err, want)
		}
	}
	good := RouterSpec{Name: "r", Kind: BIRD}
	if err := good.complete(s); err != nil || good.AS != routersAS || good.Subnet != 1 || good.Hold != holdDefault {
		t.Errorf("error %v: %+v", err, good)
	}
	if n, err := s.freeRouterNumber(1); err != nil || n != firstRouter+1 {
		t.Errorf("the next number is %d, %v", n, err)
	}
}

func TestCalicoNodeWaitsForThePeerWithTheGreaterAddressAsAString(t *testing.T) {
	o := Defaults()
	s := &state{Options: o, Nodes: []Node{{Name: "node-9", Addr: underlay(1, 9)}, {Name: "node-10", Addr: underlay(1, 10)}}}
	r := &Router{Spec: RouterSpec{Name: "r", Kind: BIRD, AS: nodesAS, CalicoNode: true}, Addr: underlay(1, 201), Blocks: network("192.168.7.0/26")}
	config := birdConfig(s, r)
	for _, want := range []string{
		"neighbor 172.30.1.9 as 64512; source address 172.30.1.201; passive on;", // "…9" comes after "…201"
		"neighbor 172.30.1.10 as 64512; source address 172.30.1.201; }",
		"protocol bgp Mesh_172_30_1_10 from peer4", "route 192.168.7.0/26 blackhole;", "bgp_local_pref = 2147482623",
	} {
		if !strings.Contains(config, want) {
			t.Errorf("%q is not in:\n%s", want, config)
		}
	}
	r.Spec.Peers = []RouterPeer{{Host: "node-9", AS: 65001}}
	if config := birdConfig(s, r); !strings.Contains(config, "protocol bgp Node_172_30_1_9 from peer4 { neighbor 172.30.1.9 as 65001; source address 172.30.1.201; }") || strings.Contains(config, "Mesh_") {
		t.Errorf("with a peer of its own:\n%s", config)
	}
}

func TestReflectorHasItsOwnASAsClients(t *testing.T) {
	o := Defaults()
	s := &state{Options: o, Nodes: plannedNodes(o)}
	r := &Router{Spec: RouterSpec{Name: "r", AS: nodesAS, Cluster: netip.MustParseAddr("244.0.0.9"), Peers: []RouterPeer{{Host: "node-1"}, {Host: "node-2", AS: 65001}}}, Addr: underlay(1, 201)}
	if got := birdConfig(s, r); strings.Count(got, "rr client; rr cluster id 244.0.0.9;") != 1 {
		t.Errorf("BIRD:\n%s", got)
	}
	if got := frrConfig(s, r); strings.Count(got, "route-reflector-client") != 1 || !strings.Contains(got, "bgp cluster-id 244.0.0.9") || strings.Count(got, "ebgp-multihop") != 1 {
		t.Errorf("FRR:\n%s", got)
	}
	var flags routerFlags
	flags.peers, flags.as, flags.cluster, flags.announce = []string{"node-1=65001", "172.30.1.9"}, "65000", "244.0.0.1", []string{"192.0.2.0/24"}
	if err := flags.parse(); err != nil || flags.spec.Peers[0] != (RouterPeer{Host: "node-1", AS: 65001}) || flags.spec.Peers[1].AS != api.ASN(0) || flags.spec.AS != 65000 {
		t.Errorf("error %v: %+v", err, flags.spec)
	}
	for _, bad := range []routerFlags{{as: "0"}, {as: "x"}, {peers: []string{"a=b"}}, {announce: []string{"192.0.2.1"}}, {cluster: "x"}} {
		if err := bad.parse(); err == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
}
