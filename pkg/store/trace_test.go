package store_test

import (
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/muslin-cni/muslin/internal/etcdtest"
	"github.com/muslin-cni/muslin/pkg/store"
)

func TestTraceNamesKeysAndNoValues(t *testing.T) {
	cfg := etcdtest.New(t).Config()
	var mu sync.Mutex
	var told []string
	cfg.Trace = func(r store.Request) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, r.What)
	}
	c, err := store.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	var txn store.Txn
	txn.PutRaw("/a", []byte("secret"), 0)
	if _, err := c.Commit(t.Context(), &txn); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Read(t.Context(), store.Range{Key: "/a"}); err != nil {
		t.Fatal(err)
	}
	w, err := c.Watch(t.Context(), "/a", "/b", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := w.Next(); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	for _, want := range []string{"if /a at 0, put /a (6 bytes)", "get /a", "watch /a… after 1", "watch /a…: 1 changes up to 2"} {
		if !slices.Contains(told, want) {
			t.Errorf("%q was not told: %q", want, told)
		}
	}
	if strings.Contains(strings.Join(told, " "), "secret") {
		t.Errorf("a value was told: %q", told)
	}
}
