package bgp

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/osrg/gobgp/v4/api"

	"github.com/muslin-cni/muslin/internal/peering"
	papi "github.com/muslin-cni/muslin/pkg/api"
)

// limitOfTest is how many routes a speaker of mode limited takes.
const limitOfTest = 5

func TestEachFamilyHasTheLimit(t *testing.T) {
	f := newFuzzed(t)
	f.apply()
	p := session(f.good)
	p.Hop6 = netip.MustParseAddr("fd00::1")
	var got []string
	for _, a := range limited(f.s.peer(p), 7).AfiSafis {
		got = append(got, fmt.Sprintf("%v %v %d", a.PrefixLimits.Family.Afi, a.PrefixLimits.Family.Safi, a.PrefixLimits.MaxPrefixes))
	}
	want := []string{fmt.Sprintf("%v %v 7", api.Family_AFI_IP, api.Family_SAFI_UNICAST), fmt.Sprintf("%v %v 7", api.Family_AFI_IP6, api.Family_SAFI_UNICAST)}
	if !slices.Equal(got, want) {
		t.Errorf("limits %q, want %q", got, want)
	}
}

func TestRestsGrowUntilASessionLasts(t *testing.T) {
	now := time.Unix(1000, 0)
	var r rest
	var waits []time.Duration
	for range 6 {
		r = r.next(now, time.Minute)
		waits = append(waits, r.wait)
		now = r.until.Add(time.Second)
	}
	want := []time.Duration{time.Minute, 2 * time.Minute, 4 * time.Minute, 8 * time.Minute, 16 * time.Minute, 16 * time.Minute}
	if !slices.Equal(waits, want) {
		t.Errorf("rests of %v, want %v", waits, want)
	}
	if r = r.next(r.until.Add(17*time.Minute), time.Minute); r.wait != time.Minute || !r.on {
		t.Errorf("after a session that lasted: %+v", r)
	}
}

func TestRoutesAreCountedWhenTheyMayBeTooMany(t *testing.T) {
	peer := netip.MustParseAddr("10.0.0.2")
	n := newNotes(160)
	if n.hear(peer, 160) || !n.hear(peer, 1) {
		t.Error("161 routes of 160 are not suspect, or 160 are")
	}
	n.count(peer, 100, 161)
	if n.hear(peer, 60) || !n.hear(peer, 1) {
		t.Error("61 beyond 100 are not suspect, or 60 are")
	}
	n.count(peer, 159, 61)
	if n.hear(peer, 10) || !n.hear(peer, 1) {
		t.Error("near the limit they are not counted again after a sixteenth of it")
	}
	if newNotes(0).hear(peer, 1<<30) {
		t.Error("without a limit some are suspect")
	}
}

// floodBIRD is a router that can restart gracefully, with so many routes of our range.
func floodBIRD(routes int) string {
	var list []string
	for i := range routes {
		list = append(list, fmt.Sprintf("198.51.100.%d/32", i))
	}
	return routerBIRD("10.0.0.4", 65002, "as 64512; multihop; error wait time 1,2", "", list...)
}

func TestPeerBeyondItsLimitRestsAndIsTriedAgain(t *testing.T) {
	t.Parallel()
	seg := newSegment(t)
	ours := startSpeaker(t, seg.host("10.0.0.1/24"), "limited")
	startBIRD(t, seg.host("10.0.0.2/24"), routerBIRD("10.0.0.2", 65003, "as 64512; multihop", "", "192.0.2.0/24", "192.0.3.0/24"))
	flood := startBIRD(t, seg.host("10.0.0.4/24"), floodBIRD(limitOfTest))
	m := rack()
	m.Peers = []*papi.BGPPeer{
		peer("well", papi.BGPPeerSpec{PeerIP: "10.0.0.2", ASNumber: 65003}),
		peer("flood", papi.BGPPeerSpec{PeerIP: "10.0.0.4", ASNumber: 65002, Filters: []string{"few"}}),
	}
	few := &papi.BGPFilter{Spec: papi.BGPFilterSpec{ImportV4: []papi.BGPFilterRule{{CIDR: "198.51.100.0/31", MatchOperator: "In", Action: "Accept"}, {Action: "Reject"}}}}
	few.Metadata.Name = "few"
	m.Filters = []*papi.BGPFilter{few}
	configured(ours, "a", m)
	well := []string{"192.0.2.0/24 via 10.0.0.2", "192.0.3.0/24 via 10.0.0.2"}
	all := append(slices.Clone(well), "198.51.100.0/32 via 10.0.0.4", "198.51.100.1/32 via 10.0.0.4")
	ours.eventually(learns(all...)) // as many as may be

	t.Log("one more, which the filter rejects")
	flood.configure(floodBIRD(limitOfTest + 1))
	got := ours.eventually(rests)
	if err := learns(well...)(got); err != nil {
		t.Error(err) // not even stale ones of the other
	}
	if text := strings.Join(got.Tended, "\n"); !strings.Contains(text, "BGP peer 10.0.0.4 (global)") || !strings.Contains(text, "more than 5 routes") || !strings.Contains(text, "set MUSLIN_BGP_MAX_ROUTES of the agent higher") {
		t.Errorf("problems: %s", text)
	}
	within(t, waitLong, func() error {
		ours.do(request{Tend: true})
		return contains(flood.show("protocols", "all", "ours"), "Maximum number of prefixes reached")
	})

	t.Log("it is mended")
	flood.configure(floodBIRD(limitOfTest - 1))
	got = ours.eventually(learns(all...))
	if len(got.Tended) > 0 || statusOf(got, "10.0.0.4").LastError != "" {
		t.Errorf("still said: %q, %+v", got.Tended, statusOf(got, "10.0.0.4"))
	}
	if s := statusOf(got, "10.0.0.2"); s.Flaps != 0 || !s.Established() || s.Kind != peering.Global {
		t.Errorf("the other session: %+v", s)
	}
}

// rests is the condition that the session with 10.0.0.4 is closed for its number of routes.
func rests(r reply) error {
	return saysOf("10.0.0.4", "Idle", "more than 5 routes of one family (MUSLIN_BGP_MAX_ROUTES); tried again at")(r)
}

func TestRoutesOfIPv6AreLimitedToo(t *testing.T) {
	t.Parallel()
	seg := newSegment(t)
	ours := startSpeaker(t, seg.host("10.0.0.1/24", "fd00::1/64"), "limited")
	var routes strings.Builder
	for i := range limitOfTest + 1 {
		fmt.Fprintf(&routes, "route 2001:db8:%d::/48 blackhole; ", i)
	}
	startBIRD(t, seg.host("10.0.0.4/24", "fd00::4/64"), `
router id 10.0.0.4;
protocol device {}
protocol static { ipv6; `+routes.String()+`}
protocol bgp ours { local fd00::4 as 65002; multihop; neighbor fd00::1 as 64512; connect delay time 1; connect retry time 2; graceful restart; ipv6 { import all; export all; }; }
`)
	m := rack()
	m.Nodes[0].Spec.BGP.IPv6Address = papi.Prefix{Prefix: netip.MustParsePrefix("fd00::1/64")}
	m.Peers = []*papi.BGPPeer{peer("flood", papi.BGPPeerSpec{PeerIP: "fd00::4", ASNumber: 65002})}
	configured(ours, "a", m)
	got := ours.eventually(saysOf("fd00::4", "Idle", "more than 5 routes of one family"))
	if err := learns()(got); err != nil {
		t.Error(err)
	}
}
