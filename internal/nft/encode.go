package nft

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/nftable"
)

// Numbers of linux/netfilter/nf_tables.h that x/sys/unix does not have, or has under names of another file.
const (
	setConcat    = 0x80       // NFT_SET_CONCAT
	verdictType  = 0xffffff00 // NFT_DATA_VERDICT
	objCounter   = 1          // NFT_OBJECT_COUNTER
	fibAddrType  = 3          // NFT_FIB_RESULT_ADDRTYPE
	fibDaddr     = 2          // NFTA_FIB_F_DADDR
	rejectICMPX  = 2          // NFT_REJECT_ICMPX_UNREACH
	rejectAdmin  = 3          // NFT_REJECT_ICMPX_ADMIN_PROHIBITED
	lookupInvert = 1          // NFT_LOOKUP_F_INV
	typeLocal    = 2          // RTN_LOCAL

	userdataComment   = 0 // NFTNL_UDATA_RULE_COMMENT
	userdataKeyOrder  = 0 // NFTNL_UDATA_SET_KEYBYTEORDER
	userdataDataOrder = 1 // NFTNL_UDATA_SET_DATABYTEORDER
	orderHost         = 1 // BYTEORDER_HOST_ENDIAN of nft
)

// reg is where conditions load what they look at. Concatenations begin there too and go on in the 32-bit registers behind it.
const reg = unix.NFT_REG32_00

// ruleEncoder encodes the statements of one rule.
type ruleEncoder struct {
	*buffer
	family uint8 // that the rule has made sure of so far; 0 for neither
	err    error
}

// rule encodes a rule's statements as a list of expressions. The bytes are those that nft 1.0 makes of the rule's text.
func (b *buffer) rule(r nftable.Rule) error {
	e := ruleEncoder{buffer: b}
	for _, s := range r.Stmts {
		e.stmt(s)
	}
	return e.err
}

func (e *ruleEncoder) stmt(s nftable.Stmt) {
	switch s := s.(type) {
	case nftable.SetMark:
		e.setMark(s)
	case nftable.Count:
		e.count(s)
	case nftable.Log:
		e.expr("log", func() {
			e.attr16(unix.NFTA_LOG_GROUP, s.Group)
			e.attrString(unix.NFTA_LOG_PREFIX, cut(s.Prefix))
			e.attr32(unix.NFTA_LOG_SNAPLEN, s.Snaplen)
		})
	case nftable.Syslog:
		e.expr("log", func() {
			e.attrString(unix.NFTA_LOG_PREFIX, cut(s.Prefix))
			e.attr32(unix.NFTA_LOG_LEVEL, s.Level)
		})
	case nftable.NoTrack:
		e.expr("notrack", func() {})
	case nftable.Reject:
		e.expr("reject", func() {
			e.attr32(unix.NFTA_REJECT_TYPE, rejectICMPX)
			e.attr(unix.NFTA_REJECT_ICMP_CODE, []byte{rejectAdmin})
		})
	case nftable.Limit:
		e.limit(s)
	case nftable.Dispatch:
		e.ifname(s.Out)
		e.lookup(s.Map, false, true)
	case nftable.Verdict:
		e.expr("immediate", func() {
			e.attr32(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT)
			e.nest(unix.NFTA_IMMEDIATE_DATA, func() { e.verdict(s) })
		})
	default:
		e.condition(s)
	}
}

func (e *ruleEncoder) condition(s nftable.Stmt) {
	switch s := s.(type) {
	case nftable.Iface:
		e.iface(s)
	case nftable.Family:
		e.family = 0
		e.need(s.V6)
	case nftable.Proto:
		e.meta(unix.NFT_META_L4PROTO, reg)
		e.compare(s.Not, []byte{s.Number})
	case nftable.Addr:
		e.addr(s)
	case nftable.Port:
		e.port(s)
	case nftable.ICMP:
		e.icmp(s)
	case nftable.Mark:
		e.meta(unix.NFT_META_MARK, reg)
		e.mask(native32(s.Mask), native32(0))
		e.compare(s.Not, native32(s.Value))
	case nftable.State:
		e.expr("ct", func() {
			e.attr32(unix.NFTA_CT_DREG, reg)
			e.attr32(unix.NFTA_CT_KEY, unix.NFT_CT_STATE)
		})
		e.mask(native32(uint32(s)), native32(0))
		e.compare(true, native32(0))
	case nftable.MidStream:
		e.midStream()
	case nftable.Local:
		e.expr("fib", func() {
			e.attr32(unix.NFTA_FIB_DREG, reg)
			e.attr32(unix.NFTA_FIB_RESULT, fibAddrType)
			e.attr32(unix.NFTA_FIB_FLAGS, fibDaddr)
		})
		e.compare(false, native32(typeLocal))
	default:
		e.membership(s)
	}
}

// membership encodes conditions that look in a set.
func (e *ruleEncoder) membership(s nftable.Stmt) {
	switch s := s.(type) {
	case nftable.AddrIn:
		e.loadAddr(s.Dst, s.V6, reg)
		e.lookup(s.Set, s.Not, false)
	case nftable.PortIn:
		e.loadPort(s.Dst, reg)
		e.lookup(s.Set, s.Not, false)
	case nftable.AddrPortIn:
		next := e.loadAddr(s.Dst, s.V6, reg)
		e.meta(unix.NFT_META_L4PROTO, next)
		e.loadPort(s.Dst, next+1)
		e.lookup(s.Set, s.Not, false)
	case nftable.IfaceAddrIn:
		e.need(s.V6)
		e.ifname(false)
		e.loadAddr(false, s.V6, reg+unix.IFNAMSIZ/4)
		e.lookup(s.Set, false, false)
	case nftable.ProtoPortIn:
		e.meta(unix.NFT_META_L4PROTO, reg)
		e.loadPort(s.Dst, reg+1)
		e.lookup(s.Set, false, false)
	default:
		e.limiting(s)
	}
}

func (e *ruleEncoder) iface(s nftable.Iface) {
	e.ifname(s.Out)
	if n := len(s.Name); n > 1 && s.Name[n-1] == '*' {
		e.compare(false, []byte(s.Name[:n-1])) // the kernel compares as many bytes as are given
		return
	}
	e.compare(false, []byte(nftable.IfaceKey(s.Name)))
}

// need makes sure of the packet's family, once in a rule: an IPv4 header's fields mean something else in IPv6.
func (e *ruleEncoder) need(v6 bool) {
	family := uint8(unix.NFPROTO_IPV4)
	if v6 {
		family = unix.NFPROTO_IPV6
	}
	if e.family == family {
		return
	}
	e.family = family
	e.meta(unix.NFT_META_NFPROTO, reg)
	e.compare(false, []byte{family})
}

// addr compares no more bytes than the prefix has, where it ends with one, as nft does.
func (e *ruleEncoder) addr(s nftable.Addr) {
	p := s.Prefix.Masked()
	value := p.Addr().AsSlice()
	e.need(p.Addr().Is6())
	offset := addrOffset(s.Dst, p.Addr().Is6())
	if p.Bits() > 0 && p.Bits()%8 == 0 {
		value = value[:p.Bits()/8]
		e.payload(unix.NFT_PAYLOAD_NETWORK_HEADER, offset, uint32(len(value)), reg)
		e.compare(s.Not, value)
		return
	}
	mask := make([]byte, len(value))
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	e.payload(unix.NFT_PAYLOAD_NETWORK_HEADER, offset, uint32(len(value)), reg)
	e.mask(mask, make([]byte, len(mask)))
	e.compare(s.Not, value)
}

// addrOffset returns where an address is in its header: RFC 791 section 3.1, RFC 8200 section 3.
func addrOffset(dst, v6 bool) uint32 {
	switch {
	case v6 && dst:
		return 24
	case v6:
		return 8
	case dst:
		return 16
	default:
		return 12
	}
}

// loadAddr loads the source or destination and returns the register behind it.
func (e *ruleEncoder) loadAddr(dst, v6 bool, to uint32) uint32 {
	e.need(v6)
	size := uint32(4)
	if v6 {
		size = 16
	}
	e.payload(unix.NFT_PAYLOAD_NETWORK_HEADER, addrOffset(dst, v6), size, to)
	return to + size/4
}

func (e *ruleEncoder) loadPort(dst bool, to uint32) {
	offset := uint32(0)
	if dst {
		offset = 2
	}
	e.payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, offset, 2, to)
}

func (e *ruleEncoder) port(s nftable.Port) {
	e.loadPort(s.Dst, reg)
	first, last := be16(s.First), be16(s.Last)
	switch {
	case s.First == s.Last:
		e.compare(s.Not, first)
	case s.Not:
		e.expr("range", func() {
			e.attr32(unix.NFTA_RANGE_SREG, reg)
			e.attr32(unix.NFTA_RANGE_OP, unix.NFT_RANGE_NEQ)
			e.nest(unix.NFTA_RANGE_FROM_DATA, func() { e.attr(unix.NFTA_DATA_VALUE, first) })
			e.nest(unix.NFTA_RANGE_TO_DATA, func() { e.attr(unix.NFTA_DATA_VALUE, last) })
		})
	default:
		e.cmp(unix.NFT_CMP_GTE, first)
		e.cmp(unix.NFT_CMP_LTE, last)
	}
}

func (e *ruleEncoder) icmp(s nftable.ICMP) {
	if s.HasCode {
		e.payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 0, 2, reg) // RFC 792 and RFC 4443: type, then code
		e.compare(s.Not, []byte{s.Type, s.Code})
		return
	}
	e.payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 0, 1, reg)
	e.compare(s.Not, []byte{s.Type})
}

func (e *ruleEncoder) setMark(s nftable.SetMark) {
	e.meta(unix.NFT_META_MARK, reg)
	e.mask(native32(^(s.Clear | s.Set)), native32(s.Set))
	e.expr("meta", func() {
		e.attr32(unix.NFTA_META_KEY, unix.NFT_META_MARK)
		e.attr32(unix.NFTA_META_SREG, reg)
	})
}

func (e *ruleEncoder) count(s nftable.Count) {
	if s.Name == "" {
		e.expr("counter", func() {})
		return
	}
	e.expr("objref", func() {
		e.attr32(unix.NFTA_OBJREF_IMM_TYPE, objCounter)
		e.attrString(unix.NFTA_OBJREF_IMM_NAME, s.Name)
	})
}

// midStream looks at the byte of TCP's header that holds SYN (RFC 9293, section 3.1), of packets that begin a flow.
func (e *ruleEncoder) midStream() {
	const flags, syn, stateNew = 13, 0x02, 8 // 8: NF_CT_STATE_BIT(IP_CT_NEW)
	e.expr("ct", func() {
		e.attr32(unix.NFTA_CT_DREG, reg)
		e.attr32(unix.NFTA_CT_KEY, unix.NFT_CT_STATE)
	})
	e.mask(native32(stateNew), native32(0))
	e.compare(true, native32(0))
	e.meta(unix.NFT_META_L4PROTO, reg)
	e.compare(false, []byte{unix.IPPROTO_TCP})
	e.payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, flags, 1, reg)
	e.mask([]byte{syn}, []byte{0})
	e.compare(true, []byte{syn})
}

func (e *ruleEncoder) limit(s nftable.Limit) {
	e.expr("limit", func() {
		e.attr64(unix.NFTA_LIMIT_RATE, uint64(s.Rate))
		e.attr64(unix.NFTA_LIMIT_UNIT, uint64(s.Unit.Seconds()))
		e.attr32(unix.NFTA_LIMIT_BURST, s.Burst)
		e.attr32(unix.NFTA_LIMIT_TYPE, unix.NFT_LIMIT_PKTS)
		e.attr32(unix.NFTA_LIMIT_FLAGS, 0)
	})
}

// expr encodes an element of the list of expressions.
func (e *ruleEncoder) expr(name string, data func()) {
	e.nest(unix.NFTA_LIST_ELEM, func() {
		e.attrString(unix.NFTA_EXPR_NAME, name)
		e.nest(unix.NFTA_EXPR_DATA, data)
	})
}

func (e *ruleEncoder) meta(key, to uint32) {
	e.expr("meta", func() {
		e.attr32(unix.NFTA_META_KEY, key)
		e.attr32(unix.NFTA_META_DREG, to)
	})
}

func (e *ruleEncoder) ifname(out bool) {
	if out {
		e.meta(unix.NFT_META_OIFNAME, reg)
		return
	}
	e.meta(unix.NFT_META_IIFNAME, reg)
}

func (e *ruleEncoder) payload(base, offset, size, to uint32) {
	e.expr("payload", func() {
		e.attr32(unix.NFTA_PAYLOAD_DREG, to)
		e.attr32(unix.NFTA_PAYLOAD_BASE, base)
		e.attr32(unix.NFTA_PAYLOAD_OFFSET, offset)
		e.attr32(unix.NFTA_PAYLOAD_LEN, size)
	})
}

func (e *ruleEncoder) compare(not bool, value []byte) {
	if not {
		e.cmp(unix.NFT_CMP_NEQ, value)
		return
	}
	e.cmp(unix.NFT_CMP_EQ, value)
}

func (e *ruleEncoder) cmp(op uint32, value []byte) {
	e.expr("cmp", func() {
		e.attr32(unix.NFTA_CMP_SREG, reg)
		e.attr32(unix.NFTA_CMP_OP, op)
		e.nest(unix.NFTA_CMP_DATA, func() { e.attr(unix.NFTA_DATA_VALUE, value) })
	})
}

// mask replaces what is loaded, x, by x & and ^ xor.
func (e *ruleEncoder) mask(and, xor []byte) {
	e.expr("bitwise", func() {
		e.attr32(unix.NFTA_BITWISE_SREG, reg)
		e.attr32(unix.NFTA_BITWISE_DREG, reg)
		e.attr32(unix.NFTA_BITWISE_LEN, uint32(len(and)))
		e.nest(unix.NFTA_BITWISE_MASK, func() { e.attr(unix.NFTA_DATA_VALUE, and) })
		e.nest(unix.NFTA_BITWISE_XOR, func() { e.attr(unix.NFTA_DATA_VALUE, xor) })
	})
}

// lookup looks for what is loaded in a set, or follows a map's verdict for it.
func (e *ruleEncoder) lookup(set string, invert, follow bool) {
	e.expr("lookup", func() {
		e.attrString(unix.NFTA_LOOKUP_SET, set)
		e.attr32(unix.NFTA_LOOKUP_SREG, reg)
		if follow {
			e.attr32(unix.NFTA_LOOKUP_DREG, unix.NFT_REG_VERDICT)
		}
		if invert {
			e.attr32(unix.NFTA_LOOKUP_FLAGS, lookupInvert)
		}
	})
}

// verdict encodes a verdict as data, of a rule or of a map's element.
func (b *buffer) verdict(v nftable.Verdict) {
	code := [...]int32{
		nftable.Accept: 1, nftable.Drop: 0, // NF_ACCEPT and NF_DROP of linux/netfilter.h
		nftable.Return: unix.NFT_RETURN, nftable.Jump: unix.NFT_JUMP, nftable.Goto: unix.NFT_GOTO,
	}[v.Kind]
	b.nest(unix.NFTA_DATA_VERDICT, func() {
		b.attr32(unix.NFTA_VERDICT_CODE, uint32(code))
		if v.Chain != "" {
			b.attrString(unix.NFTA_VERDICT_CHAIN, v.Chain)
		}
	})
}

func native32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

func be16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }

func cut(prefix string) string { return prefix[:min(len(prefix), nftable.MaxPrefix)] }
