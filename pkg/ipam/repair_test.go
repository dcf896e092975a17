package ipam_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"pgregory.net/rapid"

	"github.com/muslin-cni/muslin/internal/etcdtest"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
	"github.com/muslin-cni/muslin/pkg/store"
)

// repairable are the kinds of findings that Repairs leaves none of: where it cannot do all, a node or an endpoint is in the way, which
// damaged does not make.
func repairable(k ipam.FindingKind) bool {
	return slices.Contains([]ipam.FindingKind{
		ipam.HandleOvercounts, ipam.HandleUndercounts, ipam.NoHandle, ipam.AffinityUnfinished, ipam.AffinityWithout, ipam.AffinityStale,
	}, k)
}

// damaged draws blocks of nodes that exist and that do not, with handles, affinities and endpoints that may be missing or wrong. It
// returns the keys and the addresses that must not be released.
func damaged(t *rapid.T) (keys map[string]string, kept []netip.Addr) {
	keys = map[string]string{auditPool: healthy()[auditPool]}
	for i := range 2 {
		keys[fmt.Sprintf("/calico/resources/v3/projectcalico.org/nodes/node-%d", i)] = fmt.Sprintf(`{"kind":"Node","metadata":{"name":"node-%d"},"spec":{}}`, i)
	}
	put := func(key string, v any) {
		raw, err := encodeAny(v)
		if err != nil {
			t.Fatal(err)
		}
		keys[key] = raw
	}
	for i := range rapid.IntRange(1, 4).Draw(t, "blocks") {
		cidr := netip.MustParsePrefix(fmt.Sprintf("10.0.0.%d/30", 4*i))
		node := fmt.Sprintf("node-%d", rapid.IntRange(0, 2).Draw(t, "node")) // node-2 does not exist
		b, err := block.New(cidr, node, time.Unix(1767225600, 0))
		if err != nil {
			t.Fatal(err)
		}
		for range rapid.IntRange(0, 4).Draw(t, "addresses") {
			handle := fmt.Sprintf("net.c%d", rapid.IntRange(0, 3).Draw(t, "handle"))
			var got []netip.Addr
			got, b = block.Assign(b, 1, block.Owner{HandleID: handle, Attrs: map[string]string{api.AttrNode: node}})
			used := rapid.Bool().Draw(t, "endpoint")
			if used {
				name := fmt.Sprintf("p%v", got[0].As4()[3])
				keys[(*api.WorkloadEndpoint)(nil).KindOf().Key("default", name)] = endpointWith(name, strings.TrimPrefix(handle, "net."), got[0].String())
			}
			if used || node != "node-2" {
				kept = append(kept, got[0])
			}
		}
		put(api.BlockKey(cidr), b)
	}
	for i := range 4 {
		if n := rapid.IntRange(0, 3).Draw(t, "count"); n > 0 {
			put(api.HandleKey(fmt.Sprintf("net.c%d", i)), &api.Handle{Block: map[string]int{fmt.Sprintf("10.0.0.%d/30", 4*n): n}})
		}
		if state := rapid.SampledFrom([]api.AffinityState{"none", api.AffinityPending, api.AffinityConfirmed, api.AffinityPendingDeletion}).Draw(t, "state"); state != "none" {
			node := fmt.Sprintf("node-%d", rapid.IntRange(0, 2).Draw(t, "claimant"))
			put(api.AffinityKey(node, netip.MustParsePrefix(fmt.Sprintf("10.0.0.%d/30", 4*i))), &api.Affinity{State: state})
		}
	}
	return keys, kept
}

func encodeAny(v any) (string, error) {
	var raw []byte
	var err error
	switch v := v.(type) {
	case *api.Block:
		raw, err = api.Encode(v, nil)
	case *api.Handle:
		raw, err = api.Encode(v, nil)
	case *api.Affinity:
		raw, err = api.Encode(v, nil)
	default:
		err = fmt.Errorf("encode %T: not expected", v)
	}
	return string(raw), err
}

func TestRepairsEndInASoundStateAndTakeNothingFromTheLiving(t *testing.T) {
	srv := etcdtest.New(t)
	client, etcd := srv.Store(), srv.Etcd()
	rapid.Check(t, func(rt *rapid.T) {
		ctx := t.Context()
		keys, kept := damaged(rt)
		if _, err := etcd.Delete(ctx, "/", clientv3.WithPrefix()); err != nil {
			rt.Fatal(err)
		}
		for k, v := range keys {
			if _, err := etcd.Put(ctx, k, v); err != nil {
				rt.Fatal(err)
			}
		}
		view := func() ipam.View {
			v, err := ipam.LoadView(ctx, client)
			if err != nil {
				rt.Fatal(err)
			}
			return v
		}
		const enough = 5
		v := view()
		for pass := 0; ; pass++ {
			repairs := ipam.Repairs(v, func(*store.Txn) {})
			if len(repairs) == 0 {
				break
			}
			if pass == enough {
				rt.Fatalf("after %d passes there is more to repair: %s", pass, repairs[0].Text)
			}
			for _, r := range repairs {
				if _, err := client.Commit(ctx, r.Txn); err != nil && !errors.Is(err, store.ErrConflict) {
					rt.Fatal(err)
				}
			}
			v = view()
		}
		for _, f := range ipam.Audit(v) {
			if repairable(f.Kind) {
				rt.Errorf("still there: %v", f)
			}
		}
		held := map[netip.Addr]bool{}
		for _, b := range v.Blocks {
			if err := block.Validate(b.Value); err != nil {
				rt.Error(err)
			}
			for a := range ipam.Allocated(b.Value) {
				held[a] = true
			}
		}
		for _, a := range kept {
			if !held[a] {
				rt.Errorf("%v was released, which a live node or an endpoint has", a)
			}
		}
		if len(held) != len(kept) {
			rt.Errorf("%d addresses are held, want the %d that are not leaked", len(held), len(kept))
		}
	})
}

func TestRepairsDependOnWhatTheyRestOn(t *testing.T) {
	srv := etcdtest.New(t)
	client, etcd := srv.Store(), srv.Etcd()
	base := healthy()
	base[auditHandle] = `{"block":{"10.0.0.0/30":4},"deleted":false}`
	for k, v := range base {
		if _, err := etcd.Put(t.Context(), k, v); err != nil {
			t.Fatal(err)
		}
	}
	v, err := ipam.LoadView(t.Context(), client)
	if err != nil {
		t.Fatal(err)
	}
	repairs := ipam.Repairs(v, func(t *store.Txn) { t.Expect("/guard", 0) })
	if len(repairs) != 1 {
		t.Fatalf("%d repairs, want that of the handle", len(repairs))
	}
	for _, key := range []string{auditBlock, "/guard"} {
		if _, err := etcd.Put(t.Context(), key, base[auditBlock]); err != nil {
			t.Fatal(err)
		}
		var conflict *store.ConflictError
		if _, err := client.Commit(t.Context(), repairs[0].Txn); !errors.As(err, &conflict) {
			t.Errorf("repair after %s was written: %v, want a conflict", key, err)
		}
	}
}

func TestReleaseAddrTakesTheAddressFromBlockAndHandle(t *testing.T) {
	srv := etcdtest.New(t)
	client, etcd := srv.Store(), srv.Etcd()
	for k, v := range healthy() {
		if _, err := etcd.Put(t.Context(), k, v); err != nil {
			t.Fatal(err)
		}
	}
	cidr, addr := netip.MustParsePrefix("10.0.0.0/30"), netip.MustParseAddr("10.0.0.1")
	other := uint64(7)
	release := func(r block.Release) error {
		return ipam.ReleaseAddr(t.Context(), client, cidr, r, func(*store.Txn) {})
	}
	if err := release(block.Release{Addr: addr, Seq: &other}); !errors.Is(err, block.ErrDifferent) {
		t.Errorf("release of what was assigned anew: %v, want %v", err, block.ErrDifferent)
	}
	if err := release(block.Release{Addr: addr, Handle: "net.c1"}); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Get[api.Handle](t.Context(), client, auditHandle); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the handle that holds nothing more: %v, want it gone", err)
	}
	if err := release(block.Release{Addr: addr}); !errors.Is(err, block.ErrNotHeld) {
		t.Errorf("second release: %v, want %v", err, block.ErrNotHeld)
	}
	if err := ipam.ReleaseAddr(t.Context(), client, netip.MustParsePrefix("10.9.0.0/30"), block.Release{Addr: netip.MustParseAddr("10.9.0.1")}, func(*store.Txn) {}); !errors.Is(err, block.ErrNotHeld) {
		t.Errorf("release from a block that does not exist: %v, want %v", err, block.ErrNotHeld)
	}
}
