package ipam_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
)

func TestSpecificAddressClaimsItsBlock(t *testing.T) {
	w := newWorld(t)
	w.pool("pool", `"cidr":"10.0.0.0/28","blockSize":30,"nodeSelector":"zone == \"b\""`)
	a, err := w.assign("node-1", named("mine", "10.0.0.6"))
	if err != nil || a.String() != "10.0.0.6/30" {
		t.Fatalf("got %v, %v; a pool's selector does not matter to who names an address", a, err)
	}
	if got := w.get("/calico/ipam/v2/host/node-1/ipv4/block/10.0.0.4-30"); got != confirmed {
		t.Errorf("affinity %q", got)
	}
	if got := w.get(api.HandleKey("mine")); got != `{"block":{"10.0.0.4/30":1},"deleted":false}` {
		t.Errorf("handle %s", got)
	}
	if freed := w.release("mine"); len(freed) != 1 || freed[0] != a {
		t.Errorf("freed %v", freed)
	}
}

func TestSpecificAddressIsRefusedWithItsReason(t *testing.T) {
	for _, c := range []struct {
		name, addr string
		world      func(*world)
		reason     error
		says       string
	}{
		{"in no pool", "10.1.0.0", func(*world) {}, ipam.ErrRequest, "The provided IP address is not in a configured pool"},
		{"of a disabled pool", "10.0.0.2", func(w *world) { w.pool("pool", `"cidr":"10.0.0.0/30","blockSize":30,"disabled":true`) }, ipam.ErrRequest, "not in a configured pool"},
		{"taken", "10.0.0.0", func(w *world) {
			r := ask("net.c1")
			r.Attrs[api.AttrPod], r.Attrs[api.AttrNamespace] = "web", "shop"
			if _, err := w.assign("node-1", r); err != nil {
				w.t.Fatal(err)
			}
		}, ipam.ErrTaken, "Address already assigned in block: 10.0.0.0 is held by handle net.c1 (pod shop/web) on node node-1"},
		{"another node's, and strict", "10.0.0.3", func(w *world) {
			w.put(blockKey, blockJSON(`"host:node-2"`))
			w.put(api.IPAMConfigKey, strict)
		}, ipam.ErrRequest, "Block host affinity does not match: block 10.0.0.0/30 belongs to node node-2"},
		{"nobody's, and strict", "10.0.0.3", func(w *world) {
			w.put(blockKey, blockJSON(`null`))
			w.put(api.IPAMConfigKey, strict)
		}, ipam.ErrRequest, "belongs to nobody"},
		{"of a virtual owner in the old form, and strict", "10.0.0.3", func(w *world) {
			w.put(blockKey, strings.Replace(blockJSON(`null`), `"affinity":null`, `"hostAffinity":"virtual:lb"`, 1))
			w.put(api.IPAMConfigKey, strict)
		}, ipam.ErrRequest, "belongs to virtual:lb"},
		{"in a damaged block", "10.0.0.3", func(w *world) { w.put(blockKey, `{`) }, ipam.ErrNoAddress, "damaged"},
		{"where blocks of another size are", "10.0.0.3", func(w *world) {
			w.put("/calico/ipam/v2/assignment/ipv4/block/10.0.0.0-31", strings.NewReplacer("/30", "/31", "null,null,null]", "null]", "1,2,3", "1").Replace(blockJSON(`"host:node-1"`)))
		}, ipam.ErrNoAddress, "overlaps block 10.0.0.0/31"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			c.world(w)
			a, err := w.assign("node-1", named("mine", c.addr))
			if !errors.Is(err, c.reason) || !strings.Contains(fmt.Sprint(err), c.says) {
				t.Errorf("got %v, %v; want %v and %q", a, err, c.reason, c.says)
			}
		})
	}
}

func TestSpecificAddressMayBeBorrowed(t *testing.T) {
	for _, affinity := range []string{`"host:node-2"`, `null`} {
		w := newWorld(t)
		w.put(blockKey, blockJSON(affinity))
		if a, err := w.assign("node-1", named("mine", "10.0.0.3")); err != nil || a.Addr().String() != "10.0.0.3" {
			t.Errorf("affinity %s: got %v, %v", affinity, a, err)
		}
		if got := w.get(affinityKey); got != "" || !strings.Contains(w.get(blockKey), `"affinity":`+affinity) {
			t.Errorf("affinity %s: the loan claimed the block: %q, %s", affinity, got, w.get(blockKey))
		}
	}
}

func TestSpecificAddressOfABlockOfAnotherSize(t *testing.T) {
	w := newWorld(t)
	w.put(blockKey, blockJSON(`"host:node-1"`))
	w.pool("pool", `"cidr":"10.0.0.0/28","blockSize":31`)
	if a, err := w.assign("node-1", named("mine", "10.0.0.3")); err != nil || a.String() != "10.0.0.3/30" {
		t.Errorf("got %v, %v", a, err)
	}
}

func TestOneFamilyThatIsRefusedLeavesNothingOfTheOther(t *testing.T) {
	w := newWorld(t)
	w.pool("six", `"cidr":"fd00::/122","blockSize":122`)
	both := func(handle string) error {
		p, _ := w.plan("node-1", handle)
		for _, v6 := range []bool{false, true} {
			r := ask(handle)
			r.V6 = v6
			if _, err := p.Assign(w.ctx(), r); err != nil {
				return err
			}
		}
		_, err := w.c.Commit(w.ctx(), p.Txn())
		return err
	}
	rev := w.revision()
	if err := both("first"); err != nil || w.revision() != rev+1 {
		t.Fatalf("%v, %d revisions for both families, want 1", err, w.revision()-rev)
	}
	if got := w.get(api.HandleKey("first")); got != `{"block":{"10.0.0.0/30":1,"fd00::/122":1},"deleted":false}` {
		t.Errorf("handle %s", got)
	}
	w.pool("six", `"cidr":"fd00::/122","blockSize":122,"disabled":true`)
	before := w.shape()
	if err := both("second"); !errors.Is(err, ipam.ErrNoPool) {
		t.Fatalf("without an IPv6 pool: %v", err)
	}
	if got := w.shape(); len(got) != len(before) || got[blockKey] != before[blockKey] {
		t.Errorf("the refused request wrote: %v", got)
	}
	if freed := w.release("first"); len(freed) != 2 {
		t.Errorf("freed %v, want one of each family", freed)
	}
}

func TestManualPoolsServeWhoNamesThem(t *testing.T) {
	w := newWorld(t)
	w.pool("pool", `"cidr":"10.0.0.0/30","blockSize":30,"assignmentMode":"Manual"`)
	if _, err := w.assign("node-1", ask("h")); !errors.Is(err, ipam.ErrNoPool) {
		t.Errorf("without a name: %v", err)
	}
	for _, name := range []string{"pool", "10.0.0.0/30"} {
		r := ask("by-" + strings.ReplaceAll(name, "/", "-"))
		r.Pools = []string{name}
		if a, err := w.assign("node-1", r); err != nil {
			t.Errorf("by %s: %v, %v", name, a, err)
		}
	}
	r := ask("tunnel")
	r.Pools, r.Use = []string{"pool"}, api.UseLoadBalancer
	if _, err := w.assign("node-1", r); !errors.Is(err, ipam.ErrNoPool) || !strings.Contains(err.Error(), "LoadBalancer") {
		t.Errorf("for a use that it does not allow: %v", err)
	}
}
