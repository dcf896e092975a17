package nftable

import "fmt"

// First holds for a packet that begins a connection. Later ones of it do not, even where nothing has been answered yet, as in a state of new they would.
type First struct{}

// Above holds for packets that go beyond so many packets a second, or bytes a second.
type Above struct {
	Rate uint64
	// Burst is what is let through at once, after a pause: packets, or the bytes beyond those of a second, which always are.
	Burst uint32
	Bytes bool
}

// Crowd holds for a packet whose connection is one too many: more than Limit that came by this rule are tracked. The kernel takes each connection into
// its account when it comes by for the first time, and goes through the account from time to time to find those that are gone, at most once in each tick of
// its clock. So what a new connection costs grows with their number.
type Crowd struct{ Limit uint32 }

// CrowdOf is Crowd for each interface by itself. An interface's connections are dealt out by chance to so many parts, and Limit is that of one part: an
// account for each keeps it short.
type CrowdOf struct {
	Out   bool
	Set   string // dynamic, of type IfaceParts
	Parts uint32
	Limit uint32
}

// Remember puts the packet's interface into a dynamic set of type Ifaces, for a while.
type Remember struct {
	Out    bool
	Set    string
	Millis uint64
}

// IfaceIn holds for packets whose interface is in a set of type Ifaces.
type IfaceIn struct {
	Out bool
	Set string
}

// SetDSCP writes the field of packets of one family that says how they are to be served (RFC 2474).
type SetDSCP struct {
	V6    bool
	Value uint8
}

// Reset answers a packet of TCP with a reset and drops it. It presumes a Proto.
type Reset struct{}

func (First) appendText(b []byte) []byte { return append(b, "ct status & confirmed == 0"...) }

func (s Above) appendText(b []byte) []byte {
	if s.Bytes && s.Burst == 0 {
		return fmt.Appendf(b, "limit rate over %d bytes/second", s.Rate)
	}
	if s.Bytes {
		return fmt.Appendf(b, "limit rate over %d bytes/second burst %d bytes", s.Rate, s.Burst)
	}
	return fmt.Appendf(b, "limit rate over %d/second burst %d packets", s.Rate, s.Burst)
}

func (s Crowd) appendText(b []byte) []byte { return fmt.Appendf(b, "ct count over %d", s.Limit) }

func (s CrowdOf) appendText(b []byte) []byte {
	return fmt.Appendf(b, "add @%s { %s . jhash ct id mod %d ct count over %d }", s.Set, dir(s.Out, "oifname", "iifname"), s.Parts, s.Limit)
}

func (s Remember) appendText(b []byte) []byte {
	return fmt.Appendf(b, "update @%s { %s timeout %dms }", s.Set, dir(s.Out, "oifname", "iifname"), s.Millis)
}

func (s IfaceIn) appendText(b []byte) []byte {
	return append(b, dir(s.Out, "oifname", "iifname")+" @"+s.Set...)
}

func (s SetDSCP) appendText(b []byte) []byte {
	return fmt.Appendf(b, "%s dscp set %d", dir(s.V6, "ip6", "ip"), s.Value)
}

func (Reset) appendText(b []byte) []byte { return append(b, "reject with tcp reset"...) }
