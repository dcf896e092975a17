package agent

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

func TestKernelIsLeftAloneWithoutAUsableDatastore(t *testing.T) {
	f := feed.New(nil, slog.New(slog.DiscardHandler))
	snap, _ := f.Snapshot()
	if why := frozen(snap, "node-1", "m1"); !strings.Contains(why, "lost its data") {
		t.Errorf("an empty datastore: %q", why)
	}
	key := (&api.ClusterInformation{}).KindOf().Key("", "default")
	for i, c := range []struct{ spec, want string }{
		{`{}`, "datastoreReady"},
		{`{"datastoreReady":false}`, "datastoreReady"},
		{`{"datastoreReady":true}`, ""},
	} {
		value := `{"kind":"ClusterInformation","apiVersion":"projectcalico.org/v3","metadata":{"name":"default"},"spec":` + c.spec + `}`
		f.Commit([]store.KV{{Key: key, Value: []byte(value), Rev: int64(i + 1)}})
		snap, _ := f.Snapshot()
		if why := frozen(snap, "node-1", "m1"); !strings.Contains(why, c.want) || (c.want == "") != (why == "") {
			t.Errorf("%s: %q, want %q in it", c.spec, why, c.want)
		}
	}
	for i, c := range []struct{ holder, want string }{{"m1", ""}, {"m2", "belongs to machine m2"}} {
		f.Commit([]store.KV{{Key: api.IdentityKey("node-1"), Value: []byte(`{"machineID":"` + c.holder + `"}`), Rev: int64(i + 10)}})
		snap, _ := f.Snapshot()
		if why := frozen(snap, "node-1", "m1"); !strings.Contains(why, c.want) || (c.want == "") != (why == "") {
			t.Errorf("held by %s: %q, want %q in it", c.holder, why, c.want)
		}
	}
}

func TestBackoffGrowsAndIsNotPutOff(t *testing.T) {
	var b backoff
	if b.due() != nil {
		t.Error("there is something to retry at first")
	}
	b.next()
	first, wait := b.due(), b.wait
	b.next()
	if b.due() != first || b.wait != wait {
		t.Error("a retry that was set was put off")
	}
	for range 20 {
		b.fired()
		b.next()
	}
	if b.wait != lastRetry {
		t.Errorf("waits %v in the end, want %v", b.wait, lastRetry)
	}
	b.reset()
	if b.due() != nil {
		t.Error("there is something to retry after a reset")
	}
}
