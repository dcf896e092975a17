package store_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/etcdtest"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// short is a deadline that tests can afford to run into.
const short = 300 * time.Millisecond

func client(t *testing.T, endpoint string, timeout time.Duration) *store.Client {
	t.Helper()
	c, err := store.New(store.Config{Endpoints: []string{endpoint}, Timeout: timeout})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func commit(t *testing.T, c *store.Client, build func(*store.Txn)) []store.KV {
	t.Helper()
	var txn store.Txn
	build(&txn)
	done, err := c.Commit(t.Context(), &txn)
	if err != nil {
		t.Fatal(err)
	}
	return done
}

func TestUpdateKeepsFieldsThatWeDoNotKnow(t *testing.T) {
	c := etcdtest.New(t).Store()
	const stored = `{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{"name":"p","generation":3},"spec":{"cidr":"10.0.0.0/16","novel":{"a":[1]}},"extra":true}`
	key := (*api.IPPool)(nil).KindOf().Key("", "p")
	commit(t, c, func(x *store.Txn) { x.PutRaw(key, []byte(stored), 0) })
	pool, err := store.Get[api.IPPool](t.Context(), c, key)
	if err != nil {
		t.Fatal(err)
	}
	changed := *pool.Value
	changed.Spec.Disabled = true
	updated, err := store.Update(t.Context(), c, pool, &changed)
	if err != nil {
		t.Fatal(err)
	}
	again, err := store.Get[api.IPPool](t.Context(), c, key)
	if err != nil {
		t.Fatal(err)
	}
	if again.Rev != updated.Rev || string(again.Raw()) != string(updated.Raw()) || again.Rev <= pool.Rev {
		t.Errorf("read %d %s, but Update returned %d %s", again.Rev, again.Raw(), updated.Rev, updated.Raw())
	}
	var got map[string]any
	if err := json.Unmarshal(again.Raw(), &got); err != nil {
		t.Fatal(err)
	}
	spec := got["spec"].(map[string]any)
	if got["extra"] != true || got["metadata"].(map[string]any)["generation"] != 3.0 || spec["disabled"] != true ||
		!cmp.Equal(spec["novel"], map[string]any{"a": []any{1.0}}) {
		t.Errorf("stored %s", again.Raw())
	}
}

func TestConflictTellsWhatStandsThereAndChangesNothing(t *testing.T) {
	c := etcdtest.New(t).Store()
	done := commit(t, c, func(x *store.Txn) {
		x.PutRaw("/a", []byte("1"), 0)
		x.PutRaw("/b", []byte("1"), 0)
	})
	var stale store.Txn
	stale.Expect("/a", done[0].Rev)
	stale.PutRaw("/b", []byte("2"), done[1].Rev-1)
	stale.PutRaw("/c", []byte("2"), 7)
	_, err := c.Commit(t.Context(), &stale)
	var conflict *store.ConflictError
	if !errors.As(err, &conflict) || !errors.Is(err, store.ErrConflict) {
		t.Fatalf("error = %v, want a ConflictError", err)
	}
	want := []store.KV{{Key: "/b", Value: []byte("1"), Rev: done[1].Rev}, {Key: "/c"}}
	if diff := cmp.Diff(want, conflict.Current); diff != "" {
		t.Errorf("in the way (-want +got):\n%s", diff)
	}
	got, rev, err := c.Read(t.Context(), store.Range{Key: "/", Prefix: true})
	if err != nil {
		t.Fatal(err)
	}
	if rev != done[0].Rev || !cmp.Equal(got[0], done) {
		t.Errorf("after the conflict etcd holds %v at %d, want %v", got[0], rev, done)
	}
}

func TestCommitWritesAndDeletesAtOneRevision(t *testing.T) {
	c := etcdtest.New(t).Store()
	first := commit(t, c, func(x *store.Txn) { x.PutRaw("/a", []byte("1"), 0) })
	done := commit(t, c, func(x *store.Txn) {
		x.Delete("/a", first[0].Rev)
		x.PutRaw("/b", nil, 0)
	})
	rev := first[0].Rev + 1
	if diff := cmp.Diff([]store.KV{{Key: "/a", Rev: rev}, {Key: "/b", Value: []byte{}, Rev: rev}}, done); diff != "" {
		t.Errorf("written (-want +got):\n%s", diff)
	}
	if _, err := store.Get[api.Affinity](t.Context(), c, "/a"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("error = %v, want ErrNotFound", err)
	}
	if b, err := store.Get[api.Affinity](t.Context(), c, "/b"); err != nil || !b.Value.Confirmed() {
		t.Errorf("an empty affinity reads as %v, %v; want a confirmed one", b.Value, err)
	}
}

func TestTransactionThatContradictsItselfIsRefusedUnsent(t *testing.T) {
	c := client(t, "http://127.0.0.1:1", short)
	for name, build := range map[string]func(*store.Txn){
		"written twice":   func(x *store.Txn) { x.PutRaw("/a", nil, 1); x.Delete("/a", 1) },
		"two revisions":   func(x *store.Txn) { x.Expect("/a", 1); x.Expect("/a", 2) },
		"no such field":   func(x *store.Txn) { store.Put(x, badEntry(), &api.Affinity{}) },
		"two in one sort": func(x *store.Txn) { x.Delete("/a", 1); x.Delete("/a", 1) },
	} {
		var txn store.Txn
		build(&txn)
		if _, err := c.Commit(t.Context(), &txn); err == nil || errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%s: error = %v, want a refusal before etcd is asked", name, err)
		}
	}
}

// badEntry was read from what is not JSON, so that nothing can be written in its place.
func badEntry() store.Entry[api.Affinity] {
	e, _ := store.Decode[api.Affinity](store.KV{Key: "/a", Value: []byte("{"), Rev: 1})
	return e
}

func TestListNamesBadValuesAndReturnsTheOthers(t *testing.T) {
	c := etcdtest.New(t).Store()
	commit(t, c, func(x *store.Txn) {
		x.PutRaw("/a/1", []byte(`{"state":"pending"}`), 0)
		x.PutRaw("/a/2", []byte(`{"state":`), 0)
		x.PutRaw("/a/3", []byte(`{}`), 0)
	})
	got, _, err := store.List[api.Affinity](t.Context(), c, "/a/")
	if err == nil || !strings.Contains(err.Error(), "/a/2") {
		t.Errorf("error = %v, want one that names /a/2", err)
	}
	if len(got) != 2 || got[0].Key != "/a/1" || got[1].Key != "/a/3" {
		t.Errorf("listed %v, want /a/1 and /a/3", got)
	}
}

func TestReadAllPagesAtOneRevision(t *testing.T) {
	c := etcdtest.New(t).Store()
	var want []store.KV
	for i := range 25 {
		want = append(want, commit(t, c, func(x *store.Txn) { x.PutRaw(fmt.Sprintf("/a/%02d", i), []byte("x"), 0) })...)
	}
	one := commit(t, c, func(x *store.Txn) { x.PutRaw("/b", []byte("y"), 0) })
	for _, page := range []int{1, 5, 7, 25, 100} {
		got, rev, err := c.ReadAll(t.Context(), page, store.Range{Key: "/a/", Prefix: true}, store.Range{Key: "/b"}, store.Range{Key: "/none"})
		if err != nil {
			t.Fatal(err)
		}
		if rev != one[0].Rev || !cmp.Equal(got, slices.Concat(want, one)) {
			t.Errorf("pages of %d: read %v at %d, want %v at %d", page, got, rev, slices.Concat(want, one), one[0].Rev)
		}
	}
}

func TestRevisionCountsEveryCommit(t *testing.T) {
	c := etcdtest.New(t).Store()
	done := commit(t, c, func(x *store.Txn) { x.PutRaw("/elsewhere", nil, 0) })
	if rev, err := c.Revision(t.Context()); err != nil || rev != done[0].Rev {
		t.Errorf("revision = %d, %v; want %d", rev, err, done[0].Rev)
	}
}

// calls is every way to ask etcd for something.
func calls(c *store.Client) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"Read":     func(ctx context.Context) error { _, _, err := c.Read(ctx, store.Range{Key: "/a"}); return err },
		"ReadAll":  func(ctx context.Context) error { _, _, err := c.ReadAll(ctx, 10, store.Range{Key: "/a"}); return err },
		"Revision": func(ctx context.Context) error { _, err := c.Revision(ctx); return err },
		"Watch":    func(ctx context.Context) error { _, err := c.Watch(ctx, "/a", "/b", 1); return err },
		"Commit": func(ctx context.Context) error {
			var txn store.Txn
			txn.PutRaw("/a", nil, 0)
			_, err := c.Commit(ctx, &txn)
			return err
		},
	}
}

func TestEtcdAwayIsUnavailableAndEndsWithTheDeadline(t *testing.T) {
	away := map[string]string{"refuses": refuser(t), "accepts and says nothing": "http://" + mute(t)}
	for how, endpoint := range away {
		for name, call := range calls(client(t, endpoint, short)) {
			t.Run(how+"/"+name, func(t *testing.T) {
				t.Parallel()
				// Longer than the call may take by far, so that it is the client's own deadline that is seen.
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				if err := call(ctx); !errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrUnknown) {
					t.Errorf("error = %v, want ErrUnavailable", err)
				}
				if ctx.Err() != nil {
					t.Error("the call outlasted its deadline")
				}
			})
		}
	}
}

func TestEtcdStoppedUnderAClientIsUnavailable(t *testing.T) {
	s := etcdtest.New(t)
	c := client(t, s.Endpoint(), short)
	if _, err := c.Revision(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.Stop()
	etcdtest.Until(t, "the client has noticed", func() bool { return !c.Connected() }) // before, a commit may have been sent: ErrUnknown
	for name, call := range calls(c) {
		if err := call(t.Context()); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%s: error = %v, want ErrUnavailable", name, err)
		}
	}
	s.Start()
	etcdtest.Until(t, "the client is connected again", c.Connected)
	for name, call := range calls(c) {
		if err := call(t.Context()); err != nil {
			t.Errorf("%s after the restart: %v", name, err)
		}
	}
}

func TestCancelledCallSaysSoAndNotThatEtcdIsAway(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for name, call := range calls(client(t, refuser(t), short)) {
		err := call(ctx)
		if err == nil || errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrUnknown) {
			t.Errorf("%s: error = %v, want one for the cancelled context", name, err)
		}
	}
}

func TestCommitWhoseAnswerIsLostIsUnknown(t *testing.T) {
	s := etcdtest.New(t)
	p := newProxy(t, s.Endpoint())
	c := client(t, "http://"+p.addr, short)
	if _, err := c.Revision(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.deaf.Store(true)
	var txn store.Txn
	txn.PutRaw("/a", []byte("1"), 0)
	if _, err := c.Commit(t.Context(), &txn); !errors.Is(err, store.ErrUnknown) || errors.Is(err, store.ErrUnavailable) {
		t.Errorf("error = %v, want ErrUnknown", err)
	}
	direct := s.Store()
	etcdtest.Until(t, "the commit has arrived all the same", func() bool {
		got, _, err := direct.Read(t.Context(), store.Range{Key: "/a"})
		return err == nil && len(got[0]) == 1
	})
}

func TestRefusedCommitIsNotUnknown(t *testing.T) {
	c := etcdtest.New(t).Store()
	var txn store.Txn
	for i := range 129 { // one more than etcd takes
		txn.PutRaw(fmt.Sprintf("/%d", i), nil, 0)
	}
	_, err := c.Commit(t.Context(), &txn)
	if err == nil || errors.Is(err, store.ErrUnknown) || errors.Is(err, store.ErrUnavailable) {
		t.Errorf("error = %v, want etcd's refusal", err)
	}
}

func TestParseEndpoints(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want []string // nil: refused
	}{
		{"http://10.0.0.1:2379", []string{"http://10.0.0.1:2379"}},
		{" http://a:1 ,, https://b:2,", []string{"http://a:1", "https://b:2"}},
		{"", nil},
		{" , ", nil},
		{"10.0.0.1:2379", nil},
		{"ftp://a:1", nil},
		{"http://", nil},
		{"http://a:99999", nil},
		{"http://[::1", nil},
	} {
		got, err := store.ParseEndpoints(tc.in)
		if (err == nil) != (tc.want != nil) || !slices.Equal(got, tc.want) {
			t.Errorf("ParseEndpoints(%q) = %q, %v; want %q", tc.in, got, err, tc.want)
		}
	}
}

// refuser is an endpoint that refuses connections.
func refuser(t *testing.T) string {
	t.Helper()
	l := listen(t)
	_ = l.Close()
	return "http://" + l.Addr().String()
}

// mute is an address that takes connections and never answers.
func mute(t *testing.T) string {
	t.Helper()
	return listen(t).Addr().String() // the kernel completes connections that nobody accepts
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// proxy stands between a client and etcd.
type proxy struct {
	addr  string
	deaf  atomic.Bool  // what etcd says is dropped
	taken atomic.Int32 // connections
}

func newProxy(t *testing.T, endpoint string) *proxy {
	t.Helper()
	l := listen(t)
	p := &proxy{addr: l.Addr().String()}
	go func() {
		for {
			down, err := l.Accept()
			if err != nil {
				return
			}
			p.taken.Add(1)
			up, err := net.Dial("tcp", strings.TrimPrefix(endpoint, "http://"))
			if err != nil {
				_ = down.Close()
				continue
			}
			go p.copy(up, down, false)
			go p.copy(down, up, true)
		}
	}()
	return p
}

// copy carries bytes until either end closes, and then closes the other.
func (p *proxy) copy(dst, src net.Conn, answers bool) {
	defer dst.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := src.Read(buf)
		if err != nil {
			return
		}
		if answers && p.deaf.Load() {
			continue
		}
		if _, err := dst.Write(buf[:n]); err != nil {
			return
		}
	}
}

func TestTransactionFailsOnWhatWasWrittenBelowAPrefixItExpects(t *testing.T) {
	c := etcdtest.New(t).Store()
	put := func(key string, rev int64) int64 {
		t.Helper()
		var txn store.Txn
		txn.PutRaw(key, []byte("v"), rev)
		done, err := c.Commit(t.Context(), &txn)
		if err != nil {
			t.Fatal(err)
		}
		return done[0].Rev
	}
	trial := func(key string, seen int64) error {
		var txn store.Txn
		txn.PutRaw(key, []byte("v"), 0)
		txn.ExpectBelow("/a/", seen)
		_, err := c.Commit(t.Context(), &txn)
		return err
	}
	if err := trial("/b/1", 1); err != nil {
		t.Errorf("nothing is below it: %v", err)
	}
	rev := put("/a/1", 0)
	put("/ab", 0)
	if err := trial("/b/2", rev); err != nil {
		t.Errorf("all below it was seen: %v", err)
	}
	newer := put("/a/2", 0)
	var conflict *store.ConflictError
	if err := trial("/b/3", rev); !errors.As(err, &conflict) || len(conflict.Current) != 1 || conflict.Current[0].Key != "/a/2" || conflict.Current[0].Rev != newer {
		t.Errorf("one below it was not seen: %v", err)
	}
	if err := trial("/b/3", newer); err != nil {
		t.Errorf("after it was seen, and the refused one has changed nothing: %v", err)
	}
}

// TestEntrySaysWhatIsStored with a value that knows all of its bytes, and with one that must keep them.
func TestEntrySaysWhatIsStored(t *testing.T) {
	const head = `{"kind":"WorkloadEndpoint","apiVersion":"projectcalico.org/v3","metadata":{"name":"a","namespace":"b"},"spec":{"mac":"x"`
	for raw, keeps := range map[string]bool{head + `}}`: false, head + `,"more":1}}`: true} {
		e, err := store.Decode[api.WorkloadEndpoint](store.KV{Key: "k", Rev: 1, Value: []byte(raw)})
		if err != nil {
			t.Fatal(err)
		}
		if got := e.Raw() != nil; got != keeps {
			t.Errorf("%s: its bytes are kept: %t, want %t", raw, got, keeps)
		}
		stored := []byte(raw)
		if !keeps {
			if stored, err = api.Encode(e.Value, nil); err != nil {
				t.Fatal(err)
			}
		}
		if !e.Says(stored) || e.Says(append(stored, ' ')) || e.Says(nil) {
			t.Errorf("%s: does not say just what is stored", raw)
		}
	}
	if (store.Entry[api.WorkloadEndpoint]{}).Says(nil) {
		t.Error("an entry that does not exist says something")
	}
}
