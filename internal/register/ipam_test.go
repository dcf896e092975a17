package register_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/register"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
	"github.com/muslin-cni/muslin/pkg/store"
)

func dualStack(container string) attach.Request {
	r := request(container)
	r.AssignIPv4, r.AssignIPv6 = true, true
	return r
}

// TestBatchesStayWithinWhatEtcdTakes has every job write six keys or more: both families, and a block of a single address for each.
func TestBatchesStayWithinWhatEtcdTakes(t *testing.T) {
	const n = 72
	many := func(w *world) {
		w.node("node-1", nil)
		w.node("node-2", nil)
		w.pool("four", "10.0.0.0/25", 32)
		w.pool("six", "fd00:10::/121", 128)
		w.putRaw(api.IPAMConfigKey, `{"strict_affinity":true,"auto_allocate_blocks":true,"maxBlocksPerHost":1000}`)
	}
	for _, c := range []struct {
		name  string
		world func(*world)
	}{
		{"claims", func(*world) {}},
		{"takeovers", func(w *world) {
			other := register.New(register.Config{Client: w.c, Node: "node-2", Now: func() time.Time { return time.Now().Add(-time.Hour) }})
			parallel(w.t, 128, func(i int) error { _, err := other.Add(w.ctx(), dualStack(fmt.Sprint("old", i))); return err })
			parallel(w.t, 128, func(i int) error { return other.Del(w.ctx(), dualStack(fmt.Sprint("old", i))) })
		}},
		{"loans", func(w *world) {
			w.putRaw(api.IPAMConfigKey, `{"auto_allocate_blocks":false}`)
			for i := range 128 {
				for _, text := range []string{fmt.Sprintf("10.0.0.%d/32", i), fmt.Sprintf("fd00:10::%x/128", i)} {
					cidr := netip.MustParsePrefix(text)
					b, err := block.New(cidr, "node-2", time.Now())
					if err != nil {
						w.t.Fatal(err)
					}
					put(w, api.BlockKey(cidr), b)
					put(w, api.AffinityKey("node-2", cidr), &api.Affinity{State: api.AffinityConfirmed})
				}
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			many(w)
			c.world(w)
			f := w.follow()
			h := register.New(register.Config{Client: w.c, Source: register.FromFeed(f), Node: "node-1", Committed: f.Commit})
			rev := w.revision()
			parallel(t, n, func(i int) error { _, err := h.Add(w.ctx(), dualStack(fmt.Sprint("c", i))); return err })
			if got := w.revision() - rev; got > n/4 {
				t.Errorf("%d transactions for %d containers: they do not share", got, n)
			}
			if got := w.consistent(); got != 2*n {
				t.Errorf("%d addresses, want %d", got, 2*n)
			}
			rev = w.revision()
			w.pool("four", "10.0.0.0/25", 32, func(s *api.IPPoolSpec) { s.NodeSelector = "has(x)" }) // now they are given back too
			parallel(t, n, func(i int) error { return h.Del(w.ctx(), dualStack(fmt.Sprint("c", i))) })
			if got := w.revision() - rev; got > n/4 {
				t.Errorf("%d transactions for %d containers to go: they do not share", got, n)
			}
			if got := w.consistent(); got != 0 || len(w.endpoints()) != 0 {
				t.Errorf("%d addresses, %d endpoints left", got, len(w.endpoints()))
			}
		})
	}
}

func TestDelGoesOnWhereEtcdHasNoCluster(t *testing.T) {
	for _, memory := range []bool{false, true} {
		w := newWorld(t)
		w.node("node-1", nil)
		w.pool("pool", "10.0.0.0/24", 26)
		cfg := register.Config{Client: w.c, Node: "node-1"}
		seen := func() {}
		if memory {
			f := w.follow()
			cfg.Source, cfg.Committed = register.FromFeed(f), f.Commit
			seen = func() {
				if err := f.WaitFor(w.ctx(), w.revision()); err != nil {
					t.Fatal(err)
				}
			}
		}
		h := register.New(cfg)
		w.add(h, request("c"))
		w.add(h, request("d"))
		w.putRaw(ipam.ClusterKey(), `{"spec":7}`)
		seen()
		if err := h.Del(w.ctx(), request("c")); err == nil || !strings.Contains(err.Error(), "clusterinformations") {
			t.Errorf("from memory %v: a ClusterInformation that cannot be read may say that the datastore is locked; DEL says %v", memory, err)
		}
		w.delete(ipam.ClusterKey())
		seen()
		w.del(h, request("c"))
		if _, err := h.Add(w.ctx(), request("e")); !errors.Is(err, ipam.ErrNotReady) {
			t.Errorf("from memory %v: ADD without a cluster: %v", memory, err)
		}
		w.lock(true)
		seen()
		if err := h.Del(w.ctx(), request("d")); !errors.Is(err, ipam.ErrNotReady) {
			t.Errorf("from memory %v: DEL in a locked cluster: %v", memory, err)
		}
		if got := w.consistent(); got != 1 {
			t.Errorf("from memory %v: %d addresses, want d's", memory, got)
		}
	}
}

// TestPictureSaysWhatEtcdSays compares both sources, with values among theirs that cannot be read.
func TestPictureSaysWhatEtcdSays(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", nil)
	w.pool("pool", "10.0.0.0/24", 28)
	w.pool("six", "fd00::/120", 124)
	w.add(w.handler("node-1"), dualStack("c"))
	w.putRaw("/calico/resources/v3/projectcalico.org/ippools/bad", `{"spec":7}`)
	w.putRaw("/calico/resources/v3/projectcalico.org/ipreservations/bad", `{"spec":7}`)
	w.putRaw("/calico/resources/v3/projectcalico.org/ipreservations/r", `{"metadata":{"name":"r"},"spec":{"reservedCIDRs":["10.0.0.0/30"]}}`)
	w.putRaw("/calico/resources/v3/projectcalico.org/nodes/node-2", `{"metadata":{"name":"node-2"},"spec":{"ipv4VXLANTunnelAddr":"10.0.0.9","ipv6VXLANTunnelAddr":"fd00::9"}}`)
	w.putRaw("/calico/ipam/v2/assignment/ipv4/block/10.0.0.0-28", `{`)
	w.putRaw("/calico/ipam/v2/host/node-2/ipv4/block/10.0.0.0-28", `{`)
	etcd, picture := ipam.Etcd{Client: w.c}, w.picture()

	said := func(src ipam.Source) map[string][]string {
		facts, err := src.Facts(w.ctx(), "node-1")
		if err != nil {
			t.Fatal(err)
		}
		out := map[string][]string{"pools": entries(facts.Pools), "reservations": entries(facts.Reservations), "affinities": entries(facts.Affinities)}
		out["bad"] = []string{fmt.Sprint(len(facts.Bad))}
		for _, v6 := range []bool{false, true} {
			s, err := src.Survey(w.ctx(), v6)
			if err != nil {
				t.Fatal(err)
			}
			family := fmt.Sprint("v6 ", v6)
			out[family] = append(entries(s.Blocks), fmt.Sprint(s.InUse))
			for _, e := range listOf[api.Block](w, api.BlocksPrefix(true)) {
				a, err := src.Affinity(w.ctx(), "node-1", e.Value.CIDR)
				out[family] = append(out[family], fmt.Sprint(entries([]store.Entry[api.Affinity]{a}), err))
			}
		}
		a, err := src.Affinity(w.ctx(), "node-2", listOf[api.IPPool](w, "/calico/resources/v3/projectcalico.org/ippools/pool")[0].Value.Spec.CIDR)
		out["absent"] = []string{fmt.Sprint(entries([]store.Entry[api.Affinity]{a}), err)}
		return out
	}
	if diff := cmp.Diff(said(etcd), said(picture)); diff != "" {
		t.Errorf("(-etcd +picture):\n%s", diff)
	}
}

// entries says of each what it is: its key, its revision, and whether it could be read.
func entries[T api.Value](list []store.Entry[T]) []string {
	var out []string
	for _, e := range list {
		out = append(out, fmt.Sprintf("%s %d %v", e.Key, e.Rev, e.Value != nil))
	}
	slices.Sort(out)
	return out
}
