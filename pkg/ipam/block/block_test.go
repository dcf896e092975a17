package block_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
)

var then = time.Date(2026, 11, 20, 16, 22, 11, 752366561, time.UTC)

var sameBlock = cmp.Options{cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{}), cmpopts.EquateEmpty(), cmpopts.IgnoreUnexported(api.Block{})}

func newBlock(t testing.TB, cidr string) *api.Block {
	t.Helper()
	b, err := block.New(netip.MustParsePrefix(cidr), "node-1", then)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func owner(id string) block.Owner {
	return block.Owner{HandleID: id, Attrs: map[string]string{api.AttrNode: "node-1"}}
}

func assign(t *testing.T, b *api.Block, id string) (netip.Addr, *api.Block) {
	t.Helper()
	addrs, next := block.Assign(b, 1, owner(id))
	if len(addrs) != 1 {
		t.Fatalf("no address for %s", id)
	}
	return addrs[0], next
}

func encode(t testing.TB, b *api.Block) string {
	t.Helper()
	raw, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func TestStoredFormThroughTheLifeOfAnAddress(t *testing.T) {
	b := newBlock(t, "10.0.0.0/30")
	want := func(json string) {
		t.Helper()
		if diff := cmp.Diff(json, encode(t, b)); diff != "" {
			t.Errorf("stored block (-want +got):\n%s", diff)
		}
	}
	head := `{"cidr":"10.0.0.0/30","affinity":"host:node-1","affinity_claim_time":"2026-11-20T16:22:11Z",`
	want(head + `"allocations":[null,null,null,null],"unallocated":[0,1,2,3],"attributes":null,"sequenceNumber":1795191731752366561,"sequenceNumberForAllocation":{},"deleted":false}`)
	_, b = assign(t, b, "net.a")
	_, b = assign(t, b, "net.b")
	want(head + `"allocations":[0,1,null,null],"unallocated":[2,3],"attributes":[{"handle_id":"net.a","secondary":{"node":"node-1"}},{"handle_id":"net.b","secondary":{"node":"node-1"}}],"sequenceNumber":1795191731752366563,"sequenceNumberForAllocation":{"0":1795191731752366561,"1":1795191731752366562},"deleted":false}`)
	_, b = block.ReleaseHandle(b, "net.a")
	want(head + `"allocations":[null,0,null,null],"unallocated":[2,3,0],"attributes":[{"handle_id":"net.b","secondary":{"node":"node-1"}}],"sequenceNumber":1795191731752366564,"sequenceNumberForAllocation":{"1":1795191731752366562},"deleted":false}`)
	_, b = block.ReleaseHandle(b, "net.b")
	want(head + `"allocations":[null,null,null,null],"unallocated":[2,3,0,1],"attributes":[],"sequenceNumber":1795191731752366565,"sequenceNumberForAllocation":{},"deleted":false}`)
}

func TestFreedAddressComesBackLast(t *testing.T) {
	b := newBlock(t, "10.0.0.0/30")
	first, b := assign(t, b, "a")
	_, b = block.ReleaseHandle(b, "a")
	var got []netip.Addr
	for i := range 4 {
		var a netip.Addr
		a, b = assign(t, b, fmt.Sprint("b", i))
		got = append(got, a)
	}
	if got[3] != first || slices.Contains(got[:3], first) {
		t.Errorf("%v was freed first and is handed out again in %v; want it last", first, got)
	}
	if addrs, same := block.Assign(b, 1, owner("c")); addrs != nil || same != b {
		t.Errorf("a full block gave %v", addrs)
	}
}

func TestOrdinalsOfBothFamilies(t *testing.T) {
	for _, c := range []struct {
		cidr string
		n    int
		addr string
	}{
		{"10.244.62.192/26", 0, "10.244.62.192"},
		{"10.244.62.192/26", 63, "10.244.62.255"},
		{"10.244.48.0/20", 4095, "10.244.63.255"},
		{"10.0.0.7/32", 0, "10.0.0.7"},
		{"fd00:10:244::40/122", 63, "fd00:10:244::7f"},
		{"fd00::f000/116", 4095, "fd00::ffff"},
	} {
		cidr, addr := netip.MustParsePrefix(c.cidr), netip.MustParseAddr(c.addr)
		if got := block.Addr(cidr, c.n); got != addr {
			t.Errorf("address %d of %v = %v, want %v", c.n, cidr, got, addr)
		}
		if n, ok := block.Ordinal(cidr, addr); !ok || n != c.n {
			t.Errorf("ordinal of %v in %v = %d, %v; want %d", addr, cidr, n, ok, c.n)
		}
		if _, ok := block.Ordinal(cidr, block.Addr(cidr, block.Size(cidr)-1).Next()); ok {
			t.Errorf("the address after %v has an ordinal in it", cidr)
		}
	}
}

func TestNewRefusesWhatIsNoBlock(t *testing.T) {
	for _, cidr := range []netip.Prefix{{}, netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("10.0.0.1/26"), netip.MustParsePrefix("fd00::/64")} {
		if b, err := block.New(cidr, "n", then); err == nil {
			t.Errorf("New(%v) = %v, want an error", cidr, b)
		}
	}
}

func TestEqualOwnersShareOneEntry(t *testing.T) {
	b := newBlock(t, "10.0.0.0/29")
	_, b = assign(t, b, "a")
	_, b = block.Assign(b, 2, owner("a"))
	_, b = block.Assign(b, 1, block.Owner{HandleID: "a", Attrs: map[string]string{"node": "other"}})
	if len(b.Attributes) != 2 {
		t.Errorf("%d entries for two different owners: %v", len(b.Attributes), encode(t, b))
	}
	if got := len(block.Owned(b, "a")); got != 4 {
		t.Errorf("handle owns %d addresses, want 4", got)
	}
}

func TestReleaseAddrChecksHolder(t *testing.T) {
	b := newBlock(t, "10.0.0.0/30")
	a, b := assign(t, b, "mine\rx")
	seq, wrong := then.UnixNano(), uint64(7)
	right := uint64(seq)
	for _, c := range []struct {
		name string
		r    block.Release
		want error
	}{
		{"another handle", block.Release{Addr: a, Handle: "theirs"}, block.ErrDifferent},
		{"another sequence number", block.Release{Addr: a, Handle: "mine", Seq: &wrong}, block.ErrDifferent},
		{"free address", block.Release{Addr: a.Next()}, block.ErrNotHeld},
		{"outside", block.Release{Addr: netip.MustParseAddr("10.1.0.0")}, block.ErrOutside},
		{"other family", block.Release{Addr: netip.MustParseAddr("fd00::1")}, block.ErrOutside},
		{"right", block.Release{Addr: a, Handle: "mine\ry", Seq: &right}, nil},
		{"unconditional", block.Release{Addr: a}, nil},
	} {
		next, err := block.ReleaseAddr(b, c.r)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: error %v, want %v", c.name, err, c.want)
		}
		if c.want == nil && block.Free(next) != 4 {
			t.Errorf("%s: %d addresses free, want 4", c.name, block.Free(next))
		}
	}
}

func TestAssignAddrTakesExactlyThatOne(t *testing.T) {
	b := newBlock(t, "fd00::40/122")
	a := netip.MustParseAddr("fd00::45")
	b, err := block.AssignAddr(b, a, owner("a"))
	if err != nil {
		t.Fatal(err)
	}
	if o, ok := block.OwnerOf(b, a); !ok || *o.HandleID != "a" {
		t.Errorf("owner of %v: %v, %v", a, o, ok)
	}
	if _, err := block.AssignAddr(b, a, owner("b")); !errors.Is(err, block.ErrTaken) {
		t.Errorf("second assignment: %v, want ErrTaken", err)
	}
	if _, err := block.AssignAddr(b, netip.MustParseAddr("fd00::1"), owner("b")); !errors.Is(err, block.ErrOutside) {
		t.Errorf("address outside: %v, want ErrOutside", err)
	}
	if err := block.Validate(b); err != nil {
		t.Error(err)
	}
}

func TestEmptyIgnoresWhatWindowsReserves(t *testing.T) {
	b := newBlock(t, "10.0.0.0/29")
	_, b = assign(t, b, "Windows-Reserved-IPAM-handle")
	if !block.Empty(b) {
		t.Error("a block with only reserved addresses is not empty")
	}
	_, b = assign(t, b, "pod")
	if block.Empty(b) {
		t.Error("a block with a pod is empty")
	}
}

func TestReleaseKeepsAddressesOfUnknownOwners(t *testing.T) {
	raw := `{"cidr":"10.0.0.0/30","affinity":null,"allocations":[7,0,-1,null],"unallocated":[3,3,9,-1,1],"attributes":[{"handle_id":"a"}],"sequenceNumber":1,"sequenceNumberForAllocation":null,"deleted":false}`
	b, err := api.Decode[api.Block]([]byte(raw))
	if err != nil {
		t.Fatal(err)
	}
	if block.Validate(b) == nil {
		t.Error("a damaged block is valid")
	}
	_, b = block.ReleaseHandle(b, "a")
	if err := block.Validate(b); err != nil {
		t.Errorf("after a release: %v in %s", err, encode(t, b))
	}
	if got, want := b.Unallocated, []int{3, 1}; !slices.Equal(got, want) {
		t.Errorf("free %v, want %v", got, want)
	}
}

// TestAnyHistoryKeepsTheBlockConsistent holds the block against a plain map while addresses come and go.
func TestAnyHistoryKeepsTheBlockConsistent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cidr := netip.MustParsePrefix(rapid.SampledFrom([]string{"10.0.0.8/29", "fd00::10/125", "10.0.0.1/32"}).Draw(t, "cidr"))
		b, err := block.New(cidr, "n", then)
		if err != nil {
			t.Fatal(err)
		}
		held := map[netip.Addr]string{}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			id := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "handle")
			before, seq := encodeRapid(t, b), b.SequenceNumber
			next := step(t, b, id, held)
			if encodeRapid(t, b) != before {
				t.Fatalf("the step changed its input")
			}
			if next != b && next.SequenceNumber != seq+1 {
				t.Fatalf("sequence number went from %d to %d", seq, next.SequenceNumber)
			}
			b = next
			agree(t, b, held)
		}
	})
}

func step(t *rapid.T, b *api.Block, id string, held map[netip.Addr]string) *api.Block {
	addr := block.Addr(b.CIDR, rapid.IntRange(0, block.Size(b.CIDR)-1).Draw(t, "ordinal"))
	switch rapid.IntRange(0, 3).Draw(t, "op") {
	case 0:
		n := rapid.IntRange(-1, 3).Draw(t, "n")
		room := block.Size(b.CIDR) - len(held)
		addrs, next := block.Assign(b, n, owner(id))
		if want := min(max(n, 0), room); len(addrs) != want {
			t.Fatalf("asked for %d of %d free, got %v", n, room, addrs)
		}
		for _, a := range addrs {
			if held[a] != "" {
				t.Fatalf("%v was given to %s and to %s", a, held[a], id)
			}
			held[a] = id
		}
		return next
	case 1:
		next, err := block.AssignAddr(b, addr, owner(id))
		if (err == nil) != (held[addr] == "") {
			t.Fatalf("assign %v held by %q: %v", addr, held[addr], err)
		}
		if err == nil {
			held[addr] = id
		}
		return next
	case 2:
		addrs, next := block.ReleaseHandle(b, id)
		for _, a := range addrs {
			if held[a] != id {
				t.Fatalf("release of %s freed %v, held by %q", id, a, held[a])
			}
			delete(held, a)
		}
		return next
	default:
		next, err := block.ReleaseAddr(b, block.Release{Addr: addr, Handle: id})
		if (err == nil) != (held[addr] == id) {
			t.Fatalf("release %v of %q by %s: %v", addr, held[addr], id, err)
		}
		if err == nil {
			delete(held, addr)
		}
		return next
	}
}

func agree(t *rapid.T, b *api.Block, held map[netip.Addr]string) {
	if err := block.Validate(b); err != nil {
		t.Fatal(err)
	}
	if got, want := block.Free(b), block.Size(b.CIDR)-len(held); got != want {
		t.Fatalf("%d free, want %d", got, want)
	}
	if block.Empty(b) != (len(held) == 0) {
		t.Fatalf("empty %v with %d held", block.Empty(b), len(held))
	}
	if len(b.SequenceNumberForAllocation) != len(held) {
		t.Fatalf("%d sequence numbers for %d addresses", len(b.SequenceNumberForAllocation), len(held))
	}
	for _, id := range []string{"a", "b", "c"} {
		for _, a := range block.Owned(b, id) {
			if held[a] != id {
				t.Fatalf("%v belongs to %q, the block says %s", a, held[a], id)
			}
		}
	}
	raw := encodeRapid(t, b)
	back, err := api.Decode[api.Block]([]byte(raw))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(b, back, sameBlock); diff != "" {
		t.Fatalf("through JSON (-wrote +read):\n%s", diff)
	}
}

func encodeRapid(t *rapid.T, b *api.Block) string {
	raw, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// FuzzForeignBlock works on blocks that others wrote: nothing panics, a held address is never given away, and what is given
// is held afterwards.
func FuzzForeignBlock(f *testing.F) {
	f.Add([]byte(`{"cidr":"10.0.0.0/30","allocations":[0,null],"unallocated":[1,1,5,-2],"attributes":[{"handle_id":"a"}],"sequenceNumber":1}`))
	f.Add([]byte(`{"cidr":"10.0.0.0/0","allocations":[],"unallocated":[0]}`))
	f.Add([]byte(`{"cidr":"fd00::/122","allocations":[9,-1],"unallocated":[0,1,2],"attributes":null}`))
	f.Add([]byte(`{"cidr":"10.0.0.3/30","allocations":[null,null,null,null],"unallocated":[3,2],"attributes":[{},{}]}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		b, err := api.Decode[api.Block](raw)
		if err != nil {
			return
		}
		_ = block.Validate(b)
		_ = block.Empty(b)
		before := encode(t, b)
		addrs, next := block.Assign(b, 2, owner("new"))
		for _, a := range addrs {
			if _, taken := block.OwnerOf(b, a); taken {
				t.Errorf("%v was given away though it is held", a)
			}
			if o, ok := block.OwnerOf(next, a); !ok || o.HandleID == nil || *o.HandleID != "new" {
				t.Errorf("%v was given, and its owner is %v", a, o)
			}
		}
		freed, last := block.ReleaseHandle(next, "new")
		if len(freed) < len(addrs) {
			t.Errorf("gave %v, took back %v", addrs, freed)
		}
		if len(freed) > 0 && len(block.Owned(last, "new")) > 0 {
			t.Errorf("still owned after the release: %v", block.Owned(last, "new"))
		}
		for _, n := range []int{-1, 0, 1, 1 << 20} {
			_, _ = block.AssignAddr(b, block.Addr(b.CIDR, n), owner("x"))
			_, _ = block.ReleaseAddr(b, block.Release{Addr: block.Addr(b.CIDR, n)})
		}
		if encode(t, b) != before {
			t.Error("the input was changed")
		}
	})
}

func TestAddressesThatAreNotAllowedKeepTheirPlaceInTheQueue(t *testing.T) {
	b := newBlock(t, "10.0.0.0/30")
	odd := func(a netip.Addr) bool { return a.As4()[3]%2 == 1 }
	if got := block.FreeWhere(b, odd); got != 2 {
		t.Errorf("%d addresses are allowed, want 2", got)
	}
	addrs, next := block.AssignWhere(b, 3, owner("a"), odd)
	if fmt.Sprint(addrs) != "[10.0.0.1 10.0.0.3]" || fmt.Sprint(next.Unallocated) != "[0 2]" || block.FreeWhere(next, odd) != 0 {
		t.Errorf("got %v, left %v", addrs, next.Unallocated)
	}
	if none, same := block.AssignWhere(next, 1, owner("b"), odd); none != nil || same != next {
		t.Errorf("got %v of what is not allowed", none)
	}
	if err := block.Validate(next); err != nil {
		t.Error(err)
	}
}

func TestDisownedBlockKeepsItsAddresses(t *testing.T) {
	_, b := assign(t, newBlock(t, "10.0.0.0/30"), "a")
	got := block.Disown(b)
	if !got.Unowned() || got.ClaimTime != nil || b.Unowned() || got.SequenceNumber != b.SequenceNumber+1 || len(block.Owned(got, "a")) != 1 {
		t.Errorf("got %+v of %+v", got, b)
	}
	legacy := *got
	legacy.HostAffinity = b.Affinity
	if block.Disown(&legacy).HostAffinity != nil {
		t.Error("the affinity that old versions wrote is left")
	}
}
