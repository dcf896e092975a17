package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/bgp"
	"github.com/muslin-cni/muslin/internal/etcdtest"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/internal/peering"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

func statusFor(name, node string, seconds uint32) *api.CalicoNodeStatus {
	s := &api.CalicoNodeStatus{Spec: api.CalicoNodeStatusSpec{Node: node, Classes: []string{"BGP"}, UpdatePeriodSeconds: &seconds}}
	s.Metadata.Name = name
	return s
}

func TestNodeAnswersTheStatusesThatAskForIt(t *testing.T) {
	c := etcdtest.New(t).Store()
	reports := atomic.Int64{}
	n := &nodeStatuses{store: c, node: "n1", log: slog.New(slog.DiscardHandler), report: func(_ context.Context, classes []string) (out api.CalicoNodeStatusReport, err error) {
		out.BGP.NumberEstablishedV4 = int(reports.Add(1))
		if len(classes) != 1 || classes[0] != "BGP" {
			err = fmt.Errorf("classes %v", classes)
		}
		return out, err
	}}
	write := func(s *api.CalicoNodeStatus) {
		t.Helper()
		if _, err := store.Create(t.Context(), c, api.KeyOf(s), s); err != nil {
			t.Fatal(err)
		}
	}
	reported := func(name string) int {
		t.Helper()
		e, err := store.Get[api.CalicoNodeStatus](t.Context(), c, api.KeyOf(statusFor(name, "", 0)))
		if err != nil {
			t.Fatal(err)
		}
		return e.Value.Status.BGP.NumberEstablishedV4
	}
	write(statusFor("early", "n1", 86400))
	write(statusFor("other", "n2", 1))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- n.run(ctx) }()
	nettest.Eventually(t, func() error {
		if reported("early") == 0 {
			return errors.New("no report for one that was there")
		}
		return nil
	})
	write(statusFor("never", "n1", 0))
	write(statusFor("late", "n1", 1))
	nettest.Eventually(t, func() error {
		if reported("late") < 3 { // early's was one
			return errors.New("no second report for one that came")
		}
		return nil
	})
	early, other, never := reported("early"), reported("other"), reported("never")
	if early != 1 || other != 0 || never != 0 {
		t.Errorf("early has report %d, want the first; other nodes' has %d, and one that asks for none %d", early, other, never)
	}
	if _, err := store.Mutate(t.Context(), c, api.KeyOf(statusFor("early", "", 0)), func(s *api.CalicoNodeStatus, _ bool) (bool, error) {
		*s.Spec.UpdatePeriodSeconds = 3600
		return true, nil
	}); err != nil {
		t.Fatal(err)
	}
	nettest.Eventually(t, func() error {
		if reported("early") == 1 {
			return errors.New("no report when it asks for something else")
		}
		return nil
	})
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("run: %v", err)
	}
}

func TestSessionsAreCountedAndNamedAsCalicoDoes(t *testing.T) {
	at := time.Date(2026, 11, 21, 8, 59, 56, 0, time.UTC)
	session := func(peer string, kind peering.Kind, state string) bgp.Status {
		return bgp.Status{Peer: netip.MustParseAddr(peer), Kind: kind, State: state, Since: at}
	}
	got := sessionReport([]bgp.Status{
		session("10.0.0.2", peering.Mesh, "Established"), session("10.0.0.3", peering.ForNode, "Passive"), session("10.0.0.4", peering.Global, "Idle"),
		session("192.168.0.9", peering.Workload, "Established"), session("fe80::1%eth0", peering.Global, "Established"),
	})
	row := func(peer, kind, state string) api.BGPPeerStatus {
		return api.BGPPeerStatus{PeerIP: peer, Type: kind, State: state, Since: "2026-11-21 08:59:56"}
	}
	want := api.NodeBGPStatus{
		NumberEstablishedV4: 1, NumberNotEstablishedV4: 2, NumberEstablishedV6: 1,
		PeersV4: []api.BGPPeerStatus{row("10.0.0.2", "NodeMesh", "Established"), row("10.0.0.3", "NodePeer", "Active"), row("10.0.0.4", "GlobalPeer", "Idle")},
		PeersV6: []api.BGPPeerStatus{row("fe80::1", "GlobalPeer", "Established")},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestRoutesAreListedWithWhoSentThem(t *testing.T) {
	p, a := netip.MustParsePrefix, netip.MustParseAddr
	eth0 := kernel.Dev{Name: "eth0", Index: 2}
	held := map[kernel.RouteKey]kernel.Route{
		{Dst: p("10.1.0.0/26")}:                 {Type: kernel.Blackhole},
		{Dst: p("10.1.0.5/32")}:                 {Dev: kernel.Dev{Name: "cali1", Index: 9}},
		{Dst: p("10.2.0.0/26"), Metric: 1024}:   {Dev: eth0, Gateway: a("10.0.0.2")},
		{Dst: p("10.3.0.0/26"), Metric: 1024}:   {Dev: eth0, Gateway: a("10.0.0.254")},
		{Dst: p("192.0.2.0/24"), Metric: 1024}:  kernel.Route{}.Via(kernel.Hop{Gateway: a("10.0.0.8"), Dev: eth0}, kernel.Hop{Gateway: a("10.0.0.7"), Dev: eth0}),
		{Dst: p("fd00:1::/122"), Metric: 1024}:  {Dev: eth0, Gateway: a("fe80::1")},
		{Dst: p("10.9.0.0/26")}:                 {Dev: eth0, Gateway: a("10.0.0.9")},
		{Dst: p("fd00:9::1/128"), Metric: 1024}: {Dev: kernel.Dev{Name: "cali1", Index: 9}},
	}
	path := func(dst, hop, peer string) peering.Path {
		return peering.Path{Prefix: p(dst), NextHop: a(hop), Peer: a(peer)}
	}
	paths := []peering.Path{
		path("10.2.0.0/26", "10.0.0.2", "10.0.0.6"), path("10.3.0.0/26", "10.0.1.3", "10.0.1.3"), path("192.0.2.0/24", "10.0.0.7", "10.0.0.7"),
		path("192.0.2.0/24", "10.0.0.8", "10.0.0.8"), path("198.51.100.0/24", "10.0.0.7", "10.0.0.7"), path("fd00:1::/122", "fe80::1%eth0", "fe80::1%eth0"),
	}
	sessions := []bgp.Status{{Peer: a("10.0.0.6"), Kind: peering.ForNode}, {Peer: a("10.0.1.3"), Kind: peering.Mesh}, {Peer: a("10.0.0.7"), Kind: peering.Global}, {Peer: a("10.0.0.8"), Kind: peering.Global}}
	var got []string
	for _, r := range routeRows(held, paths, sessions) {
		s := r.status
		got = append(got, fmt.Sprintf("%s %s via %q dev %q: %s %s", s.Type, s.Destination, s.Gateway, s.Interface, s.LearnedFrom.SourceType, s.LearnedFrom.PeerIP))
	}
	want := []string{
		`FIB 10.1.0.0/26 via "" dev "": Static `,
		`FIB 10.1.0.5/32 via "" dev "cali1": Kernel `,
		`FIB 10.2.0.0/26 via "10.0.0.2" dev "eth0": BGPPeer 10.0.0.6`,
		`FIB 10.3.0.0/26 via "10.0.0.254" dev "eth0": NodeMesh 10.0.1.3`,
		`FIB 10.9.0.0/26 via "10.0.0.9" dev "eth0": Kernel `,
		`FIB 192.0.2.0/24 via "10.0.0.7" dev "eth0": BGPPeer 10.0.0.7`,
		`FIB 192.0.2.0/24 via "10.0.0.8" dev "eth0": BGPPeer 10.0.0.8`,
		`RIB 198.51.100.0/24 via "10.0.0.7" dev "": BGPPeer 10.0.0.7`,
		`FIB fd00:1::/122 via "fe80::1" dev "eth0": BGPPeer fe80::1`,
		`FIB fd00:9::1/128 via "" dev "cali1": Kernel `,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestServerTellsOfSessionsOrThatThereIsNoBGP(t *testing.T) {
	var told *attach.Error
	if _, err := (&server{}).peers(); !errors.As(err, &told) || told.Code != attach.CodeNoBGP {
		t.Errorf("without BGP: %v", err)
	}
	at := time.Now()
	s := &server{sessions: func() ([]bgp.Status, error) {
		return []bgp.Status{{Peer: netip.MustParseAddr("10.0.0.2"), Kind: peering.Mesh, State: "Active", Since: at, LastError: "Socket: refused"}}, nil
	}}
	got, err := s.peers()
	want := []attach.Peer{{Addr: netip.MustParseAddr("10.0.0.2"), Type: "node-to-node mesh", State: "Active", Since: at, Info: "Socket: refused"}}
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); err != nil || d != "" {
		t.Errorf("error %v, (-want +got):\n%s", err, d)
	}
}
