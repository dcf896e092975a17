package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/kube"
	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/internal/peering"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// secrets is a Kubernetes that knows Secrets, and a service if it has an address.
type secrets struct {
	mu       sync.Mutex
	by       map[string]string
	services []netip.Prefix
	founded  kube.Knowledge
	changed  chan struct{}
}

func (s *secrets) Founded() kube.Knowledge {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.founded
}

func (s *secrets) Secret(name, key string) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.by[name+"/"+key]
	return v, ok
}

func (s *secrets) Advertised([]*api.BGPConfiguration) []netip.Prefix {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.services
}

func (s *secrets) Changed() <-chan struct{} { return s.changed }

// spoke is a speaker on loopback, with a datastore of its own.
type spoke struct {
	*speaker
	t    *testing.T
	feed *feed.Feed
	rev  int64
}

// newSpoke makes the speaker of a node: node-1 is 127.0.0.1, and so on.
func newSpoke(t *testing.T, node string) *spoke {
	log := slog.New(slog.DiscardHandler)
	s := &spoke{t: t, feed: feed.New(nil, log), speaker: newSpeaker(node, "", nil, func() kernel.Host {
		return kernel.Host{Addrs: []kernel.HostAddr{{Dev: "lo", Addr: netip.MustParsePrefix("127.0.0.1/8")}}}
	}, log)}
	s.ways = func(context.Context, []netip.Addr) (map[netip.Addr]kernel.Hop, error) {
		return map[netip.Addr]kernel.Hop{}, nil
	}
	return s
}

func (s *spoke) put(key, value string) {
	s.rev++
	kv := store.KV{Key: key, Rev: s.rev}
	if value != "" {
		kv.Value = []byte(value)
	}
	s.feed.Commit([]store.KV{kv})
}

func (s *spoke) node(n int) {
	s.put(fmt.Sprintf("%snodes/node-%d", api.ResourcesRoot, n), fmt.Sprintf(
		`{"kind":"Node","apiVersion":"projectcalico.org/v3","metadata":{"name":"node-%d"},"spec":{"bgp":{"ipv4Address":"127.0.0.%[1]d/8"}}}`, n))
}

// config makes the nodes listen on their own addresses, on a port that is free.
func (s *spoke) config(port int, more string) {
	s.put(api.ResourcesRoot+"bgpconfigurations/default", fmt.Sprintf(
		`{"kind":"BGPConfiguration","apiVersion":"projectcalico.org/v3","metadata":{"name":"default"},"spec":{"bindMode":"NodeIP","listenPort":%d%s}}`, port, more))
}

func (s *spoke) block(node, cidr string) {
	s.put(api.AffinityKey(node, netip.MustParsePrefix(cidr)), `{"state":"confirmed","deleted":false}`)
}

// now gives the speaker what the datastore holds, as the loop does.
func (s *spoke) now() {
	snap, _ := s.feed.Snapshot()
	s.consider(given{snap: snap})
}

// becomes waits until what the plan hears is so.
func (s *spoke) becomes(is func() error) {
	s.t.Helper()
	deadline := time.After(nettest.Patience(time.Minute))
	for {
		err := is()
		if err == nil {
			return
		}
		select {
		case <-s.changed():
		case <-time.After(100 * time.Millisecond):
		case <-deadline:
			s.t.Fatal(err)
		}
	}
}

// learns waits for the routes to these prefixes, and no others.
func (s *spoke) learns(prefixes ...string) {
	s.t.Helper()
	s.becomes(func() error {
		var got []string
		for _, r := range s.heard().Routes {
			got = append(got, r.Dst.String())
		}
		if d := cmp.Diff(prefixes, got); d != "" {
			return fmt.Errorf("learned (-want +got):\n%s", d)
		}
		return nil
	})
}

// start runs the speaker. The function that it returns ends it.
func (s *spoke) start(found map[kernel.RouteKey]kernel.Route) (stop func()) {
	ctx, cancel := context.WithCancel(s.t.Context())
	var g errgroup.Group
	s.found(found, kernel.Ownership{})
	g.Go(func() error { return s.run(ctx) })
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := g.Wait(); err != nil {
				s.t.Error(err)
			}
		})
	}
	s.t.Cleanup(stop)
	return stop
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// mesh are the speakers of two nodes with one block each. GoBGP has package variables to which both write the same: the race detector minds.
func mesh(t *testing.T) (one, two *spoke) {
	port := freePort(t)
	one, two = newSpoke(t, "node-1"), newSpoke(t, "node-2")
	for _, s := range []*spoke{one, two} {
		s.config(port, "")
		s.node(1)
		s.node(2)
		s.block("node-1", "10.244.1.0/26")
		s.block("node-2", "10.244.2.0/26")
		s.put(api.ResourcesRoot+"ippools/p", `{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{"name":"p"},"spec":{"cidr":"10.244.0.0/16"}}`)
	}
	return one, two
}

func TestSpeakerHoldsWhatItFoundUntilItsPeersHaveToldEverything(t *testing.T) {
	t.Parallel()
	one, two := mesh(t)
	dev := kernel.Dev{Name: "eth0", Index: 2}
	learned := kernel.RouteKey{Dst: netip.MustParsePrefix("192.0.2.0/24"), Metric: 1024}
	one.now()
	one.start(map[kernel.RouteKey]kernel.Route{
		learned: kernel.Route{Protocol: 80}.Via(kernel.Hop{Gateway: netip.MustParseAddr("10.0.0.1"), Dev: dev}),
		{Dst: netip.MustParsePrefix("10.244.2.0/26")}:                 {Gateway: netip.MustParseAddr("10.0.0.1"), Dev: dev, Protocol: 80}, // of etcd
		{Dst: netip.MustParsePrefix("10.244.1.7/32"), Metric: 1024}:   {Scope: kernel.LinkScope, Dev: kernel.Dev{Name: "cali1"}, Protocol: 80},
		{Dst: netip.MustParsePrefix("198.51.100.0/24"), Metric: 1024}: {Gateway: netip.MustParseAddr("10.0.0.1"), Dev: dev, Protocol: 12},
	})
	if d := cmp.Diff([]kernel.RouteKey{learned}, one.heard().Held, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" || !one.heard().Settling {
		t.Errorf("held at first (-want +got):\n%s", d)
	}
	one.becomes(func() error {
		if all, err := one.status(); err != nil || len(all) != 1 {
			return fmt.Errorf("sessions %v, %w", all, err)
		}
		return nil
	})
	if l := one.heard(); !l.Settling || len(l.Held) != 1 {
		t.Errorf("a peer is away, and this is what the plan hears: %+v", l)
	}
	two.now()
	two.start(nil)
	one.learns("10.244.2.0/26")
	two.learns("10.244.1.0/26")
	one.becomes(func() error {
		if l := one.heard(); l.Settling || len(l.Held) > 0 {
			return fmt.Errorf("the peer has told everything, and this is what the plan hears: %+v", l)
		}
		return nil
	})
}

func TestPeerWithTooManyRoutesIsAProblem(t *testing.T) {
	t.Parallel()
	one, two := mesh(t)
	one.most = 1
	one.now()
	one.start(nil)
	two.now()
	two.start(nil)
	one.learns("10.244.2.0/26")
	two.block("node-2", "10.244.2.64/26")
	two.now()
	one.learns()
	one.becomes(func() error {
		text, lacking := strings.Join(one.troubles(), "\n"), one.lacking()
		for _, want := range []string{"127.0.0.2", "more than 1 routes", "MUSLIN_BGP_MAX_ROUTES"} {
			if !strings.Contains(text, want) || !strings.Contains(lacking, want) {
				return fmt.Errorf("%q is not said: problems %q, sessions %q", want, text, lacking)
			}
		}
		return nil
	})
}

func TestSpeakerGivesUpWhatItFoundIfPeersNeverAnswer(t *testing.T) {
	t.Parallel()
	s, _ := mesh(t)
	held := kernel.RouteKey{Dst: netip.MustParsePrefix("192.0.2.0/24"), Metric: 1024}
	s.now()
	s.found(map[kernel.RouteKey]kernel.Route{held: {Gateway: netip.MustParseAddr("10.0.0.1"), Protocol: 80}}, kernel.Ownership{})
	defer func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	}()
	for _, waited := range []bool{false, true} {
		if waited {
			s.said.until = time.Now()
		}
		if !s.once(t.Context()) {
			t.Fatalf("it fails: %s", s.failing)
		}
		if l := s.heard(); l.Settling == waited || len(l.Held) == 0 != waited {
			t.Errorf("waited long enough: %t; the plan hears %+v", waited, l)
		}
	}
}

func TestSpeakerThatCannotStartKeepsWhatItFound(t *testing.T) {
	t.Parallel()
	s := newSpoke(t, "node-1")
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	s.config(busy.Addr().(*net.TCPAddr).Port, "")
	s.node(1)
	s.now()
	held := kernel.RouteKey{Dst: netip.MustParsePrefix("192.0.2.0/24"), Metric: 1024}
	s.found(map[kernel.RouteKey]kernel.Route{held: {Gateway: netip.MustParseAddr("10.0.0.1"), Protocol: 80}}, kernel.Ownership{})
	if s.once(t.Context()) || !strings.Contains(s.failing, "address already in use") {
		t.Errorf("another program has the port, and it says %q", s.failing)
	}
	if l := s.heard(); !l.Settling || len(l.Held) != 1 {
		t.Errorf("the plan hears %+v", l)
	}
}

func TestSpeakerSaysWhatTheDatastoreSays(t *testing.T) {
	t.Parallel()
	one, two := mesh(t)
	for _, s := range []*spoke{one, two} {
		s.now()
		s.start(nil)
	}
	one.learns("10.244.2.0/26")

	t.Log("a new block")
	two.block("node-2", "10.244.9.0/26")
	two.now()
	one.learns("10.244.2.0/26", "10.244.9.0/26")

	t.Log("a node that is deleted takes its routes along at once")
	two.put(api.ResourcesRoot+"nodes/node-2", "")
	two.now()
	one.learns()
	if why := strings.Join(two.troubles(), " "); !strings.Contains(why, "Node(node-2)") {
		t.Errorf("problems %q", why)
	}
	two.node(2)
	two.now()
	one.learns("10.244.2.0/26", "10.244.9.0/26")
}

func TestSpeakerThatEndsLeavesItsRoutesWithThePeers(t *testing.T) {
	t.Parallel()
	one, two := mesh(t)
	one.now()
	one.start(nil)
	two.now()
	stop := two.start(nil)
	one.learns("10.244.2.0/26")
	stop()
	one.becomes(func() error {
		if all, err := one.status(); err != nil || len(all) != 1 || all[0].Established() || !all[0].Restarting {
			return fmt.Errorf("sessions %+v, %w", all, err)
		}
		return nil
	})
	if got := one.heard().Routes; len(got) != 1 || got[0].Gateways[0] != netip.MustParseAddr("127.0.0.2") {
		t.Errorf("learned %v", got)
	}
	if why := one.lacking(); !strings.HasPrefix(why, "127.0.0.2 (node-to-node mesh): ") {
		t.Errorf("the condition says %q", why)
	}
}

func TestSpeakerGetsPasswordsAndServicesFromTheCluster(t *testing.T) {
	t.Parallel()
	one, two := mesh(t)
	const password = `,"nodeMeshPassword":{"secretKeyRef":{"name":"bgp","key":"mesh"}}`
	port := freePort(t)
	kube := &secrets{by: map[string]string{}, changed: make(chan struct{}, 1)}
	for _, s := range []*spoke{one, two} {
		s.config(port, password)
		s.now()
	}
	one.kube = kube
	two.kube = &secrets{by: map[string]string{"bgp/mesh": "s3cret"}, services: []netip.Prefix{netip.MustParsePrefix("10.96.0.7/32")}}
	one.start(nil)
	two.start(nil)
	one.becomes(func() error {
		if why := strings.Join(one.troubles(), " "); !strings.Contains(why, "key mesh of Secret bgp") {
			return fmt.Errorf("problems %q", why)
		}
		return nil
	})
	kube.mu.Lock()
	kube.by["bgp/mesh"] = "s3cret"
	kube.mu.Unlock()
	kube.changed <- struct{}{}
	one.learns("10.96.0.7/32", "10.244.2.0/26")
	if len(one.troubles()) > 0 {
		t.Errorf("problems %q", one.troubles())
	}
}

func TestSpeakerSaysNothingUntilKubernetesHasAnsweredOrIsGivenUp(t *testing.T) {
	t.Parallel()
	service := netip.MustParsePrefix("10.96.0.7/32")
	for what, answer := range map[string]kube.Knowledge{"it answers": kube.Known, "it is given up": kube.Unknown} {
		t.Run(what, func(t *testing.T) {
			s, _ := mesh(t)
			held := kernel.RouteKey{Dst: netip.MustParsePrefix("192.0.2.0/24"), Metric: 1024}
			s.found(map[kernel.RouteKey]kernel.Route{held: {Gateway: netip.MustParseAddr("10.0.0.1"), Protocol: 80}}, kernel.Ownership{})
			defer func() {
				if err := s.close(); err != nil {
					t.Error(err)
				}
			}()
			k := &secrets{founded: kube.Coming}
			s.speaker.kube = k
			s.now()
			for range 2 {
				if !s.once(t.Context()) {
					t.Fatalf("it fails: %s", s.failing)
				}
			}
			if all, err := s.status(); err != nil || len(all) != 0 || s.said.asked || !s.heard().Settling || len(s.heard().Held) != 1 || s.patience() == nil {
				t.Errorf("before Kubernetes answers there are sessions %v, %v, and the plan hears %+v", all, err, s.heard())
			}
			k.mu.Lock()
			k.founded, k.services = answer, []netip.Prefix{service}
			k.mu.Unlock()
			if !s.once(t.Context()) {
				t.Fatalf("it fails: %s", s.failing)
			}
			all, err := s.status()
			if err != nil || len(all) != 1 || !slices.ContainsFunc(s.said.result.Routes, func(r peering.Route) bool { return r.Prefix == service }) {
				t.Errorf("sessions %v, %v, and routes %v", all, err, s.said.result.Routes)
			}
			k.mu.Lock()
			k.founded = kube.Coming // something more is asked for later: that stops nothing
			k.mu.Unlock()
			if !s.once(t.Context()) || s.said.early {
				t.Error("it waits again")
			}
		})
	}
}

func TestNodeThatLeavesBGPHasItsRoutesDropped(t *testing.T) {
	t.Parallel()
	one, two := mesh(t)
	one.now()
	one.start(nil)
	two.now()
	two.mark = filepath.Join(t.TempDir(), "spoken")
	stop := two.start(nil)
	one.learns("10.244.2.0/26")
	if _, err := os.Stat(two.mark); err != nil {
		t.Error(err)
	}
	stop()
	one.becomes(func() error {
		if all, err := one.status(); err != nil || len(all) != 1 || !all[0].Restarting {
			return fmt.Errorf("sessions %+v, %w", all, err)
		}
		return nil
	})
	one.learns("10.244.2.0/26") // kept for the next agent
	snap, _ := two.feed.Snapshot()
	told, of, err := two.leave(t.Context(), snap)
	if told != 1 || of != 1 || err != nil {
		t.Errorf("told %d of %d, %v", told, of, err)
	}
	one.learns()
}

func TestSpeakerIsAskedToLookOnlyAtWhatConcernsIt(t *testing.T) {
	s := newSpoke(t, "node-1")
	asked := func() bool {
		select {
		case <-s.look:
			return true
		default:
			return false
		}
	}
	steps := []struct {
		what string
		do   func()
		want bool
	}{
		{"at first", func() {}, true},
		{"nothing new", func() {}, false},
		{"a profile", func() {
			s.put(api.ResourcesRoot+"profiles/x", `{"kind":"Profile","apiVersion":"projectcalico.org/v3","metadata":{"name":"x"}}`)
		}, false},
		{"a node", func() { s.node(2) }, true},
		{"a block", func() { s.block("node-1", "10.244.1.0/26") }, true},
		{"settings", func() { s.config(179, "") }, true},
	}
	for _, step := range steps {
		step.do()
		s.now()
		if got := asked(); got != step.want {
			t.Errorf("%s: asked to look: %t", step.what, got)
		}
	}
}

func TestModelHasConfirmedBlocksAndEndpointsThatMatter(t *testing.T) {
	s := newSpoke(t, "node-1")
	s.block("node-1", "10.244.1.0/26")
	s.block("node-2", "10.244.2.0/26")
	s.put(api.AffinityKey("node-1", netip.MustParsePrefix("10.244.3.0/26")), `{"state":"pending","deleted":false}`)
	for name, addr := range map[string]string{"in": "10.244.1.5", "out": "10.244.2.5"} {
		spec := api.WorkloadEndpointSpec{Orchestrator: "k8s", Node: "node-1", Pod: name, Endpoint: "eth0"}
		key := (&api.WorkloadEndpoint{}).KindOf().Key("default", api.WorkloadEndpointName(spec))
		s.put(key, fmt.Sprintf(`{"kind":"WorkloadEndpoint","apiVersion":"projectcalico.org/v3","metadata":{"name":%q,"namespace":"default"},"spec":{"orchestrator":"k8s",
			"node":"node-1","pod":%q,"endpoint":"eth0","containerID":"c","interfaceName":"cali%s","ipNetworks":["%s/32"]}}`, api.WorkloadEndpointName(spec), name, name, addr))
	}
	snap, _ := s.feed.Snapshot()
	m := s.model(snap)
	if !slices.Equal(m.Blocks, []netip.Prefix{netip.MustParsePrefix("10.244.1.0/26")}) {
		t.Errorf("blocks %v", m.Blocks)
	}
	if len(m.Endpoints) != 1 || m.Endpoints[0].Spec.Pod != "out" {
		t.Errorf("endpoints %v", m.Endpoints)
	}
	if !m.Equal(s.model(snap)) || m.Equal(peering.Model{}) {
		t.Error("a model is not like itself, or like none")
	}
}

func TestModelKeepsWhatCannotBeReadAnyMore(t *testing.T) {
	s := newSpoke(t, "node-1")
	s.config(179, `,"asNumber":65001`)
	s.node(1)
	s.node(2)
	snap, _ := s.feed.Snapshot()
	s.said.model = s.model(snap)
	s.put(api.ResourcesRoot+"bgpconfigurations/default", `{"kind":`)
	s.put(api.ResourcesRoot+"nodes/node-1", `{"kind":`)
	s.put(api.ResourcesRoot+"bgppeers/new", `{"kind":`)
	s.put(api.ResourcesRoot+"nodes/node-2", "")
	snap, _ = s.feed.Snapshot()
	m := s.model(snap)
	if len(m.Configs) != 1 || m.Configs[0] != s.said.model.Configs[0] || len(m.Nodes) != 1 || m.Nodes[0] != s.said.model.Nodes[0] || len(m.Peers) != 0 {
		t.Errorf("configurations %v, nodes %v, peers %v", m.Configs, m.Nodes, m.Peers)
	}
}

func TestNodeWithoutBGPHasNothingToSay(t *testing.T) {
	var s *speaker
	s.consider(given{})
	s.found(nil, kernel.Ownership{})
	all, err := s.status()
	if s.heard() != nil || s.changed() != nil || s.troubles() != nil || s.numbers() != nil || s.lacking() != "" || all != nil || err != nil {
		t.Error("it says something")
	}
}
