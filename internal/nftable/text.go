package nftable

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math/bits"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Text returns the table in nft's language: `nft -f` makes the same table of it as internal/nft does.
// Everything is in the order of names, so equal tables have equal text.
func (t *Table) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "table inet %s {\n", t.Name)
	for _, name := range slices.Sorted(maps.Keys(t.Counters)) {
		fmt.Fprintf(&b, "\tcounter %s {\n\t}\n", name)
	}
	for _, name := range slices.Sorted(maps.Keys(t.Sets)) {
		b.WriteString(t.Sets[name].Text())
	}
	for _, name := range slices.Sorted(maps.Keys(t.Chains)) {
		b.WriteString(t.Chains[name].Text())
	}
	b.WriteString("}\n")
	return b.String()
}

// Text returns the chain in nft's language.
func (c *Chain) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\tchain %s {\n", c.Name)
	if c.Base.Hook != "" {
		fmt.Fprintf(&b, "\t\ttype filter hook %s priority %d; policy accept;\n", c.Base.Hook, c.Base.Priority)
	}
	for i, r := range c.Rules {
		fmt.Fprintf(&b, "\t\t%s comment %q\n", r.text(), r.CommentOf(c.marks[i]))
	}
	b.WriteString("\t}\n")
	return b.String()
}

// text returns the rule in nft's language, without its comment.
func (r Rule) text() string {
	b := make([]byte, 0, 160)
	for i, s := range r.Stmts {
		if i > 0 {
			b = append(b, ' ')
		}
		b = s.appendText(b)
	}
	return string(b)
}

// Text returns the set in nft's language.
func (s *Set) Text() string {
	kind, data, flags := "set", "", ""
	if s.Map {
		kind, data = "map", " : verdict"
	}
	switch {
	case s.Interval:
		flags = "\t\tflags interval\n"
	case s.Dynamic > 0:
		flags = fmt.Sprintf("\t\tsize %d\n\t\tflags %s\n", s.Dynamic, dir(s.Forgets, "dynamic,timeout", "dynamic"))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "\t%s %s {\n\t\ttype %s%s\n%s", kind, s.Name, s.Type, data, flags)
	if len(s.Elems) > 0 {
		var elems []string
		for _, e := range s.Sorted() {
			elems = append(elems, s.elemText(e))
		}
		fmt.Fprintf(&b, "\t\telements = { %s }\n", strings.Join(elems, ", "))
	}
	b.WriteString("\t}\n")
	return b.String()
}

func (s *Set) elemText(e Elem) string {
	switch {
	case s.Map:
		return keyText(s.Type, e.Key) + " : goto " + e.To
	case s.Interval:
		return rangeText(s.Type, e)
	default:
		return keyText(s.Type, e.Key)
	}
}

func rangeText(typ Type, e Elem) string {
	if e.To == string(e.Key) {
		return keyText(typ, e.Key)
	}
	if p, ok := prefixOf(e); ok && typ != Ports {
		return p.String()
	}
	return keyText(typ, e.Key) + "-" + keyText(typ, Key(e.To))
}

// prefixOf returns a range as a prefix, if it is one.
func prefixOf(e Elem) (netip.Prefix, bool) {
	a, ok := netip.AddrFromSlice([]byte(e.Key))
	if !ok || len(e.To) != len(e.Key) {
		return netip.Prefix{}, false
	}
	common := 0
	for i := range len(e.Key) {
		n := bits.LeadingZeros8(e.Key[i] ^ e.To[i])
		common += n
		if n < 8 {
			break
		}
	}
	p := netip.PrefixFrom(a, common)
	return p, p.Masked().Addr() == a && string(AddrKey(last(p))) == e.To
}

// String returns the type in nft's language.
func (t Type) String() string {
	switch t {
	case Addr4:
		return "ipv4_addr"
	case Addr6:
		return "ipv6_addr"
	case Ports:
		return "inet_service"
	case Ifaces:
		return "ifname"
	case IfaceAddr4:
		return "ifname . ipv4_addr"
	case IfaceAddr6:
		return "ifname . ipv6_addr"
	case AddrPort4:
		return "ipv4_addr . inet_proto . inet_service"
	case AddrPort6:
		return "ipv6_addr . inet_proto . inet_service"
	case ProtoPorts:
		return "inet_proto . inet_service"
	case IfaceParts:
		return "ifname . mark"
	}
	return "invalid"
}

// Width returns how many bytes a key of the type has.
func (t Type) Width() int {
	switch t {
	case Addr4:
		return 4
	case Ports:
		return 2
	case Addr6, Ifaces:
		return 16
	case ProtoPorts:
		return 8
	case AddrPort4:
		return 12
	case AddrPort6:
		return 24
	case IfaceAddr4, IfaceParts:
		return 20
	case IfaceAddr6:
		return 32
	}
	return 0
}

// keyText returns a key in nft's language, or in hexadecimal if it is no key of the type.
func keyText(typ Type, k Key) string {
	if len(k) != typ.Width() {
		return fmt.Sprintf("0x%x", string(k))
	}
	switch typ {
	case Addr4, Addr6:
		return addrText(k)
	case Ports:
		return strconv.Itoa(int(binary.BigEndian.Uint16([]byte(k))))
	case Ifaces:
		return strconv.Quote(strings.TrimRight(string(k), "\x00"))
	case IfaceAddr4, IfaceAddr6:
		return keyText(Ifaces, k[:ifaceLen]) + " . " + addrText(k[ifaceLen:])
	case AddrPort4, AddrPort6:
		n := len(k) - 8
		return addrText(k[:n]) + " . " + keyText(ProtoPorts, k[n:])
	case IfaceParts:
		return fmt.Sprintf("%s . %#x", keyText(Ifaces, k[:ifaceLen]), binary.NativeEndian.Uint32([]byte(k[ifaceLen:])))
	default:
		return strconv.Itoa(int(k[0])) + " . " + keyText(Ports, k[4:6])
	}
}

func addrText(k Key) string {
	a, _ := netip.AddrFromSlice([]byte(k))
	return a.String()
}

func (s Iface) appendText(b []byte) []byte {
	return append(b, dir(s.Out, "oifname ", "iifname ")+strconv.Quote(s.Name)...)
}

func (s Family) appendText(b []byte) []byte {
	return append(b, "meta nfproto "+dir(s.V6, "ipv6", "ipv4")...)
}

func (s Proto) appendText(b []byte) []byte {
	return fmt.Appendf(b, "meta l4proto %s%d", not(s.Not), s.Number)
}

func (s Addr) appendText(b []byte) []byte {
	return append(b, addrField(s.Dst, s.Prefix.Addr().Is6())+" "+not(s.Not)+s.Prefix.String()...)
}

func (s AddrIn) appendText(b []byte) []byte {
	return append(b, addrField(s.Dst, s.V6)+" "+not(s.Not)+"@"+s.Set...)
}

func (s Port) appendText(b []byte) []byte {
	b = append(b, portField(s.Dst)+" "+not(s.Not)...)
	b = strconv.AppendUint(b, uint64(s.First), 10)
	if s.Last == s.First {
		return b
	}
	return strconv.AppendUint(append(b, '-'), uint64(s.Last), 10)
}

func (s PortIn) appendText(b []byte) []byte {
	return append(b, portField(s.Dst)+" "+not(s.Not)+"@"+s.Set...)
}

func (s AddrPortIn) appendText(b []byte) []byte {
	return append(b, addrField(s.Dst, s.V6)+" . meta l4proto . "+portField(s.Dst)+" "+not(s.Not)+"@"+s.Set...)
}

func (s IfaceAddrIn) appendText(b []byte) []byte {
	return append(b, "iifname . "+addrField(false, s.V6)+" @"+s.Set...)
}

func (s ProtoPortIn) appendText(b []byte) []byte {
	return append(b, "meta l4proto . "+portField(s.Dst)+" @"+s.Set...)
}

func (s ICMP) appendText(b []byte) []byte {
	if !s.HasCode {
		return fmt.Appendf(b, "%s type %s%d", dir(s.V6, "icmpv6", "icmp"), not(s.Not), s.Type)
	}
	return fmt.Appendf(b, "@th,0,16 %s%#x", not(s.Not), uint16(s.Type)<<8|uint16(s.Code))
}

func (s Mark) appendText(b []byte) []byte {
	return fmt.Appendf(b, "meta mark & %#08x %s %#08x", s.Mask, dir(s.Not, "!=", "=="), s.Value)
}

func (s State) appendText(b []byte) []byte {
	var names []string
	for _, n := range []struct {
		bit  State
		name string
	}{{Invalid, "invalid"}, {Established, "established"}, {Related, "related"}, {Untracked, "untracked"}} {
		if s&n.bit != 0 {
			names = append(names, n.name)
		}
	}
	return append(b, "ct state "+strings.Join(names, ",")...)
}

func (Local) appendText(b []byte) []byte { return append(b, "fib daddr type local"...) }

func (s Limit) appendText(b []byte) []byte {
	return fmt.Appendf(b, "limit rate %d/%v burst %d packets", s.Rate, s.Unit, s.Burst)
}

func (s SetMark) appendText(b []byte) []byte {
	if s.Clear == 0 {
		return fmt.Appendf(b, "meta mark set meta mark | %#08x", s.Set)
	}
	if s.Set == 0 {
		return fmt.Appendf(b, "meta mark set meta mark & %#08x", ^s.Clear)
	}
	return fmt.Appendf(b, "meta mark set meta mark & %#08x | %#08x", ^s.Clear, s.Set)
}

func (s Log) appendText(b []byte) []byte {
	return fmt.Appendf(b, "log prefix %q group %d snaplen %d", cutPrefix(s.Prefix), s.Group, s.Snaplen)
}

func (s Syslog) appendText(b []byte) []byte {
	levels := [...]string{"emerg", "alert", "crit", "err", "warn", "notice", "info", "debug"}
	return fmt.Appendf(b, "log prefix %q level %s", cutPrefix(s.Prefix), levels[s.Level&7])
}

func cutPrefix(s string) string { return s[:min(len(s), MaxPrefix)] }

func (s Count) appendText(b []byte) []byte {
	if s.Name == "" {
		return append(b, "counter"...)
	}
	return append(b, "counter name "+strconv.Quote(s.Name)...)
}

func (MidStream) appendText(b []byte) []byte {
	return append(b, "ct state new tcp flags & syn != syn"...)
}

func (NoTrack) appendText(b []byte) []byte { return append(b, "notrack"...) }

func (Reject) appendText(b []byte) []byte { return append(b, "reject with icmpx admin-prohibited"...) }

func (s Dispatch) appendText(b []byte) []byte {
	return append(b, dir(s.Out, "oifname", "iifname")+" vmap @"+s.Map...)
}

func (s Verdict) appendText(b []byte) []byte {
	words := [...]string{Accept: "accept", Drop: "drop", Return: "return", Jump: "jump " + s.Chain, Goto: "goto " + s.Chain}
	return append(b, words[s.Kind]...)
}

func addrField(dst, v6 bool) string {
	return dir(v6, "ip6 ", "ip ") + dir(dst, "daddr", "saddr")
}

func portField(dst bool) string { return dir(dst, "th dport", "th sport") }

func not(n bool) string { return dir(n, "!= ", "") }

func dir(cond bool, yes, no string) string {
	if cond {
		return yes
	}
	return no
}
