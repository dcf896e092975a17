package objects_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/ctl/objects"
	"github.com/muslin-cni/muslin/internal/etcdtest"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

func netSet(t *testing.T, name, net string) api.Object {
	return read(t, `{"apiVersion":"projectcalico.org/v3","kind":"GlobalNetworkSet","metadata":{"name":"`+name+`"},"spec":{"nets":["`+net+`"]}}`)
}

// outcomes does a verb and returns what became of each object, which must be told in order.
func outcomes(t *testing.T, c *objects.Client, verb objects.Verb, all ...api.Object) []string {
	t.Helper()
	var out []string
	c.Write(t.Context(), verb, all, func(i int, err error) bool {
		if i != len(out) {
			t.Errorf("object %d is told of after %d", i, len(out)-1)
		}
		out = append(out, fmt.Sprint(err))
		return true
	})
	return out
}

func revisions(t *testing.T, c *objects.Client, all ...api.Object) (out []int64) {
	t.Helper()
	for _, o := range all {
		got, err := c.Get(t.Context(), o.KindOf(), o.Meta().Namespace, o.Meta().Name)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, got.Rev)
	}
	return out
}

func TestObjectsShareTransactions(t *testing.T) {
	c := clientOf(etcdtest.New(t).Store())
	var all []api.Object
	for i := range 250 {
		all = append(all, netSet(t, fmt.Sprintf("s-%03d", i), "10.0.0.0/8"))
	}
	for _, verb := range []objects.Verb{objects.VerbCreate, objects.VerbApply, objects.VerbUpdate} {
		got := outcomes(t, c, verb, all...)
		if bad := slices.DeleteFunc(got, func(s string) bool { return s == "<nil>" }); len(bad) > 0 {
			t.Fatalf("%s: %v", verb, bad)
		}
		if revs := slices.Compact(revisions(t, c, all...)); len(revs) != 3 {
			t.Errorf("%s: written at the revisions %v and not at three", verb, revs)
		}
	}
}

// etcd takes requests of 1.5 MB.
func TestGreatObjectsShareLess(t *testing.T) {
	c := clientOf(etcdtest.New(t).Store())
	var all []api.Object
	for i := range 12 {
		o := netSet(t, fmt.Sprintf("great-%02d", i), "10.0.0.0/8")
		o.Meta().Annotations = map[string]string{"note": strings.Repeat("x", 200<<10)}
		all = append(all, o)
	}
	got := outcomes(t, c, objects.VerbApply, all...)
	if bad := slices.DeleteFunc(got, func(s string) bool { return s == "<nil>" }); len(bad) > 0 {
		t.Fatal(bad)
	}
	if revs := slices.Compact(revisions(t, c, all...)); len(revs) != 6 {
		t.Errorf("written at the revisions %v and not two by two", revs)
	}
}

// A user who may write some of the objects writes these.
func TestObjectsThatARefusedTransactionHeldAreWrittenAlone(t *testing.T) {
	etcd := etcdtest.New(t)
	tiers := (*api.Tier)(nil).KindOf()
	etcd.EnableAuth("u", "p", (*api.GlobalNetworkSet)(nil).KindOf().Prefix())
	cfg := etcd.Config()
	cfg.Username, cfg.Password = "u", "p"
	s, err := store.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	c := clientOf(s)
	mine := read(t, `{"apiVersion":"projectcalico.org/v3","kind":"`+tiers.Name+`","metadata":{"name":"mine"},"spec":{"order":5}}`)
	got := outcomes(t, c, objects.VerbCreate, netSet(t, "a", "10.0.0.0/8"), mine, netSet(t, "z", "10.0.0.0/8"))
	if len(got) != 3 || got[0] != "<nil>" || !strings.Contains(got[1], store.ErrUnauthorized.Error()) || got[2] != "<nil>" {
		t.Errorf("got %q", got)
	}
}

func TestOneObjectsFailureIsItsOwn(t *testing.T) {
	c := clientOf(etcdtest.New(t).Store())
	there := netSet(t, "there", "10.0.0.0/8")
	if err := c.Create(t.Context(), there); err != nil {
		t.Fatal(err)
	}
	all := []api.Object{netSet(t, "a", "10.0.0.0/8"), netSet(t, "bad", "10.0.0.0/99"), there, netSet(t, "z", "10.0.0.0/8")}
	got := outcomes(t, c, objects.VerbCreate, all...)
	if len(got) != 4 || got[0] != "<nil>" || got[1] == "<nil>" || got[2] != "resource already exists: GlobalNetworkSet(there)" || got[3] != "<nil>" {
		t.Errorf("got %q", got)
	}
	revisions(t, c, all[0], all[3])
}

func TestNothingIsWrittenAfterTheCallerHasEnough(t *testing.T) {
	c := clientOf(etcdtest.New(t).Store())
	here, last := netSet(t, "here", "10.0.0.0/8"), netSet(t, "last", "10.0.0.0/8")
	for _, o := range []api.Object{here, last} {
		if err := c.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	before := revisions(t, c, last)
	var told int
	c.Write(t.Context(), objects.VerbUpdate, []api.Object{here, netSet(t, "absent", "10.0.0.0/8"), last}, func(_ int, err error) bool {
		told++
		return err == nil
	})
	if diff := cmp.Diff(before, revisions(t, c, last)); told != 2 || diff != "" {
		t.Errorf("%d objects were told of; the last one:\n%s", told, diff)
	}
}

// A policy finds the tier that stands before it, a second document of one name finds the first, and pools find each other.
func TestObjectsFindThoseBeforeThem(t *testing.T) {
	c := clientOf(etcdtest.New(t).Store())
	all := []api.Object{
		read(t, `{"apiVersion":"projectcalico.org/v3","kind":"Tier","metadata":{"name":"mine"},"spec":{"order":5}}`),
		read(t, `{"apiVersion":"projectcalico.org/v3","kind":"GlobalNetworkPolicy","metadata":{"name":"mine.web"},"spec":{"tier":"mine"}}`),
		netSet(t, "twice", "10.0.0.0/8"),
		netSet(t, "twice", "10.1.0.0/16"),
		pool(t),
		func() api.Object { p := pool(t); p.Meta().Name = "another"; return p }(),
	}
	got := outcomes(t, c, objects.VerbApply, all...)
	for i, want := range []bool{true, true, true, true, true, false} {
		if (got[i] == "<nil>") != want {
			t.Errorf("object %d: %s", i, got[i])
		}
	}
	stored, err := c.Get(t.Context(), all[3].KindOf(), "", "twice")
	if err != nil {
		t.Fatal(err)
	}
	if set := stored.Object.(*api.GlobalNetworkSet); !slices.Equal(set.Spec.Nets, []string{"10.1.0.0/16"}) {
		t.Errorf("the second document is overwritten: %v", set.Spec.Nets)
	}
}

// Others write between the reading of what is there and the shared transaction.
func TestWriteGoesByWhatIsThere(t *testing.T) {
	etcd := etcdtest.New(t)
	c, other := clientOf(etcd.Store()), clientOf(etcd.Store())
	for _, name := range []string{"changed", "deleted"} {
		if err := other.Create(t.Context(), netSet(t, name, "10.0.0.0/8")); err != nil {
			t.Fatal(err)
		}
	}
	meddled := false
	c.Now = func() time.Time { // asked for every object that is about to be written
		if !meddled {
			meddled = true
			if err := errors.Join(
				other.Update(t.Context(), netSet(t, "changed", "10.1.0.0/16")),
				other.Delete(t.Context(), netSet(t, "deleted", "10.0.0.0/8")),
				other.Create(t.Context(), netSet(t, "made", "10.1.0.0/16")),
			); err != nil {
				t.Error(err)
			}
		}
		return time.Unix(1767225600, 0)
	}
	names := []string{"changed", "deleted", "made"}
	var all []api.Object
	for _, name := range names {
		all = append(all, netSet(t, name, "10.2.0.0/16"))
	}
	if diff := cmp.Diff([]string{"<nil>", "<nil>", "<nil>"}, outcomes(t, c, objects.VerbApply, all...)); diff != "" {
		t.Error(diff)
	}
	for _, name := range names {
		got, err := c.Get(t.Context(), all[0].KindOf(), "", name)
		if err != nil {
			t.Fatal(err)
		}
		if set := got.Object.(*api.GlobalNetworkSet); !slices.Equal(set.Spec.Nets, []string{"10.2.0.0/16"}) {
			t.Errorf("%s is %v", name, set.Spec.Nets)
		}
	}
}

func TestEveryObjectOfADryRunIsChecked(t *testing.T) {
	c := clientOf(etcdtest.New(t).Store())
	there := netSet(t, "there", "10.0.0.0/8")
	if err := c.Create(t.Context(), there); err != nil {
		t.Fatal(err)
	}
	c.DryRun = true
	got := outcomes(t, c, objects.VerbCreate, netSet(t, "a", "10.0.0.0/8"), there, netSet(t, "z", "10.0.0.0/8"))
	if diff := cmp.Diff([]string{"<nil>", "resource already exists: GlobalNetworkSet(there)", "<nil>"}, got); diff != "" {
		t.Error(diff)
	}
	if all, err := c.List(t.Context(), there.KindOf(), ""); err != nil || len(all.Items) != 1 {
		t.Errorf("a dry run has left %d objects: %v", len(all.Items), err)
	}
}

func TestEtcdAwayIsToldOnce(t *testing.T) {
	etcd := etcdtest.New(t)
	c := clientOf(etcd.Store())
	etcd.Stop()
	var told []error
	c.Write(t.Context(), objects.VerbCreate, []api.Object{netSet(t, "a", "10.0.0.0/8"), netSet(t, "b", "10.0.0.0/8")}, func(_ int, err error) bool {
		told = append(told, err)
		return false
	})
	if len(told) != 1 || !errors.Is(told[0], store.ErrUnavailable) {
		t.Errorf("got %v", told)
	}
}
