package kernel

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Text is the state as the usual tools print it, one object a line, sorted: the same state gives the same text.
func (s State) Text() string {
	var b strings.Builder
	section(&b, "sysctl", lines(s.Sysctls, func(k SysctlKey, v string) string { return k.Path + " = " + v }))
	section(&b, "ip -d link", lines(s.Links, linkText))
	section(&b, "wg", append(lines(s.WireGuard, WireGuardText), lines(s.Peers, PeerText)...))
	section(&b, "ip addr", lines(s.Addrs, addrText))
	section(&b, "ip neigh", lines(s.Neighs, func(k NeighKey, m MAC) string {
		return fmt.Sprintf("%v dev %v lladdr %v PERMANENT", k.Addr, k.Dev, m)
	}))
	section(&b, "bridge fdb", lines(s.FDB, func(k FDBKey, dst netip.Addr) string {
		return fmt.Sprintf("%v dev %v dst %v self permanent", k.MAC, k.Dev, dst)
	}))
	section(&b, "ip rule", lines(s.Rules, func(r Rule, _ struct{}) string { return r.String() }))
	section(&b, "ip route", routeLines(s.Routes))
	section(&b, "ip route, not yet", lines(s.Held, heldText))
	section(&b, "ipset", lines(s.Sets, func(k SetKey, v Set) string { return string(k) + ": " + strings.ReplaceAll(v.Members, ",", " ") }))
	section(&b, "iptables", lines(s.Chains, chainText))
	section(&b, "ip6tables", lines(s.Chains6, chainText))
	return b.String()
}

func heldText(k RouteKey, r Route) string {
	if r == (Route{}) {
		return k.Dst.String()
	}
	return k.Dst.String() + ", meanwhile where there is none: " + RouteText(k, r)
}

func linkText(name string, l Link) string {
	if l.Type == IPIP {
		return fmt.Sprintf("%s mtu %d link/ipip any remote any local any", name, l.MTU)
	}
	if l.Type == WireGuardLink {
		return fmt.Sprintf("%s mtu %d link/none wireguard", name, l.MTU)
	}
	return fmt.Sprintf("%s mtu %d link/ether %v vxlan id %d local %v dev %v dstport %d nolearning", name, l.MTU, l.MAC, l.VNI, l.Local, l.Parent, l.Port)
}

func addrText(k AddrKey, _ struct{}) string {
	family := " inet "
	if k.Addr.Addr().Is6() {
		family = " inet6 "
	}
	return k.Link + family + k.Addr.String()
}

func chainText(k ChainKey, c Chain) string {
	var out []string
	for _, r := range strings.Split(c.Rules, "\n") {
		out = append(out, "-t "+k.Table+" -A "+k.Chain+" "+r)
	}
	return strings.Join(out, "\n")
}

// RouteText is a route as `ip route` prints it.
func RouteText(k RouteKey, r Route) string {
	dst := k.Dst.String()
	if k.Dst.IsSingleIP() {
		dst = k.Dst.Addr().String()
	}
	var b strings.Builder
	switch r.Type {
	case Blackhole:
		b.WriteString("blackhole ")
	case Prohibit:
		b.WriteString("prohibit ")
	case Throw:
		b.WriteString("throw ")
	}
	b.WriteString(dst)
	if r.Gateway.IsValid() {
		fmt.Fprintf(&b, " via %v", r.Gateway)
	}
	if r.Dev.Name != "" {
		fmt.Fprintf(&b, " dev %v", r.Dev)
	}
	if k.Table != 0 {
		fmt.Fprintf(&b, " table %d", k.Table)
	}
	fmt.Fprintf(&b, " proto %d", r.Protocol)
	if r.Scope == LinkScope {
		b.WriteString(" scope link")
	}
	if r.Src.IsValid() {
		fmt.Fprintf(&b, " src %v", r.Src)
	}
	if k.Metric != 0 {
		fmt.Fprintf(&b, " metric %d", k.Metric)
	}
	if r.Onlink {
		b.WriteString(" onlink")
	}
	for _, h := range r.Hops.List() {
		fmt.Fprintf(&b, " nexthop via %v dev %v", h.Gateway, h.Dev)
		if h.Onlink {
			b.WriteString(" onlink")
		}
	}
	return b.String()
}

func routeLines(routes map[RouteKey]Route) []string {
	keys := slices.SortedFunc(maps.Keys(routes), func(a, b RouteKey) int {
		return cmp.Or(cmp.Compare(a.Table, b.Table), a.Dst.Compare(b.Dst), cmp.Compare(a.Metric, b.Metric))
	})
	out := make([]string, len(keys))
	for i, k := range keys {
		out[i] = RouteText(k, routes[k])
	}
	return out
}

func lines[K comparable, V any](m map[K]V, text func(K, V) string) []string {
	out := make([]string, 0, len(m))
	for k, v := range m {
		out = append(out, text(k, v))
	}
	slices.Sort(out)
	return out
}

func section(b *strings.Builder, title string, body []string) {
	if len(body) == 0 {
		return
	}
	fmt.Fprintf(b, "## %s\n%s\n", title, strings.Join(body, "\n"))
}
