package api

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// fullBlock holds as many addresses as a block of the usual size.
func fullBlock() *Block {
	claimed := time.Date(2026, 11, 21, 5, 0, 0, 0, time.UTC)
	host := HostAffinityOf("node-1")
	b := &Block{
		CIDR: netip.MustParsePrefix("10.244.0.64/26"), Affinity: &host, ClaimTime: &claimed, Allocation: []*int{}, Unallocated: []int{},
		SequenceNumber: 1795238400000000000, SequenceNumberForAllocation: map[string]uint64{},
	}
	for i := range 64 {
		id := fmt.Sprintf("k8s-pod-network.%064d", i)
		b.Allocation = append(b.Allocation, &i)
		b.Attributes = append(b.Attributes, Attributes{HandleID: &id, Secondary: map[string]string{
			AttrNode: "node-1", AttrNamespace: "default", AttrPod: fmt.Sprint("pod-", i), AttrTimestamp: claimed.String(),
		}})
		b.SequenceNumberForAllocation[fmt.Sprint(i)] = b.SequenceNumber + uint64(i)
	}
	return b
}

// blockSeeds are blocks in the usual form and in others.
func blockSeeds(t testing.TB) []string {
	host, legacy, odd, one := "host:a", "a", "ä<\n", 1
	claimed := time.Date(2026, 11, 21, 5, 0, 0, 1, time.FixedZone("", 3600))
	out := []string{
		``, `{}`, `null`, ` {"cidr":"10.0.0.0/30"}`, `{"cidr":"10.0.0.0/30","affinity":null,"allocations":[01],"unallocated":[]`,
		`{"cidr":"10.0.0.0/30","affinity":null,"allocations":[null,-1],"unallocated":[0,],"attributes":[],"sequenceNumber":0,"sequenceNumberForAllocation":{},"deleted":false}`,
		`{"cidr":"10.0.0.0/30","affinity":null,"allocations":[0,99999999999],"unallocated":[0],"attributes":[null],"sequenceNumber":18446744073709551615,"sequenceNumberForAllocation":{"0":1,"0":2},"deleted":false}`,
		`{"cidr":"10.0.0.0/30","affinity":"host:a","allocations":[0],"unallocated":[1],"attributes":[{"handle_id":"h","secondary":{"b":"1","a":"2"}}],"sequenceNumber":1,"sequenceNumberForAllocation":{"0":1},"deleted":true,"more":1}`,
	}
	for _, b := range []*Block{
		fullBlock(), {}, {CIDR: netip.MustParsePrefix("fd00::/122"), HostAffinity: &legacy},
		{
			CIDR: netip.MustParsePrefix("10.0.0.0/30"), Affinity: &host, ClaimTime: &claimed, Allocation: []*int{nil, &one, nil, nil}, Unallocated: []int{0, 2, 3},
			Attributes:                  []Attributes{{}, {HandleID: &host, Secondary: map[string]string{}, Alternate: map[string]string{"x": "y"}}, {Alternate: map[string]string{"z": ""}}},
			SequenceNumberForAllocation: map[string]uint64{"1": 7, "": 1, "007": 2, "x": 3}, Deleted: true,
		},
		{CIDR: netip.MustParsePrefix("10.0.0.0/30"), Affinity: &odd},
	} {
		raw, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, string(raw))
	}
	return out
}

// FuzzBlockCodec holds the blocks' own reader and writer against encoding/json, the reader also where it may share with another block.
func FuzzBlockCodec(f *testing.F) {
	seeds := blockSeeds(f)
	for _, s := range seeds {
		f.Add([]byte(s), []byte(seeds[len(seeds)-1]))
		f.Add([]byte(s), []byte(s))
	}
	f.Fuzz(func(t *testing.T, raw, other []byte) {
		var like Block
		_ = like.readUsual(other, nil) // what could not be read is empty
		heldAgainstJSON(t, raw, (*Block).appendUsual, func(b *Block) bool { return b.readUsual(raw, &like) },
			func(b *Block) error { return json.Unmarshal(raw, b) }, func(b *Block) ([]byte, error) { return json.Marshal(b) })
	})
}

// heldAgainstJSON compares what a kind's own reader and writer make of raw with what encoding/json makes of it.
func heldAgainstJSON[T any](t *testing.T, raw []byte, write func(*T, []byte) ([]byte, bool), read func(*T) bool, decode func(*T) error, encode func(*T) ([]byte, error)) {
	var none, got, want T
	usual := read(&got)
	err := decode(&want)
	if !usual {
		if diff := cmp.Diff(none, got, sameBlock()...); diff != "" {
			t.Fatalf("left behind by a reader that gave up:\n%s", diff)
		}
	} else if err != nil {
		t.Fatalf("%s was read, and to encoding/json it is: %v", raw, err)
	} else if diff := cmp.Diff(want, got, sameBlock()...); diff != "" {
		t.Fatalf("%s was read differently (-encoding/json +own):\n%s", raw, diff)
	}
	if err != nil {
		return
	}
	plain, err := encode(&want)
	if own, ok := write(&want, nil); ok && (err != nil || string(own) != string(plain)) {
		t.Fatalf("written %s, and by encoding/json %s, %v", own, plain, err)
	}
}

// sameBlock compares times by what they are written as.
func sameBlock() []cmp.Option {
	return []cmp.Option{
		cmpopts.EquateComparable(netip.Prefix{}),
		cmpopts.IgnoreUnexported(Block{}),
		cmp.Comparer(func(a, b time.Time) bool { return a.Format(time.RFC3339Nano) == b.Format(time.RFC3339Nano) }),
	}
}

func TestUsualBlocksTakeTheShortWay(t *testing.T) {
	raw, ok := fullBlock().appendUsual(nil)
	if !ok {
		t.Fatal("a full block is not written by its own writer")
	}
	var got Block
	if !got.readUsual(raw, &Block{}) {
		t.Fatalf("a full block is not read by its own reader: %s", raw)
	}
	if diff := cmp.Diff(fullBlock(), &got, sameBlock()...); diff != "" {
		t.Errorf("not what was written (-want +got):\n%s", diff)
	}
}

func TestVersionsOfABlockShareTheirOwners(t *testing.T) {
	for _, gone := range []int{1, goneAtOnce} {
		before := readAgain(t, fullBlock(), nil)
		after := fullBlock()
		after.Attributes = append(after.Attributes[:5:5], after.Attributes[5+gone:]...)
		got := readAgain(t, after, before)
		if diff := cmp.Diff(after, got, sameBlock()...); diff != "" {
			t.Errorf("not what was written (-want +got):\n%s", diff)
		}
		if got.Attributes[0].HandleID != before.Attributes[0].HandleID || got.Attributes[63-gone].HandleID != before.Attributes[63].HandleID {
			t.Errorf("%d have left: the owners before and behind them are not those of the version before", gone)
		}
	}
}

// readAgain is the block after it was written, read by one who has read like.
func readAgain(t *testing.T, b, like *Block) *Block {
	t.Helper()
	raw, err := Encode(b, nil)
	if err != nil {
		t.Fatal(err)
	}
	got, whole, err := DecodeLike(raw, like)
	if err != nil || !whole {
		t.Fatalf("whole: %t, error %v", whole, err)
	}
	return got
}

// TestVersionsOfABlockAreReadAlike reads versions in which owners come, go, change and change places, each after each.
func TestVersionsOfABlockAreReadAlike(t *testing.T) {
	change := func(f func(b *Block)) *Block {
		b := fullBlock()
		f(b)
		return b
	}
	versions := []*Block{
		fullBlock(),
		change(func(b *Block) { b.Attributes = nil }),
		change(func(b *Block) { b.Attributes = []Attributes{} }),
		change(func(b *Block) { b.Attributes = b.Attributes[60:] }),
		change(func(b *Block) { b.Attributes = append(b.Attributes[:1:1], b.Attributes[30:]...) }),
		change(func(b *Block) { slices.Reverse(b.Attributes) }),
		change(func(b *Block) {
			b.Attributes[7].Secondary = maps.Clone(b.Attributes[7].Secondary)
			b.Attributes[7].Secondary[AttrPod] += "x"
		}),
		change(func(b *Block) { b.Attributes[7].HandleID = nil }),
		change(func(b *Block) { b.Attributes[7].Alternate = map[string]string{AttrNode: "node-2"} }),
		change(func(b *Block) { b.Attributes[7] = b.Attributes[8] }),
	}
	for i, want := range versions {
		for j, like := range versions {
			before := readAgain(t, like, readAgain(t, versions[0], nil))
			before.Attributes = nil // what becomes of a block is nothing to whoever reads the next one
			if diff := cmp.Diff(want, readAgain(t, want, before), sameBlock()...); diff != "" {
				t.Errorf("version %d after %d (-want +got):\n%s", i, j, diff)
			}
		}
	}
}

func BenchmarkBlock(b *testing.B) {
	raw, err := Encode(fullBlock(), nil)
	if err != nil {
		b.Fatal(err)
	}
	full, err := Decode[Block](raw)
	if err != nil {
		b.Fatal(err)
	}
	for name, f := range map[string]func() error{
		"decode":      func() error { _, err := Decode[Block](raw); return err },
		"decode-like": func() error { _, _, err := DecodeLike(raw, full); return err },
		"encode":      func() error { _, err := Encode(full, nil); return err },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := f(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
