package agent

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/config"
	"github.com/muslin-cni/muslin/internal/echo"
	"github.com/muslin-cni/muslin/internal/etcdtest"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/internal/probe"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// tester is a prober of node-1 with two VXLAN peers, whose packets a test makes up.
type tester struct {
	*prober
	t      *testing.T
	etcd   *etcdtest.Server
	c      *store.Client
	answer func(probe.Target) probe.Answers
	asked  []string
	logged bytes.Buffer
}

func newTester(t *testing.T) *tester {
	t.Helper()
	srv := etcdtest.New(t)
	x := &tester{t: t, etcd: srv, c: srv.Store(), answer: func(probe.Target) probe.Answers {
		return probe.Answers{Plain: probe.Answered, Offloaded: probe.Answered, Largest: 1450}
	}}
	x.prober = &prober{
		node: "node-1", port: 9097, store: x.c, log: slog.New(slog.NewTextHandler(&x.logged, nil)), who: echo.NewResponder(9097),
		look: make(chan struct{}, 1), news: make(chan struct{}, 1), answering: map[string]bool{},
		ledger: probe.NewLedger(probe.Pace{Every: time.Second, Peers: 100}),
	}
	x.test = func(_ context.Context, to probe.Target) probe.Answers {
		x.asked = append(x.asked, to.Peer)
		return x.answer(to)
	}
	x.ways = func(_ context.Context, to []netip.Addr) (map[netip.Addr]kernel.Hop, error) {
		out := map[netip.Addr]kernel.Hop{}
		for _, a := range to {
			out[a] = kernel.Hop{Dev: kernel.Dev{Name: kernel.VXLANDevice}}
		}
		return out, nil
	}
	x.ledger.Expect([]probe.Target{vxlanTo("node-2"), vxlanTo("node-3")}, time.Now().Add(-time.Minute))
	return x
}

func vxlanTo(peer string) probe.Target {
	return probe.Target{Key: probe.Key{Peer: peer, Kind: api.PathVXLAN}, Self: "node-1", MTU: 1450, Device: kernel.VXLANDevice,
		From: netip.MustParseAddr("192.168.0.1"), To: netip.MustParseAddr("192.168.0." + strings.TrimPrefix(peer, "node-"))}
}

func (x *tester) publishes(node string, r api.NodePaths) {
	x.t.Helper()
	if _, err := store.Create(x.t.Context(), x.c, api.PathsKey(node), &r); err != nil {
		x.t.Fatal(err)
	}
}

func (x *tester) record(node string) string {
	x.t.Helper()
	got, _, err := x.c.Read(x.t.Context(), store.Range{Key: api.PathsKey(node)})
	if err != nil {
		x.t.Fatal(err)
	}
	if len(got[0]) == 0 {
		return "none"
	}
	return string(got[0][0].Value)
}

// states is how the paths fare, after tell.
func (x *tester) states() string {
	x.tell()
	var out []string
	for _, p := range x.list() {
		out = append(out, p.Peer+" "+string(p.State))
	}
	return strings.Join(out, ", ")
}

// again waits until every path is due, and tests it.
func (x *tester) again() {
	x.t.Helper()
	all := len(x.ledger.Paths())
	nettest.Eventually(x.t, func() error {
		if due := x.ledger.Due(time.Now()); len(due) < all {
			return fmt.Errorf("%d of %d paths are due", len(due), all)
		}
		return nil
	})
	x.round(x.t.Context())
}

func TestOnlyWhoAnswersIsAsked(t *testing.T) {
	x := newTester(t)
	x.publishes("node-2", api.NodePaths{})
	x.round(t.Context())
	if d := cmp.Diff([]string{"node-2"}, x.asked); d != "" {
		t.Error(d)
	}
	if got := x.states(); got != "node-2 ok, node-3 unknown" || len(x.troubles()) > 0 || x.logged.Len() > 0 {
		t.Errorf("states are %s, problems %q, log %s", got, x.troubles(), &x.logged)
	}
	x.etcd.Stop() // who has answered may be asked still
	x.again()
	if len(x.asked) < 2 {
		t.Errorf("without etcd only %v were asked", x.asked)
	}
}

func TestPathWithoutARouteIsUnknown(t *testing.T) {
	x := newTester(t)
	x.publishes("node-2", api.NodePaths{})
	x.ways = func(context.Context, []netip.Addr) (map[netip.Addr]kernel.Hop, error) { return nil, nil }
	x.round(t.Context())
	if got := x.states(); got != "node-2 unknown, node-3 unknown" || len(x.asked) > 0 {
		t.Errorf("states are %s, asked %v", got, x.asked)
	}
}

func TestPeerThatHasToldNoKeyIsUnknownAndNotAsked(t *testing.T) {
	x := newTester(t)
	x.publishes("node-2", api.NodePaths{})
	to := vxlanTo("node-2")
	to.Kind, to.Device, to.Keyless = api.PathWireGuard, kernel.WireGuardDevice, true
	x.ledger.Expect([]probe.Target{to}, time.Now().Add(-time.Minute))
	x.round(t.Context())
	if got := x.states(); got != "node-2 unknown" || len(x.asked) > 0 || len(x.troubles()) > 0 {
		t.Errorf("states are %s, asked %v, problems %q", got, x.asked, x.troubles())
	}
	if text := x.list()[0].Text; !strings.Contains(text, "has told no WireGuard key") {
		t.Errorf("the reason is %q", text)
	}
}

func TestWhatIsPublishedOutlivesTheAgentUntilAllWasTried(t *testing.T) {
	x := newTester(t)
	before := api.NodePaths{Tested: true, Faults: []api.Path{{Peer: "node-2", Family: "IPv4", Kind: api.PathVXLAN, State: api.PathBad, Fault: api.FaultNoAnswer}}}
	x.publishes("node-1", before)
	x.publishes("node-2", api.NodePaths{})
	was := x.record("node-1")
	x.publish(t.Context())
	if got := x.record("node-1"); got != was {
		t.Errorf("before the first test it is %s", got)
	}
	x.round(t.Context())
	x.wrote = time.Time{} // long ago
	x.publish(t.Context())
	if got := x.record("node-1"); got != `{"tested":true}` {
		t.Errorf("after it %s", got)
	}
	if x.owes() {
		t.Error("it would be written again")
	}
}

func TestNodeThatCannotAnswerDoesNotSayThatItDoes(t *testing.T) {
	x := newTester(t)
	x.deaf = "answer probes of other nodes: the port is taken"
	x.publish(t.Context())
	if got := x.record("node-1"); got != "none" {
		t.Errorf("published is %s", got)
	}
	x.tell()
	if d := cmp.Diff([]string{x.deaf}, x.troubles()); d != "" {
		t.Error(d)
	}
}

func TestOffloadThatCannotBeTurnedOffIsAProblem(t *testing.T) {
	x := newTester(t)
	x.publishes("node-2", api.NodePaths{})
	x.answer = func(probe.Target) probe.Answers {
		return probe.Answers{Plain: probe.Answered, Offloaded: probe.NoAnswer, Largest: 1450}
	}
	nettest.New(t).Do(func() { // where there is no such device
		x.round(t.Context())
		x.again()
	})
	x.tell()
	if got := x.troubles(); len(got) != 1 || !strings.Contains(got[0], "path node-1 to node-2 by VXLAN") ||
		!strings.Contains(got[0], "ethtool -K vxlan.calico tx-checksum-ip-generic off") || x.logged.Len() > 0 {
		t.Errorf("problems are %q, the log is %s", got, &x.logged)
	}
}

func TestNodeThatStopsAnsweringWithdrawsWhatItSaid(t *testing.T) {
	x := newTester(t)
	x.publishes("node-1", api.NodePaths{Tested: true})
	a := &Agent{store: x.c, node: "node-1", cfg: config.Node{}}
	for range 2 {
		if err := a.withdraw(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := x.record("node-1"); got != "none" {
			t.Errorf("published is %s", got)
		}
	}
}

func TestSeriesOfPathsAreBounded(t *testing.T) {
	p := &prober{}
	for i := range 3 * pathSeries {
		path := api.Path{Peer: fmt.Sprint(i), Family: "IPv4", Kind: api.PathVXLAN, State: api.PathOK}
		switch i % 3 {
		case 1:
			path.State = api.PathBad
		case 2:
			path.State = api.PathUnknown
		}
		p.paths = append(p.paths, path)
	}
	p.paths = append(p.paths, api.Path{Peer: "last", State: api.PathBad})
	n := p.numbers()
	if d := cmp.Diff(map[string]int{"ok": pathSeries, "bad": pathSeries + 1, "unknown": pathSeries}, n.Count); d != "" {
		t.Error(d)
	}
	if len(n.Known) != pathSeries || n.Known[0].OK || n.Known[pathSeries-1].OK {
		t.Errorf("%d series, the bad ones first", len(n.Known))
	}
	if (*prober)(nil).numbers() != nil || (*prober)(nil).troubles() != nil {
		t.Error("without probes there are numbers or problems")
	}
}
