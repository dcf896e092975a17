package kernel

import (
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func hops() *rapid.Generator[[]Hop] {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Hop {
		return Hop{
			Gateway: netip.AddrFrom4([4]byte{10, 0, 0, rapid.Byte().Draw(t, "gateway")}),
			Dev:     rapid.SampledFrom([]Dev{{"eth0", 2}, {"eth1", 3}, {"a b", 4}}).Draw(t, "device"),
			Onlink:  rapid.Bool().Draw(t, "onlink"),
		}
	}), 1, 5)
}

func TestRouteSaysTheSameWhateverTheOrderOfItsWays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		list := rapid.SliceOfNDistinct(rapid.IntRange(2, 9), 2, 5, rapid.ID[int]).Draw(t, "hosts")
		var ways []Hop
		for _, n := range list {
			ways = append(ways, Hop{Gateway: netip.AddrFrom4([4]byte{10, 0, 0, byte(n)}), Dev: Dev{"eth0", 2}})
		}
		r := Route{Protocol: 80}.Via(ways...)
		slices.Reverse(ways)
		if again := (Route{Protocol: 80}).Via(ways...); again != r {
			t.Fatalf("%q and %q", r.Hops, again.Hops)
		}
		if r.Gateway.IsValid() || r.Dev != (Dev{}) || len(r.Hops.List()) != len(ways) {
			t.Fatalf("%+v of %v", r, ways)
		}
	})
}

func TestWaysOfARouteComeBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ways := hops().Draw(t, "ways")
		r := Route{}.Via(ways...)
		got := r.Hops.List()
		if r.Hops == "" {
			got = []Hop{{Gateway: r.Gateway, Dev: r.Dev, Onlink: r.Onlink}}
		}
		for _, h := range ways {
			if !slices.Contains(got, h) || !r.On(h.Dev.Index) {
				t.Fatalf("%v is not in %v", h, got)
			}
		}
		if r.On(9) || len(got) > len(ways) {
			t.Fatalf("%v of %v", got, ways)
		}
	})
}
