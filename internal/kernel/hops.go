package kernel

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Hop is one way of a route.
type Hop struct {
	Gateway netip.Addr // without a zone: Dev says the link
	Dev     Dev
	Onlink  bool
}

// Hops are the ways between which a route shares its traffic in equal parts, as Route.Via writes them: a string, so that a Route stays
// comparable, and costs those that have one way nothing but a comparison with "".
type Hops string

// Via returns the route with these ways; the order says nothing. It is a route without Hops if there is only one.
func (r Route) Via(hops ...Hop) Route {
	r.Dev, r.Gateway, r.Onlink, r.Hops = Dev{}, netip.Addr{}, false, ""
	hops = slices.Clone(hops)
	slices.SortFunc(hops, func(a, b Hop) int {
		return cmp.Or(a.Gateway.Compare(b.Gateway), cmp.Compare(a.Dev.Index, b.Dev.Index))
	})
	hops = slices.Compact(hops)
	if len(hops) == 1 {
		r.Dev, r.Gateway, r.Onlink = hops[0].Dev, hops[0].Gateway, hops[0].Onlink
		return r
	}
	var b strings.Builder
	for _, h := range hops {
		fmt.Fprintf(&b, "%v %d %v %s\n", h.Gateway, h.Dev.Index, h.Onlink, h.Dev.Name)
	}
	r.Hops = Hops(b.String())
	return r
}

// List returns the ways in their order; none of a route without Hops.
func (h Hops) List() []Hop {
	var out []Hop
	for line := range strings.Lines(string(h)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		if len(f) < 4 {
			continue
		}
		var x Hop
		x.Gateway, _ = netip.ParseAddr(f[0]) // Via has written it
		x.Dev.Index, _ = strconv.Atoi(f[1])
		x.Onlink, x.Dev.Name = f[2] == "true", f[3]
		out = append(out, x)
	}
	return out
}

// On tells whether the route, or one of its ways, leads through the device with the index.
func (r Route) On(index int) bool {
	return r.Dev.Index == index || r.Hops != "" && slices.ContainsFunc(r.Hops.List(), func(h Hop) bool { return h.Dev.Index == index })
}
