package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Prefix is an address with a prefix length. A bare address reads as a single host. Host bits are kept.
type Prefix struct{ netip.Prefix }

// HostPrefix is a as a single-host prefix: /32 or /128.
func HostPrefix(a netip.Addr) Prefix { return Prefix{netip.PrefixFrom(a, a.BitLen())} }

// UnmarshalText reads "a.b.c.d/n" or a bare address; the empty string is the zero Prefix.
func (p *Prefix) UnmarshalText(b []byte) error {
	s := string(b)
	if s == "" {
		*p = Prefix{}
		return nil
	}
	if !strings.Contains(s, "/") {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return err
		}
		*p = HostPrefix(a)
		return nil
	}
	n, err := netip.ParsePrefix(s)
	if err != nil {
		return err
	}
	*p = Prefix{n}
	return nil
}

// Duration is a length of time that is written as Go writes it: "1m30s".
type Duration struct{ time.Duration }

// MarshalText writes d as Go prints it.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what time.ParseDuration reads.
func (d *Duration) UnmarshalText(b []byte) (err error) {
	d.Duration, err = time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("must be a duration such as 30s or 1m30s")
	}
	return nil
}

// ASN is the number of an autonomous system, of 4 octets (RFC 6793). It reads 64512, "64512" and "1.10" (RFC 5396, asdot+)
// and is written as a number.
type ASN uint32

// UnmarshalJSON reads a number or a string.
func (a *ASN) UnmarshalJSON(b []byte) error {
	if n, err := strconv.ParseUint(string(b), 10, 32); err == nil {
		*a = ASN(n) // as it is stored
		return nil
	}
	text, null, err := word(b)
	if err != nil || null {
		return err
	}
	high, low, dotted := strings.Cut(text, ".")
	if !dotted {
		high, low = "0", text
	}
	bits := 32
	if dotted {
		bits = 16
	}
	h, herr := strconv.ParseUint(high, 10, 16)
	l, lerr := strconv.ParseUint(low, 10, bits)
	if herr != nil || lerr != nil {
		return fmt.Errorf("must be the number of an autonomous system: 0 to 4294967295, or two numbers up to 65535 joined by a dot")
	}
	*a = ASN(h<<16 | l)
	return nil
}

// Protocol is an IP protocol: a name or a number. The zero Protocol is none.
type Protocol struct {
	Name   string // as protocols has it, else as it was read; "" for a number
	Number uint8
}

// Numbers of IP protocols (IANA, Protocol Numbers).
const (
	ProtoICMP    = 1
	ProtoIPIP    = 4
	ProtoTCP     = 6
	ProtoUDP     = 17
	ProtoICMPv6  = 58
	ProtoSCTP    = 132
	ProtoUDPLite = 136
)

type namedProtocol struct {
	name   string
	number uint8
}

// protocols are the names that rules may call protocols by, with their numbers.
var protocols = []namedProtocol{{"TCP", ProtoTCP}, {"UDP", ProtoUDP}, {"ICMP", ProtoICMP}, {"ICMPv6", ProtoICMPv6}, {"SCTP", ProtoSCTP}, {"UDPLite", ProtoUDPLite}}

func protocolNames() (out []string) {
	for _, p := range protocols {
		out = append(out, p.name)
	}
	return out
}

// ProtocolNumbered is the protocol with that number, by its name if rules have one for it.
func ProtocolNumbered(n uint8) Protocol {
	for _, p := range protocols {
		if p.number == n {
			return Protocol{Name: p.name}
		}
	}
	return Protocol{Number: n}
}

// IANA is the protocol's number, whichever way it is given; 0 of no protocol, and of a name that is not known.
func (p Protocol) IANA() uint8 {
	if p.Name == "" {
		return p.Number
	}
	for _, known := range protocols {
		if known.name == p.Name {
			return known.number
		}
	}
	return 0
}

// ProtocolNamed is the protocol with that name, spelt as it is stored, or with that number.
func ProtocolNamed(name string) Protocol {
	for _, known := range protocols {
		if strings.EqualFold(known.name, name) {
			return Protocol{Name: known.name}
		}
	}
	if n, err := strconv.ParseUint(name, 10, 8); err == nil {
		return Protocol{Number: uint8(n)}
	}
	return Protocol{Name: name}
}

// Is reports whether p is the protocol with that name, which may be given by its number.
func (p Protocol) Is(name string) bool {
	return p.Name == name || p.Name == "" && p.Number != 0 && Protocol{Name: name}.IANA() == p.Number
}

// String is the name, or the number.
func (p Protocol) String() string {
	if p.Name != "" {
		return p.Name
	}
	return strconv.Itoa(int(p.Number))
}

// MarshalJSON writes a number as number and a name as string.
func (p Protocol) MarshalJSON() ([]byte, error) {
	if p.Name != "" {
		return json.Marshal(p.Name)
	}
	return json.Marshal(p.Number)
}

// UnmarshalJSON reads a number or a name; known names may be spelt in any case.
func (p *Protocol) UnmarshalJSON(b []byte) error {
	text, null, err := word(b)
	if err != nil || null {
		return err
	}
	*p = ProtocolNamed(text)
	if b[0] != '"' && p.Name != "" {
		return fmt.Errorf("must be a name or a number between 0 and 255")
	}
	return nil
}

// check is a rule of its own: known names, and numbers but 0.
func (p *Protocol) check(c *checker, path string) {
	if p == nil {
		return
	}
	if p.Name == "" && p.Number == 0 || p.Name != "" && !contains(protocolNames(), p.Name, false) {
		c.add(path, p.String(), "must be one of %s or a number between 1 and 255", quoted(protocolNames()))
	}
}

// Port is a port, a range of ports, or the name of a port. It is written as 80, "8000:8010" or "web".
type Port struct {
	Min, Max uint16 // both included; equal for a single port
	Name     string // not "": Min and Max do not count
}

// String is the name, the number or the range.
func (p Port) String() string {
	switch {
	case p.Name != "":
		return p.Name
	case p.Min == p.Max:
		return strconv.Itoa(int(p.Min))
	}
	return fmt.Sprintf("%d:%d", p.Min, p.Max)
}

// MarshalJSON writes a single port as number, and a range or a name as string.
func (p Port) MarshalJSON() ([]byte, error) {
	if p.Name == "" && p.Min == p.Max {
		return json.Marshal(p.Min)
	}
	return json.Marshal(p.String())
}

// UnmarshalJSON reads a number, or a string that holds a number, a range or a name.
func (p *Port) UnmarshalJSON(b []byte) error {
	text, null, err := word(b)
	if err != nil || null {
		return err
	}
	const want = "must be a port between 0 and 65535, a range such as 8000:8010, or the name of a port"
	lo, hi, ranged := strings.Cut(text, ":")
	if !ranged {
		hi = lo
	}
	if strings.Trim(lo, "-0123456789") != "" && !ranged && b[0] == '"' {
		*p = Port{Name: text}
		return nil
	}
	low, lerr := strconv.ParseUint(lo, 10, 16)
	high, herr := strconv.ParseUint(hi, 10, 16)
	if lerr != nil || herr != nil || low > high {
		return errors.New(want)
	}
	*p = Port{Min: uint16(low), Max: uint16(high)}
	return nil
}

func (p Port) check(c *checker, path string) {
	switch {
	case p.Name == "" && p.Min == 0:
		c.add(path, p.String(), "port range invalid, port number must be between 1 and 65535")
	case p.Name != "" && !isPortName(p.Name):
		c.add(path, p.Name, "the name of a port is at most 128 letters, digits and any of _ . -")
	}
}

func isPortName(s string) bool {
	if s == "" || len(s) > 128 {
		return false
	}
	for i := range len(s) {
		if !isAlnum(s[i]) && strings.IndexByte("_.-", s[i]) < 0 {
			return false
		}
	}
	return true
}

// word is the text of a JSON number or string; null reports that it is neither but null.
func word(b []byte) (text string, null bool, err error) {
	switch {
	case string(b) == "null":
		return "", true, nil
	case len(b) > 0 && b[0] == '"':
		err = json.Unmarshal(b, &text)
		return text, false, err
	case len(b) > 0 && (b[0] == '-' || b[0] >= '0' && b[0] <= '9'):
		return string(b), false, nil
	}
	return "", false, fmt.Errorf("must be a number or a string")
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// setDefaultTo is setDefault for a field where zero is a value and nil is none.
func setDefaultTo[T any](p **T, v T) {
	if *p == nil {
		*p = &v
	}
}
