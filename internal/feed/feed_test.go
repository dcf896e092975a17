package feed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/muslin-cni/muslin/internal/authority"
	"github.com/muslin-cni/muslin/internal/etcdtest"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// logged collects what a feed logs.
type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logged) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.buf.String(), text)
}

// rig is a running feed on an etcd of its own.
type rig struct {
	t    *testing.T
	etcd *etcdtest.Server
	raw  *clientv3.Client
	feed *Feed
	log  *logged
}

// newRig makes a feed that does not yet run.
func newRig(t *testing.T) *rig {
	t.Helper()
	return newRigOn(t, etcdtest.New(t))
}

func newRigOn(t *testing.T, s *etcdtest.Server) *rig {
	t.Helper()
	r := &rig{t: t, etcd: s, log: &logged{}}
	r.raw = r.etcd.Etcd()
	r.feed = New(r.etcd.Store(), slog.New(slog.NewTextHandler(r.log, nil)))
	return r
}

// run lets the feed follow until the test ends.
func (r *rig) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.feed.Run(ctx) }()
	r.t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			r.t.Errorf("Run returned %v, want the context's error", err)
		}
	})
}

func (r *rig) put(key, value string) int64 {
	r.t.Helper()
	res, err := r.raw.Put(r.t.Context(), key, value)
	if err != nil {
		r.t.Fatal(err)
	}
	return res.Header.Revision
}

func (r *rig) del(key string) int64 {
	r.t.Helper()
	res, err := r.raw.Delete(r.t.Context(), key)
	if err != nil {
		r.t.Fatal(err)
	}
	return res.Header.Revision
}

// at waits for a revision and returns the snapshot.
func (r *rig) at(rev int64) Snapshot {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 20*time.Second)
	defer cancel()
	if err := r.feed.WaitFor(ctx, rev); err != nil {
		r.t.Fatal(err)
	}
	s, ok := r.feed.Snapshot()
	if !ok || s.Rev < rev {
		r.t.Fatalf("after WaitFor(%d) the snapshot is at %d, complete: %t", rev, s.Rev, ok)
	}
	return s
}

// wantFresh checks that a snapshot equals a list of etcd's contents.
func (r *rig) wantFresh(s Snapshot) {
	r.t.Helper()
	kvs, rev, err := r.etcd.Store().ReadAll(r.t.Context(), 100, prefixes().ranges()...)
	if err != nil {
		r.t.Fatal(err)
	}
	w := edit(newState(""), prefixes())
	w.listed(rev, kvs)
	if diff := cmp.Diff(seen(snapshotOf(w.next)), seen(s)); diff != "" {
		r.t.Errorf("snapshot at %d differs from a list at %d (-want +got):\n%s", s.Rev, rev, diff)
	}
}

func nodeKey(i int) string { return api.NodeKey(nodeName(i)) }

func nodeName(i int) string { return fmt.Sprintf("n%04d", i) }

func nodeJSON(i int, label string) string {
	return fmt.Sprintf(`{"kind":"Node","metadata":{"name":%q,"labels":{"l":%q}},"spec":{}}`, nodeName(i), label)
}

func label(s Snapshot, i int) string {
	e := s.Node(nodeName(i))
	if !e.Exists() {
		return ""
	}
	return e.Value.Metadata.Labels["l"]
}

func TestFirstListIsPagedAndWhole(t *testing.T) {
	r := newRig(t)
	r.feed.page = 7
	var rev int64
	for i := range 1000 {
		rev = r.put(nodeKey(i), nodeJSON(i, "a"))
	}
	if _, ok := r.feed.Snapshot(); ok || r.feed.Connected() {
		t.Error("complete before anything was read")
	}
	r.run()
	s := r.at(rev)
	n := 0
	for key, e := range s.Nodes() {
		if key != nodeKey(n) || e.Key != key || e.Value.Metadata.Name != nodeName(n) {
			t.Fatalf("node %d is %s", n, key)
		}
		n++
	}
	if n != 1000 {
		t.Errorf("%d nodes, want 1000", n)
	}
	if stale, since := r.feed.Stale(); stale && since.IsZero() {
		t.Error("stale since never")
	}
}

// Whoever sees the first list must not take etcd for unreachable only because the watch is not open yet.
func TestFeedIsConnectedAsSoonAsItsListIsSeen(t *testing.T) {
	r := newRig(t)
	r.put(nodeKey(1), nodeJSON(1, "a"))
	if _, err := r.feed.catchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, ok := r.feed.Snapshot(); !ok || !r.feed.Connected() {
		t.Errorf("after the list: snapshot %t, connected %t", ok, r.feed.Connected())
	}
	r.feed.lost(t.Context(), store.ErrUnavailable)
	if r.feed.Connected() {
		t.Error("connected though the watch was lost")
	}
}

func TestChangesArriveAndAreNamed(t *testing.T) {
	r := newRig(t)
	r.run()
	first := r.at(r.put(nodeKey(1), nodeJSON(1, "a")))
	r.put(nodeKey(1), nodeJSON(1, "b"))
	r.put(api.HandleKey("h"), `{}`)
	s := r.at(r.put(nodeKey(2), nodeJSON(2, "a")))
	if label(first, 1) != "a" || label(s, 1) != "b" || label(s, 2) != "a" || label(first, 2) != "" {
		t.Errorf("first %q %q, then %q %q", label(first, 1), label(first, 2), label(s, 1), label(s, 2))
	}
	if d := s.Since(first); d.Kinds != Nodes || d.All || len(d.Keys) != 2 {
		t.Errorf("delta %+v, want two nodes", d)
	}
	select {
	case <-r.feed.Changed():
	default:
		t.Error("the change was not signalled")
	}
	s = r.at(r.del(nodeKey(1)))
	if s.Node(nodeName(1)).Exists() {
		t.Error("a deleted node is still there")
	}
	r.wantFresh(s)
}

func TestWaitForReachesRevisionsThatConcernOtherKeys(t *testing.T) {
	r := newRig(t)
	r.run()
	for i := range 5 {
		if s := r.at(r.put("/elsewhere", fmt.Sprint(i))); !s.Since(s).Empty() {
			t.Error("a delta without changes")
		}
	}
}

func TestWaitForEndsWithItsContext(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := r.feed.WaitFor(ctx, 0); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("before Run: error = %v, want the deadline and ErrUnavailable", err)
	}
	r.run()
	s := r.at(1)
	etcdtest.Until(t, "the feed is connected", r.feed.Connected)
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := r.feed.WaitFor(ctx, s.Rev+100); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, store.ErrUnavailable) {
		t.Errorf("for the future: error = %v, want the deadline only", err)
	}
}

func TestOwnCommitIsVisibleBeforeTheWatchAndStaysAfterIt(t *testing.T) {
	r := newRig(t)
	r.run()
	c := r.etcd.Store()
	for i := range 20 {
		var txn store.Txn
		txn.PutRaw(nodeKey(i), []byte(nodeJSON(i, "a")), 0)
		txn.PutRaw(api.HandleKey(fmt.Sprint(i)), []byte(`{}`), 0)
		done, err := c.Commit(t.Context(), &txn)
		if err != nil {
			t.Fatal(err)
		}
		r.feed.Commit(done)
		s, _ := r.feed.Snapshot()
		if e := s.Node(nodeName(i)); e.Rev != done[0].Rev || label(s, i) != "a" {
			t.Fatalf("right after the commit the node is at revision %d, want %d", e.Rev, done[0].Rev)
		}
		s = r.at(done[0].Rev)
		if e := s.Node(nodeName(i)); e.Rev != done[0].Rev {
			t.Fatalf("after the watch the node is at revision %d, want %d", e.Rev, done[0].Rev)
		}
	}
	s := r.at(r.del(nodeKey(3)))
	r.feed.Commit([]store.KV{{Key: nodeKey(3), Value: []byte(nodeJSON(3, "a")), Rev: s.Rev - 1}, {Key: nodeKey(4), Rev: s.Rev - 1}})
	s, _ = r.feed.Snapshot()
	r.wantFresh(s)
}

func TestOwnCommitIsVisibleWhileEtcdIsAway(t *testing.T) {
	r := newRig(t)
	r.run()
	s := r.at(r.put(nodeKey(1), nodeJSON(1, "a")))
	etcdtest.Until(t, "the feed is connected", r.feed.Connected)
	r.etcd.Stop()
	etcdtest.Until(t, "the loss is noticed", func() bool { return !r.feed.Connected() })
	// A commit whose answer came just before etcd went: the watch has not told it.
	r.feed.Commit([]store.KV{{Key: nodeKey(1), Rev: s.Rev + 1}, {Key: nodeKey(2), Value: []byte(nodeJSON(2, "b")), Rev: s.Rev + 1}})
	now, ok := r.feed.Snapshot()
	if !ok || now.Rev != s.Rev || label(now, 1) != "" || label(now, 2) != "b" {
		t.Errorf("revision %d: %q %q, want %d without the first and with the second", now.Rev, label(now, 1), label(now, 2), s.Rev)
	}
}

func TestBadValueIsNamedAndStopsNothing(t *testing.T) {
	r := newRig(t)
	r.put(nodeKey(1), nodeJSON(1, "a"))
	r.run()
	r.at(r.put(nodeKey(2), `{"kind":"Node","metadata":`))
	r.put(nodeKey(1), nodeJSON(2, "says that it is another"))
	s := r.at(r.put(nodeKey(3), nodeJSON(3, "a")))
	bad := s.Bad()
	if len(bad) != 2 || bad[0].Key != nodeKey(1) || bad[1].Key != nodeKey(2) || bad[0].Err == nil || bad[1].Rev == 0 {
		t.Errorf("bad: %v, want the nodes 1 and 2", bad)
	}
	if b, ok := s.BadAt(nodeKey(2)); !ok || b.Err == nil {
		t.Errorf("BadAt: %v, %t", b, ok)
	}
	if label(s, 1) != "" || label(s, 2) != "" || label(s, 3) != "a" {
		t.Errorf("labels %q %q %q, want only the third", label(s, 1), label(s, 2), label(s, 3))
	}
	s = r.at(r.put(nodeKey(2), nodeJSON(2, "mended")))
	if label(s, 2) != "mended" || len(s.Bad()) != 1 {
		t.Errorf("label %q with %v bad", label(s, 2), s.Bad())
	}
	r.wantFresh(s)
}

func TestAllThatPolicyDependsOnIsFollowed(t *testing.T) { followed(t, ForPolicy, 11) }

func TestAllThatBGPAloneDependsOnIsFollowed(t *testing.T) {
	followed(t, BGPConfigs|BGPPeers|BGPFilters, 3)
}

// followed puts an object of each of so many kinds, and takes them away.
func followed(t *testing.T, kinds Kinds, number int) {
	t.Helper()
	r := newRig(t)
	r.run()
	before, _ := r.feed.Snapshot()
	want := map[string]bool{}
	var rev int64
	for _, k := range api.Kinds() {
		if r.feed.route.kind(k.Prefix())&kinds == 0 {
			continue
		}
		o := k.New()
		o.Meta().Name = "x"
		if k.Namespaced {
			o.Meta().Namespace = "ns"
		}
		raw, err := api.EncodeObject(o, nil)
		if err != nil {
			t.Fatal(err)
		}
		want[api.KeyOf(o)] = true
		rev = r.put(api.KeyOf(o), string(raw))
	}
	s := r.at(rev)
	d := s.Since(before)
	got := map[string]bool{}
	for key, o := range s.Objects(kinds) {
		if got[key] = true; s.Object(key) != o || !slices.Contains(d.Keys, key) {
			t.Errorf("%s is not to be looked up, or is not among what changed", key)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" || len(want) != number {
		t.Errorf("%d kinds; objects (-want +got):\n%s", len(want), diff)
	}
	for key := range want {
		rev = r.del(key)
	}
	s = r.at(rev)
	for key := range s.Objects(kinds) {
		t.Errorf("%s is still there", key)
	}
	r.wantFresh(s)
}

func TestPolicyUnderItsOlderNameIsRead(t *testing.T) {
	r := newRig(t)
	r.run()
	kind := (*api.NetworkPolicy)(nil).KindOf()
	const stored = `{"kind":"NetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"default.web","namespace":"ns"},"spec":{"tier":%q}}`
	r.put(kind.Key("ns", "default.web"), fmt.Sprintf(stored, "default"))
	s := r.at(r.put(kind.Key("ns", "web"), fmt.Sprintf(stored, "other")))
	if o := s.Object(kind.Key("ns", "default.web")); o == nil || o.Meta().Name != "web" {
		t.Errorf("got %+v, want the policy web", o)
	}
	if bad := s.Bad(); len(bad) != 1 || bad[0].Key != kind.Key("ns", "web") {
		t.Errorf("bad: %v, want the one under another's name", bad)
	}
}

func TestBlockOfARangeThatNoneHasIsBad(t *testing.T) {
	r := newRig(t)
	r.run()
	var rev int64
	for path, cidr := range map[string]string{"0.0.0.0-0": "0.0.0.0/0", "10.0.0.0-8": "10.0.0.0/8", "10.0.0.1-26": "10.0.0.1/26", "10.0.0.0-26": "10.0.0.0/26", "10.0.16.0-20": "10.0.16.0/20"} {
		rev = r.put(api.BlocksPrefix(false)+path, fmt.Sprintf(`{"cidr":%q,"affinity":"host:node-2"}`, cidr))
	}
	var good []string
	for key := range r.at(rev).Blocks() {
		good = append(good, strings.TrimPrefix(key, api.BlocksPrefix(false)))
	}
	if diff := cmp.Diff([]string{"10.0.0.0-26", "10.0.16.0-20"}, good); diff != "" {
		t.Errorf("blocks (-want +got):\n%s", diff)
	}
}

func TestRestartOfEtcdIsSurvivedAndToldOnce(t *testing.T) {
	r := newRig(t)
	r.run()
	before := r.at(r.put(nodeKey(1), nodeJSON(1, "a")))
	etcdtest.Until(t, "the feed is connected", r.feed.Connected)
	for range 2 {
		r.etcd.Stop()
		etcdtest.Until(t, "the loss is told", func() bool { return r.log.count("etcd cannot be followed") > r.log.count("etcd is back") })
		if stale, since := r.feed.Stale(); !stale || since.IsZero() {
			t.Errorf("stale = %t since %v while etcd is away", stale, since)
		}
		if s, ok := r.feed.Snapshot(); !ok || label(s, 1) != "a" {
			t.Error("what was known is gone while etcd is away")
		}
		r.etcd.Start()
		etcdtest.Until(t, "the feed is connected again", r.feed.Connected)
	}
	s := r.at(r.put(nodeKey(2), nodeJSON(2, "b")))
	if d := s.Since(before); d.All || len(d.Keys) != 1 {
		t.Errorf("delta over the restarts: %+v, want the one new node", d)
	}
	r.wantFresh(s)
	if lost, back := r.log.count("etcd cannot be followed"), r.log.count("etcd is back"); lost != 2 || back != 2 {
		t.Errorf("told %d losses and %d recoveries, want 2 and 2", lost, back)
	}
}

func TestEachKindOfLossIsToldOnce(t *testing.T) {
	s, other := etcdtest.NewTLS(t), etcdtest.NewTLS(t)
	cfg := s.Config()
	client, err := store.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	r := newRigOn(t, s)
	r.feed = New(client, slog.New(slog.NewTextHandler(r.log, nil)))
	r.run()
	etcdtest.Until(t, "the feed is connected", r.feed.Connected)
	r.etcd.Stop()
	etcdtest.Until(t, "the loss is told", func() bool { return r.log.count("etcd cannot be followed") == 1 })
	dir := filepath.Dir(cfg.TLS.CAFile)
	pair, err := other.CA().Client("stranger", authority.Forever())
	if err == nil {
		err = other.CA().Write(dir, pair)
	}
	if err != nil {
		t.Fatal(err)
	}
	r.etcd.Start()
	etcdtest.Until(t, "the wrong CA is told", func() bool { return r.log.count("unknown authority") == 1 })
	if pair, err = s.CA().Client("renewed", authority.Forever()); err == nil {
		err = s.CA().Write(dir, pair)
	}
	if err != nil {
		t.Fatal(err)
	}
	etcdtest.Until(t, "the feed is connected again", r.feed.Connected)
	if lost, back := r.log.count("etcd cannot be followed"), r.log.count("etcd is back"); lost != 2 || back != 1 {
		t.Errorf("told %d losses and %d recoveries, want 2 and 1", lost, back)
	}
}

// TestCompactionWhileAwayBringsAListAndOnlyRealChanges lets history go on and be forgotten while the feed is not there.
func TestCompactionWhileAwayBringsAListAndOnlyRealChanges(t *testing.T) {
	r := newRig(t)
	for i := range 10 {
		r.put(nodeKey(i), nodeJSON(i, "a"))
	}
	before := r.follow(func() {
		r.put(nodeKey(1), nodeJSON(1, "b"))
		r.del(nodeKey(2))
		r.put(nodeKey(10), nodeJSON(10, "new"))
		rev := r.put("/elsewhere", "")
		if _, err := r.raw.Compact(t.Context(), rev, clientv3.WithCompactPhysical()); err != nil {
			t.Fatal(err)
		}
	})
	least := 10
	stop := make(chan struct{})
	watching := make(chan struct{})
	go func() { // never an empty world
		defer close(watching)
		for {
			select {
			case <-stop:
				return
			default:
			}
			n, s := 0, mustSnapshot(r.feed)
			for range s.Nodes() {
				n++
			}
			least = min(least, n)
		}
	}()
	r.run()
	s := r.at(before.Rev + 4)
	close(stop)
	<-watching
	d := s.Since(before)
	if d.All || d.Kinds != Nodes || len(d.Keys) != 3 {
		t.Errorf("delta %+v, want the three nodes that changed", d)
	}
	if least < 10 {
		t.Errorf("a snapshot held only %d nodes", least)
	}
	if r.log.count("forgot the history") != 1 {
		t.Error("the compaction was not told once")
	}
	r.wantFresh(s)
}

func mustSnapshot(f *Feed) Snapshot {
	s, _ := f.Snapshot()
	return s
}

// follow runs the feed until it is connected, ends it, lets something happen, and returns the snapshot from before that.
func (r *rig) follow(then func()) Snapshot {
	r.t.Helper()
	ctx, cancel := context.WithCancel(r.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = r.feed.Run(ctx)
	}()
	etcdtest.Until(r.t, "the feed is connected", r.feed.Connected)
	cancel()
	<-done
	s, _ := r.feed.Snapshot()
	then()
	return s
}

func TestEtcdWithAnotherHistoryReplacesWhatWasKnown(t *testing.T) {
	r := newRig(t)
	for i := range 10 {
		r.put(nodeKey(i), nodeJSON(i, "a"))
	}
	before := r.follow(func() {})
	other := newRig(t)
	rev := other.put(nodeKey(1), nodeJSON(1, "restored"))
	other.feed = r.feed
	r.feed.client = other.etcd.Store()
	other.run()
	etcdtest.Until(t, "the feed has noticed", func() bool { return mustSnapshot(r.feed).Rev < before.Rev })
	s := other.at(rev)
	if d := s.Since(before); !d.All {
		t.Errorf("delta %+v, want everything", d)
	}
	other.wantFresh(s)
}

func TestNothingIsLeftRunning(t *testing.T) {
	s := etcdtest.New(t)
	quiet := goleak.IgnoreCurrent()
	c, err := store.New(store.Config{Endpoints: []string{s.Endpoint()}})
	if err != nil {
		t.Fatal(err)
	}
	f := New(c, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = f.Run(ctx)
	}()
	etcdtest.Until(t, "the feed is connected", f.Connected)
	if err := f.WaitFor(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	cancel()
	<-done
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	s.Stop() // whose own goroutines for our connection would be found otherwise
	if err := goleak.Find(quiet); err != nil {
		t.Error(err)
	}
}
