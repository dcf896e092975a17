package rtnl

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/kernel"
)

// Rules is the table of our rules of routing. Their mark is the protocol (since Linux 4.17).
type Rules struct{ c *Conn }

// Rules returns the table of our rules.
func (c *Conn) Rules() Rules { return Rules{c} }

// Of struct fib_rule_hdr (linux/fib_rules.h).
const (
	sizeofRule  = 12
	ruleToTable = 1 // FR_ACT_TO_TBL
	ruleInvert  = 2 // FIB_RULE_INVERT
)

// List returns every rule of our protocol, of both families.
func (t Rules) List(ctx context.Context) (map[kernel.Rule]struct{}, error) {
	msgs, err := t.c.dump(ctx, unix.RTM_GETRULE, unix.RTM_NEWRULE, &nl.RtMsg{}, 0)
	if err != nil {
		return nil, fmt.Errorf("list rules: %w", err)
	}
	out, own := map[kernel.Rule]struct{}{}, t.c.ownership()
	for _, m := range msgs {
		r, ok, err := decodeRule(m)
		if err != nil {
			return nil, err
		}
		if ok && own.HasProtocol(r.Protocol) {
			out[r] = struct{}{}
		}
	}
	return out, nil
}

// Apply adds rules and removes them.
func (t Rules) Apply(ctx context.Context, changes []kernel.Change[kernel.Rule, struct{}]) error {
	return each(ctx, t.c.sender, changes, way[kernel.Rule, struct{}]{
		encode: func(m *messages, c kernel.Change[kernel.Rule, struct{}]) { appendRule(m, c.New != nil, c.Key) },
		refused: func(c kernel.Change[kernel.Rule, struct{}], err error) error {
			switch {
			case c.New == nil && gone(err) || c.New != nil && is(err, unix.EEXIST):
				return nil
			case c.New == nil:
				return fmt.Errorf("remove rule %v: %w", c.Key, err)
			}
			return fmt.Errorf("add rule %v: %w", c.Key, err)
		},
	})
}

// appendRule adds the message that adds a rule or removes it: struct fib_rule_hdr and attributes.
func appendRule(m *messages, add bool, r kernel.Rule) {
	kind, flags := uint16(unix.RTM_DELRULE), uint16(0)
	if add {
		kind, flags = unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL
	}
	of, invert := byte(unix.AF_INET), uint32(0)
	if r.V6 {
		of = unix.AF_INET6
	}
	if r.Invert {
		invert = ruleInvert
	}
	fixed := []byte{of, byte(max(r.Dst.Bits(), 0)), byte(max(r.Src.Bits(), 0)), 0, unix.RT_TABLE_UNSPEC, 0, 0, ruleToTable}
	m.begin(kind, flags, binary.NativeEndian.AppendUint32(fixed, invert)...)
	m.addr(nl.FRA_DST, r.Dst.Addr())
	m.addr(nl.FRA_SRC, r.Src.Addr())
	m.uint32(nl.FRA_PRIORITY, r.Priority)
	m.uint32(nl.FRA_TABLE, r.Table)
	if r.Mask != 0 {
		m.attr(nl.FRA_FWMARK, binary.NativeEndian.AppendUint32(nil, r.Mark))
		m.attr(nl.FRA_FWMASK, binary.NativeEndian.AppendUint32(nil, r.Mask))
	}
	if r.Local {
		m.attr(nl.FRA_IIFNAME, []byte("lo\x00"))
	}
	m.attr(nl.FRA_PROTOCOL, []byte{byte(r.Protocol)})
	if r.IPProto != 0 {
		m.attr(nl.FRA_IP_PROTO, []byte{r.IPProto})
	}
	appendPort(m, nl.FRA_SPORT_RANGE, r.SrcPort)
	appendPort(m, nl.FRA_DPORT_RANGE, r.DstPort)
}

// appendPort adds a range of one port, struct fib_rule_port_range, unless it is 0.
func appendPort(m *messages, kind, port uint16) {
	if port != 0 {
		m.attr(kind, binary.NativeEndian.AppendUint16(binary.NativeEndian.AppendUint16(nil, port), port))
	}
}

// decodeRule reads an RTM_NEWRULE or RTM_DELRULE message. ok is false for rules of other families than IP's, and for those that lead to no table.
func decodeRule(m []byte) (r kernel.Rule, ok bool, err error) {
	if len(m) < sizeofRule {
		return kernel.Rule{}, false, fmt.Errorf("decode rule: message of %d bytes", len(m))
	}
	if m[0] != unix.AF_INET && m[0] != unix.AF_INET6 || m[7] != ruleToTable {
		return kernel.Rule{}, false, nil
	}
	r = kernel.Rule{V6: m[0] == unix.AF_INET6, Table: int(m[4]), Invert: binary.NativeEndian.Uint32(m[8:])&ruleInvert != 0}
	for a, err := range attributes(m[sizeofRule:]) {
		if err != nil {
			return kernel.Rule{}, false, fmt.Errorf("decode rule: %w", err)
		}
		switch a.Attr.Type {
		case nl.FRA_DST:
			r.Dst = ruleRange(a.Value, m[1])
		case nl.FRA_SRC:
			r.Src = ruleRange(a.Value, m[2])
		case nl.FRA_PRIORITY:
			r.Priority = int(number(a.Value))
		case nl.FRA_TABLE:
			r.Table = int(number(a.Value))
		case nl.FRA_FWMARK:
			r.Mark = number(a.Value)
		case nl.FRA_FWMASK:
			r.Mask = number(a.Value)
		case nl.FRA_IIFNAME:
			r.Local = text(a.Value) == "lo"
		case nl.FRA_PROTOCOL:
			r.Protocol = int(number(a.Value))
		case nl.FRA_IP_PROTO:
			r.IPProto = uint8(number(a.Value))
		case nl.FRA_SPORT_RANGE:
			r.SrcPort = uint16(number(a.Value[:min(2, len(a.Value))]))
		case nl.FRA_DPORT_RANGE:
			r.DstPort = uint16(number(a.Value[:min(2, len(a.Value))]))
		}
	}
	return r, true, nil
}

func ruleRange(b []byte, bits byte) netip.Prefix {
	a, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(a, int(bits))
}
