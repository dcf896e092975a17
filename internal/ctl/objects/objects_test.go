package objects_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/muslin-cni/muslin/internal/ctl/objects"
	"github.com/muslin-cni/muslin/internal/etcdtest"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
	"github.com/muslin-cni/muslin/pkg/store"
)

func clientOf(s *store.Client) *objects.Client {
	return &objects.Client{Store: s, UUID: uuid.NewString, Now: time.Now}
}

func read(t *testing.T, text string) api.Object {
	t.Helper()
	items := api.Read([]byte(text))
	if len(items) != 1 || items[0].Err != nil {
		t.Fatalf("read %s: %+v", text, items)
	}
	return items[0].Object
}

func pool(t *testing.T) api.Object {
	t.Helper()
	return read(t, `{"apiVersion":"projectcalico.org/v3","kind":"IPPool","metadata":{"name":"p"},"spec":{"cidr":"10.5.0.0/28","blockSize":30}}`)
}

func TestPoolDeletionThatIsInterruptedGoesOnWhenItIsCalledAgain(t *testing.T) {
	c := clientOf(etcdtest.New(t).Store())
	if err := c.Create(t.Context(), pool(t)); err != nil {
		t.Fatal(err)
	}
	makeBlock(t, c.Store)
	// The deletion is interrupted while nodes get the time to notice that the pool is disabled.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- c.Delete(ctx, pool(t)) }()
	other := clientOf(c.Store)
	etcdtest.Until(t, "the pool is disabled", func() bool {
		s, err := other.Get(t.Context(), pool(t).KindOf(), "", "p")
		if err != nil {
			return false
		}
		p, ok := s.Object.(*api.IPPool)
		return ok && p.Spec.Disabled
	})
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v; want an interruption", err)
	}
	if _, err := c.Get(t.Context(), pool(t).KindOf(), "", "p"); err != nil {
		t.Fatalf("the pool is gone: %v", err)
	}

	if err := c.Delete(t.Context(), pool(t)); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{api.KeyOf(pool(t)), api.BlockKey(blockRange())} {
		got, _, err := c.Store.Read(t.Context(), store.Range{Key: key})
		if err != nil || len(got[0]) > 0 {
			t.Errorf("%s: %v, %v; want nothing", key, got, err)
		}
	}
}

func TestConcurrentChangesOfOneObjectAreAllKept(t *testing.T) {
	etcd := etcdtest.New(t)
	set := read(t, `{"apiVersion":"projectcalico.org/v3","kind":"GlobalNetworkSet","metadata":{"name":"s"}}`)
	if err := clientOf(etcd.Store()).Create(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 3 {
		c := clientOf(etcd.Store())
		wg.Go(func() {
			change := objects.LabelChange{Key: fmt.Sprintf("k%d", i), Value: "v"}
			if _, err := c.Label(t.Context(), set.KindOf(), "", "s", change); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	got, err := clientOf(etcd.Store()).Get(t.Context(), set.KindOf(), "", "s")
	if err != nil {
		t.Fatal(err)
	}
	if n := len(got.Object.Meta().Labels); n != 3 {
		t.Errorf("%d labels are left: %v", n, got.Object.Meta().Labels)
	}
}

func TestPoolIsNotMadeOverBlocksOfAnotherSize(t *testing.T) {
	c := clientOf(etcdtest.New(t).Store())
	makeBlock(t, c.Store)
	other := read(t, `{"apiVersion":"projectcalico.org/v3","kind":"IPPool","metadata":{"name":"p"},"spec":{"cidr":"10.5.0.0/16"}}`)
	err := c.Create(t.Context(), other)
	if err == nil || !strings.Contains(err.Error(), "block 10.5.0.0/30 exists") {
		t.Errorf("got %v", err)
	}
	if err := c.Create(t.Context(), pool(t)); err != nil {
		t.Errorf("a pool with blocks of the size that is there: %v", err)
	}
}

func blockRange() netip.Prefix { return netip.MustParsePrefix("10.5.0.0/30") }

// makeBlock makes an empty block of a node.
func makeBlock(t *testing.T, c *store.Client) {
	t.Helper()
	b, err := block.New(blockRange(), "n1", time.Unix(1767225600, 0))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Create(t.Context(), c, api.BlockKey(blockRange()), b); err != nil {
		t.Fatal(err)
	}
}

// TestFollowListsAnewWhatEtcdHasForgotten compacts the history between the list and the watch.
func TestFollowListsAnewWhatEtcdHasForgotten(t *testing.T) {
	etcd := etcdtest.New(t)
	c, other := clientOf(etcd.Store()), clientOf(etcd.Store())
	named := func(name, net string) api.Object {
		return read(t, `{"apiVersion":"projectcalico.org/v3","kind":"GlobalNetworkSet","metadata":{"name":"`+name+`"},"spec":{"nets":["`+net+`"]}}`)
	}
	kind := named("a", "").KindOf()
	for _, name := range []string{"a", "b", "c", "unwanted"} {
		if err := other.Create(t.Context(), named(name, "10.0.0.0/8")); err != nil {
			t.Fatal(err)
		}
	}
	keys := map[string]bool{}
	for _, name := range []string{"a", "b", "c", "d"} {
		keys[kind.Key("", name)] = true
	}
	enough := errors.New("enough")
	var got []string
	err := c.Follow(t.Context(), kind, "", keys, func(change objects.Change) error {
		got = append(got, change.Event+" "+change.Object.Object.Meta().Name)
		switch len(got) {
		case 3: // before the watch
			if err := errors.Join(
				other.Update(t.Context(), named("a", "10.1.0.0/16")),
				other.Update(t.Context(), named("unwanted", "10.1.0.0/16")),
				other.Delete(t.Context(), named("b", "")),
				other.Create(t.Context(), named("d", "10.1.0.0/16")),
			); err != nil {
				return err
			}
			rev, err := other.Store.Revision(t.Context())
			if err != nil {
				return err
			}
			_, err = etcd.Etcd().Compact(t.Context(), rev)
			return err
		case 6: // in the watch
			return other.Delete(t.Context(), named("c", ""))
		case 7:
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) {
		t.Fatal(err)
	}
	want := "[ADDED a ADDED b ADDED c MODIFIED a ADDED d DELETED b DELETED c]"
	if fmt.Sprint(got) != want {
		t.Errorf("got  %v\nwant %s", got, want)
	}
}

// TestOverlappingPoolsMadeAtOnceDoNotBothComeToBe has each writer hold its pool against the others before any of them is stored.
func TestOverlappingPoolsMadeAtOnceDoNotBothComeToBe(t *testing.T) {
	etcd := etcdtest.New(t)
	pool := func(name, cidr string) api.Object {
		return read(t, `{"apiVersion":"projectcalico.org/v3","kind":"IPPool","metadata":{"name":"`+name+`"},"spec":{"cidr":"`+cidr+`"}}`)
	}
	create := func(pools []api.Object) []error {
		errs := make([]error, len(pools))
		clients := make([]*objects.Client, len(pools))
		for i := range pools {
			clients[i] = clientOf(etcd.Store())
		}
		var all sync.WaitGroup
		for i, p := range pools {
			all.Go(func() { errs[i] = clients[i].Create(t.Context(), p) })
		}
		all.Wait()
		return errs
	}
	for round := range 10 {
		var overlapping []api.Object
		for i := range 6 {
			overlapping = append(overlapping, pool(fmt.Sprintf("r%d-%d", round, i), fmt.Sprintf("10.%d.0.0/16", round)))
		}
		made := 0
		for _, err := range create(overlapping) {
			if err == nil {
				made++
			} else if !strings.Contains(err.Error(), "overlaps") {
				t.Errorf("round %d: %v", round, err)
			}
		}
		if made != 1 {
			t.Errorf("round %d: %d pools of one range were made", round, made)
		}
	}
	apart := []api.Object{pool("a", "10.100.0.0/16"), pool("b", "10.101.0.0/16"), pool("c", "10.102.0.0/16"), pool("d", "10.103.0.0/16")}
	if err := errors.Join(create(apart)...); err != nil {
		t.Errorf("pools that do not overlap: %v", err)
	}
}
