package register_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/etcdtest"
	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/internal/register"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
	"github.com/muslin-cni/muslin/pkg/store"
)

// queue is a handler of node-1 whose first transaction is held until the test has lined up what shall form the next.
type queue struct {
	*world
	h    *register.Handler
	feed *feed.Feed

	gather   func() // before each transaction
	mu       sync.Mutex
	requests []string // that the handler's client has made since clear; guarded by mu
}

// newQueue makes a handler that knows what etcd holds now. If deaf, it learns nothing more but by its own transactions.
func newQueue(w *world, deaf bool) *queue {
	w.t.Helper()
	q := &queue{world: w, gather: func() {}}
	cfg := w.etcd.Config()
	cfg.Trace = func(r store.Request) {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.requests = append(q.requests, r.What)
	}
	client, err := store.New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = client.Close() })
	if q.feed = w.follow(); deaf {
		q.feed = w.deafFeed()
	}
	q.h = register.New(register.Config{
		Client: client, Source: register.FromFeed(q.feed), Node: "node-1", Committed: q.feed.Commit, Refused: q.feed.Commit,
		Gather: func(context.Context, time.Time) { q.gather() },
	})
	return q
}

// deafFeed knows what etcd holds now, and what it is told.
func (w *world) deafFeed() *feed.Feed {
	w.t.Helper()
	f := feed.New(w.c, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(w.ctx())
	var done sync.WaitGroup
	done.Go(func() { _ = f.Run(ctx) }) // ends with ctx, and with its error
	err := f.WaitFor(ctx, w.revision())
	cancel()
	done.Wait()
	if err != nil {
		w.t.Fatal(err)
	}
	return f
}

// together carries out so many commands in such a way that all are waiting before the first of them is planned.
func (q *queue) together(n int, do func(i int) error) {
	q.t.Helper()
	held, let := make(chan struct{}), make(chan struct{})
	var first sync.WaitGroup
	first.Go(func() {
		if err := q.h.Hold(q.ctx(), func() { close(held); <-let }); err != nil {
			q.t.Errorf("hold the turn: %v", err)
		}
	})
	<-held
	q.clear()
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			if err := do(i); err != nil {
				q.t.Errorf("number %d: %v", i, err)
			}
		})
		etcdtest.Until(q.t, "the command waits", func() bool { return q.h.Waiting() == i+1 })
	}
	close(let)
	first.Wait()
	all.Wait()
}

func (q *queue) clear() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.requests = nil
}

// asked is how many transactions were asked for, and how many reads, alone or before others, since together began.
func (q *queue) asked() (transactions, reads int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, what := range q.requests {
		switch {
		case strings.Contains(what, "put ") || strings.Contains(what, "delete "):
			transactions++
		case strings.Contains(what, "get "):
			reads++
		}
	}
	return transactions, reads
}

// expect compares what etcd was asked for since together began.
func (q *queue) expect(transactions, reads int) {
	q.t.Helper()
	if t, r := q.asked(); t != transactions || r != reads {
		q.t.Errorf("%d transactions and %d reads, want %d and %d:\n%s", t, r, transactions, reads, strings.Join(q.requests, "\n"))
	}
}

// steady is a world in which node-1 has a block.
func steady(t *testing.T, poolCIDR string, blockSize int) *world {
	w := newWorld(t)
	w.node("node-1", nil)
	w.pool("pool", poolCIDR, blockSize)
	w.add(w.handler("node-1"), request("first"))
	return w
}

func (q *queue) addContainer(i int) error {
	_, err := q.h.Add(q.ctx(), request(fmt.Sprint("c", i)))
	return err
}

func TestArrivalsFormTheNextTransaction(t *testing.T) {
	q := newQueue(steady(t, "10.0.0.0/24", 26), false)
	q.together(16, q.addContainer)
	q.expect(1, 0)
	q.together(16, func(i int) error { return q.h.Del(q.ctx(), request(fmt.Sprint("c", i))) })
	q.expect(1, 0)
	if n := q.consistent(); n != 1 {
		t.Errorf("%d addresses, want that of the first container", n)
	}
}

// TestWhoComesWhileItGathersComesAlong has the first of the commands gather until all wait.
func TestWhoComesWhileItGathersComesAlong(t *testing.T) {
	q := newQueue(steady(t, "10.0.0.0/24", 26), false)
	late := time.Now().Add(20 * time.Second)
	q.gather = func() {
		for q.h.Waiting() < 16 && time.Now().Before(late) {
			time.Sleep(time.Millisecond)
		}
	}
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			if err := q.addContainer(i); err != nil {
				t.Errorf("number %d: %v", i, err)
			}
		})
	}
	all.Wait()
	q.expect(1, 0)
}

func TestTransactionHasThirtyMembersAtMost(t *testing.T) {
	q := newQueue(steady(t, "10.0.0.0/24", 26), false)
	q.together(31, q.addContainer)
	q.expect(2, 0)
	sizes := map[int64]int{}
	for _, e := range q.endpoints() {
		sizes[e.Rev]++
	}
	if got := slices.Sorted(maps.Values(sizes)); !slices.Equal(got, []int{1, 1, 30}) {
		t.Errorf("endpoints by transaction: %v, want the first container's, 30 and 1", got)
	}
}

// TestTransactionComparesAHundredKeysAtMost has jobs that claim a block of a single address for each of both families: the transaction of 30 would
// compare far more keys.
func TestTransactionComparesAHundredKeysAtMost(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", nil)
	w.pool("four", "10.0.0.0/25", 32)
	w.pool("six", "fd00:10::/121", 128)
	w.putRaw(api.IPAMConfigKey, `{"strict_affinity":true,"auto_allocate_blocks":true,"maxBlocksPerHost":1000}`)
	q := newQueue(w, false)
	q.together(30, func(i int) error { _, err := q.h.Add(q.ctx(), dualStack(fmt.Sprint("c", i))); return err })
	for _, what := range q.requests {
		if n := strings.Count(what, "if "); n > 100 {
			t.Errorf("a transaction compares %d keys", n)
		}
		if n := strings.Count(what, "put "); n > 100 {
			t.Errorf("a transaction writes %d keys", n)
		}
	}
	if transactions, _ := q.asked(); transactions > 5 {
		t.Errorf("%d transactions for 30 containers of 6 keys each", transactions)
	}
	if n := q.consistent(); n != 60 {
		t.Errorf("%d addresses, want 60", n)
	}
}

// TestLargeTransactionsHaveFewerMembers has a block that takes up most of what a transaction may write, and pods with long labels.
func TestLargeTransactionsHaveFewerMembers(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", nil)
	w.pool("pool", "10.0.0.0/20", 20)
	cidr := netip.MustParsePrefix("10.0.0.0/20")
	b, err := block.New(cidr, "node-1", time.Unix(1700000000, 0))
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("x", 1000)
	for i := range 850 {
		_, b = block.Assign(b, 1, block.Owner{HandleID: api.PodHandle("other", fmt.Sprint(long, i))})
	}
	put(w, api.BlockKey(cidr), b)
	put(w, api.AffinityKey("node-1", cidr), &api.Affinity{State: api.AffinityConfirmed})
	q := newQueue(w, false)
	q.together(30, func(i int) error {
		r := podRequest(fmt.Sprint("c", i), fmt.Sprint("web-", i))
		r.Labels = attach.Strings{"much": strings.Repeat("y", 10_000)}
		_, err := q.h.Add(q.ctx(), r)
		return err
	})
	if n := len(q.endpoints()); n != 30 {
		t.Errorf("%d endpoints, want 30", n)
	}
	transactions, _ := q.asked()
	if transactions < 2 || transactions > 15 {
		t.Errorf("%d transactions, want a few: one would be too large, and one each is not needed", transactions)
	}
	for _, what := range q.requests {
		if size := written(t, what); size > 1<<20 {
			t.Errorf("a transaction writes %d bytes", size)
		}
	}
}

// written is how many bytes a request writes, as the client describes it.
func written(t *testing.T, what string) (size int) {
	t.Helper()
	for _, part := range strings.Split(what, "(")[1:] {
		n := 0
		if _, err := fmt.Sscanf(part, "%d bytes", &n); err != nil {
			t.Fatal(err)
		}
		size += n
	}
	return size
}

// TestOneConflictingMemberDelaysTheOthersByOneTransaction: somebody else has allocated for one of the containers, of which this handler cannot know.
func TestOneConflictingMemberDelaysTheOthersByOneTransaction(t *testing.T) {
	w := steady(t, "10.0.0.0/24", 26)
	had, err := w.handler("node-1").Allocate(w.ctx(), request("c7"))
	if err != nil {
		t.Fatal(err)
	}
	q := newQueue(w, false)
	rev := q.revision()
	q.together(16, q.addContainer)
	q.expect(3, 0) // refused, the fifteen, and the one that writes its endpoint
	for _, e := range q.endpoints() {
		want := rev + 1
		switch e.Value.Spec.ContainerID {
		case "first":
			continue
		case "c7":
			want = rev + 2
			if got := e.Value.Spec.IPNetworks; len(got) != 1 || got[0].Addr() != had[0].Addr() {
				t.Errorf("c7 was given %v, and had %v", got, had)
			}
		}
		if e.Rev != want {
			t.Errorf("%s was written at revision %d, want %d", e.Key, e.Rev, want)
		}
	}
	if n := q.consistent(); n != 17 {
		t.Errorf("%d addresses, want 17", n)
	}
}

// TestMembersOfAChangedBlockStayTogether: what the refused transaction has shown of the block is enough to plan all of them again.
func TestMembersOfAChangedBlockStayTogether(t *testing.T) {
	q := newQueue(steady(t, "10.0.0.0/24", 26), true)
	q.add(q.handler("node-1"), request("other"))
	q.together(16, q.addContainer)
	q.expect(2, 0)
	if n := q.consistent(); n != 18 {
		t.Errorf("%d addresses, want 18", n)
	}
}

// TestMembersOfOtherBlocksStay: two pools, and one of the blocks has changed.
func TestMembersOfOtherBlocksStay(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", nil)
	w.pool("blue", "10.0.0.0/24", 26)
	w.pool("red", "10.1.0.0/24", 26)
	of := func(pool, container string) attach.Request {
		r := request(container)
		r.IPv4Pools = []string{pool}
		return r
	}
	for _, pool := range []string{"blue", "red"} {
		w.add(w.handler("node-1"), of(pool, "first-"+pool))
	}
	q := newQueue(w, true)
	q.add(q.handler("node-1"), of("red", "other"))
	rev := q.revision()
	q.together(16, func(i int) error {
		pool := "blue"
		if i%4 == 0 {
			pool = "red"
		}
		_, err := q.h.Add(q.ctx(), of(pool, fmt.Sprint(pool, i)))
		return err
	})
	if _, reads := q.asked(); reads != 0 {
		t.Errorf("%d reads, want none: all that changed was shown", reads)
	}
	for _, e := range q.endpoints() {
		id := e.Value.Spec.ContainerID
		if strings.HasPrefix(id, "blue") && e.Rev != rev+1 {
			t.Errorf("%s, whose block had not changed, was written at revision %d, want %d", id, e.Rev, rev+1)
		}
	}
	if n := q.consistent(); n != 19 {
		t.Errorf("%d addresses, want 19", n)
	}
}

// TestRefusedMemberCostsTheOthersNothing: a job that memory has no pool for is looked at again on etcd itself, alone.
func TestRefusedMemberCostsTheOthersNothing(t *testing.T) {
	q := newQueue(steady(t, "10.0.0.0/24", 26), false)
	q.together(8, func(i int) error {
		r := request(fmt.Sprint("c", i))
		if i != 3 {
			_, err := q.h.Add(q.ctx(), r)
			return err
		}
		r.IPv4Pools = []string{"nowhere"}
		if _, err := q.h.Add(q.ctx(), r); err == nil {
			return errors.New("it was given an address of a pool that does not exist")
		}
		return nil
	})
	if transactions, _ := q.asked(); transactions != 1 {
		t.Errorf("%d transactions, want one for the seven", transactions)
	}
	if n := q.consistent(); n != 8 {
		t.Errorf("%d addresses, want 8", n)
	}
}
