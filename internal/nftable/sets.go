package nftable

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
)

// Type says what the keys of a set are.
type Type uint8

// The types of key. A name of several parts is a concatenation in that order.
const (
	Addr4      Type = iota // an IPv4 address
	Addr6                  // an IPv6 address
	Ports                  // a port
	Ifaces                 // the name of an interface
	IfaceAddr4             // interface, IPv4 address
	IfaceAddr6             // interface, IPv6 address
	AddrPort4              // IPv4 address, protocol, port
	AddrPort6              // IPv6 address, protocol, port
	ProtoPorts             // protocol, port
	IfaceParts             // interface, number: only of dynamic sets
)

// Set is a set of keys, or a map from keys to chains. Its name is unique among both.
type Set struct {
	Name     string
	Type     Type
	Interval bool // holds ranges instead of keys, see Ranges and PortRange; for Addr4, Addr6 and Ports
	Map      bool // Elem.To is the chain that packets with this key go to
	// Dynamic sets are filled by rules, as packets come by, and nobody else: what is in them is no part of the table's content. They hold no more than
	// this many elements; 0: the set is none. One that Forgets takes elements out when their time is over.
	Dynamic uint32
	Forgets bool
	Elems   map[Elem]struct{}
}

// NewSet returns a set of keys with these elements.
func NewSet(name string, typ Type, elems ...Elem) *Set {
	return fill(&Set{Name: name, Type: typ}, elems)
}

// NewIntervals returns a set of ranges, which must not overlap.
func NewIntervals(name string, typ Type, elems ...Elem) *Set {
	return fill(&Set{Name: name, Type: typ, Interval: true}, elems)
}

// NewMap returns a map from keys to chains.
func NewMap(name string, typ Type, elems ...Elem) *Set {
	return fill(&Set{Name: name, Type: typ, Map: true}, elems)
}

// NewDynamic returns a set that rules fill with at most so many elements.
func NewDynamic(name string, typ Type, size uint32, forgets bool) *Set {
	return fill(&Set{Name: name, Type: typ, Dynamic: size, Forgets: forgets}, nil)
}

func fill(s *Set, elems []Elem) *Set {
	s.Elems = make(map[Elem]struct{}, len(elems))
	for _, e := range elems {
		s.Elems[e] = struct{}{}
	}
	return s
}

// Alike tells whether both differ in their elements at most: nothing else of a set can be changed.
func (s *Set) Alike(o *Set) bool {
	return s.Name == o.Name && s.Type == o.Type && s.Interval == o.Interval && s.Map == o.Map && s.Dynamic == o.Dynamic && s.Forgets == o.Forgets
}

// Sorted returns the elements in the order of their keys.
func (s *Set) Sorted() []Elem { return sorted(s.Elems) }

func sorted(elems map[Elem]struct{}) []Elem {
	out := make([]Elem, 0, len(elems))
	for e := range elems {
		out = append(out, e)
	}
	slices.SortFunc(out, Elem.compare)
	return out
}

// Elem is an element of a set.
type Elem struct {
	Key Key
	// To is, in a set of ranges, the last key of the range (the Key is the first, both belong to it); in a map the chain that the
	// packet goes to; else empty.
	To string
}

func (e Elem) compare(o Elem) int {
	if c := strings.Compare(string(e.Key), string(o.Key)); c != 0 {
		return c
	}
	return strings.Compare(e.To, o.To)
}

// Key is a key as the kernel holds it: big-endian fields, each padded to four bytes, a name of an interface padded to sixteen.
// (A key that is a single port has two bytes.)
type Key string

const ifaceLen = 16 // IFNAMSIZ of linux/if.h

// AddrKey is the key of an address.
func AddrKey(a netip.Addr) Key { return Key(a.AsSlice()) }

// IfaceKey is the key of an interface. A name that is longer than the kernel takes, 15 bytes, is cut.
func IfaceKey(name string) Key {
	var k [ifaceLen]byte
	copy(k[:ifaceLen-1], name)
	return Key(k[:])
}

// IfaceAddrKey is the key of an interface with an address.
func IfaceAddrKey(name string, a netip.Addr) Key { return IfaceKey(name) + AddrKey(a) }

// ProtoPortKey is the key of a protocol's port.
func ProtoPortKey(proto uint8, port uint16) Key {
	return Key([]byte{proto, 0, 0, 0, byte(port >> 8), byte(port), 0, 0})
}

// AddrPortKey is the key of an address with a protocol's port.
func AddrPortKey(a netip.Addr, proto uint8, port uint16) Key {
	return AddrKey(a) + ProtoPortKey(proto, port)
}

// PortRange is the element that holds the ports from first to last.
func PortRange(first, last uint16) Elem {
	return Elem{Key: portKey(first), To: string(portKey(last))}
}

func portKey(p uint16) Key { return Key(binary.BigEndian.AppendUint16(nil, p)) }

// Ranges returns the smallest list of ranges that hold the addresses of these prefixes, which are of one family, in ascending
// order: the kernel refuses overlapping ones.
func Ranges(prefixes []netip.Prefix) []Elem {
	elems := make([]Elem, 0, len(prefixes))
	for _, p := range prefixes {
		elems = append(elems, Elem{Key: AddrKey(p.Masked().Addr()), To: string(AddrKey(last(p)))})
	}
	return Merge(elems)
}

// Merge returns the smallest list of ranges that hold the same keys as these, in ascending order. It sorts its argument.
func Merge(elems []Elem) []Elem {
	slices.SortFunc(elems, Elem.compare)
	out := elems[:0]
	for _, e := range elems {
		if n := len(out); n > 0 && (string(e.Key) <= out[n-1].To || string(e.Key) == string(next(out[n-1].To))) {
			out[n-1].To = max(out[n-1].To, e.To)
			continue
		}
		out = append(out, e)
	}
	return out
}

// last returns a prefix's last address.
func last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// Next returns the key that follows one in numerical order, empty if that was the last.
func Next(k Key) Key { return next(string(k)) }

func next(k string) Key {
	b := []byte(k)
	for i := len(b) - 1; i >= 0; i-- {
		b[i]++
		if b[i] != 0 {
			return Key(b)
		}
	}
	return ""
}

// Prev returns the key before one in numerical order, empty if that was the first.
func Prev(k Key) Key {
	b := []byte(k)
	for i := len(b) - 1; i >= 0; i-- {
		b[i]--
		if b[i] != 0xff {
			return Key(b)
		}
	}
	return ""
}
