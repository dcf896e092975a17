package kernel

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// PublicKey is the public key of a WireGuard device. The zero key is none.
type PublicKey [32]byte

// ParsePublicKey reads a key as `wg show` prints it and Nodes have it: base64.
func ParsePublicKey(s string) (PublicKey, error) {
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != len(PublicKey{}) {
		return PublicKey{}, fmt.Errorf("parse public key %q: want 32 bytes in base64", s)
	}
	k := PublicKey(b)
	if k == (PublicKey{}) {
		return PublicKey{}, errors.New("parse public key: it is all zero, which is none")
	}
	return k, nil
}

// String is the key in base64.
func (k PublicKey) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// WireGuard is what a WireGuard device has besides its peers. The private key is no part of it: it is made in the kernel's doorway, stays in the
// device, and nothing else ever holds it.
type WireGuard struct {
	Port     uint16 // UDP, on which it receives
	Mark     uint32 // of the packets that it sends
	Keyed    bool   // it has a private key
	Threaded bool   // each of its queues is served by a thread of the kernel
}

// PeerKey names a peer of a WireGuard device.
type PeerKey struct {
	Dev Dev
	Key PublicKey
}

// Peer is what a device knows of a peer.
type Peer struct {
	Endpoint  netip.AddrPort // where it is sent to
	Allowed   string         // what may come from it and is sent to it: sorted prefixes, with commas between them. (A string, so that it is comparable.)
	KeepAlive time.Duration  // it is sent something this often; 0: never
}

// Rule says which packets go by which routing table (ip-rule(8)). It has no name but itself: what makes it another rule makes it a new one.
type Rule struct {
	V6       bool
	Priority int
	Invert   bool         // it is for packets that do not match the mark
	Mark     uint32       // together with Mask; 0/0: whatever it is
	Mask     uint32       // of the mark's bits
	Local    bool         // for packets alone that come from this host (iif lo)
	Src, Dst netip.Prefix // zero: any
	IPProto  uint8        // 0: any
	SrcPort  uint16       // 0: any
	DstPort  uint16       // 0: any
	Table    int          // 254 is the main table
	Protocol int          // who made it, as of routes
}

// MainTable is the number of the table in which routes are that no rule of ours leads to.
const MainTable = 254

// String is the rule as `ip rule` prints it.
func (r Rule) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d:", r.Priority)
	if r.Invert {
		b.WriteString(" not")
	}
	b.WriteString(" from " + prefixOrAll(r.Src))
	if r.Dst.IsValid() {
		b.WriteString(" to " + prefixOrAll(r.Dst))
	}
	if r.Mask != 0 {
		fmt.Fprintf(&b, " fwmark %#x/%#x", r.Mark, r.Mask)
	}
	if r.Local {
		b.WriteString(" iif lo")
	}
	if r.IPProto != 0 {
		fmt.Fprintf(&b, " ipproto %d", r.IPProto)
	}
	for _, p := range []struct {
		word string
		port uint16
	}{{"sport", r.SrcPort}, {"dport", r.DstPort}} {
		if p.port != 0 {
			fmt.Fprintf(&b, " %s %d", p.word, p.port)
		}
	}
	fmt.Fprintf(&b, " lookup %d proto %d", r.Table, r.Protocol)
	if r.V6 {
		b.WriteString(" (IPv6)")
	}
	return b.String()
}

func prefixOrAll(p netip.Prefix) string {
	switch {
	case !p.IsValid():
		return "all"
	case p.IsSingleIP():
		return p.Addr().String()
	}
	return p.String()
}

// WireGuardText is what a device has, in the words of `wg`.
func WireGuardText(d Dev, w WireGuard) string {
	key, threaded := "no key", ""
	if w.Keyed {
		key = "key of its own"
	}
	if w.Threaded {
		threaded = " threaded"
	}
	return fmt.Sprintf("%v listen-port %d fwmark %#x, %s%s", d, w.Port, w.Mark, key, threaded)
}

// PeerText is a peer in the words of `wg`.
func PeerText(k PeerKey, p Peer) string {
	alive := ""
	if p.KeepAlive > 0 {
		alive = fmt.Sprintf(" persistent-keepalive %v", p.KeepAlive)
	}
	return fmt.Sprintf("%v peer %v endpoint %v%s allowed-ips %s", k.Dev, k.Key, p.Endpoint, alive, strings.ReplaceAll(p.Allowed, ",", " "))
}

// JoinPrefixes writes prefixes as Peer.Allowed has them: sorted, each once. It may reorder the list.
func JoinPrefixes(list []netip.Prefix) string {
	slices.SortFunc(list, netip.Prefix.Compare)
	var b strings.Builder
	for i, p := range slices.Compact(list) {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(p.String())
	}
	return b.String()
}
