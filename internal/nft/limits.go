package nft

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/nftable"
)

// Numbers of linux/netfilter/nf_tables.h that x/sys/unix does not have.
const (
	connlimitCount = 1  // NFTA_CONNLIMIT_COUNT
	connlimitFlags = 2  // NFTA_CONNLIMIT_FLAGS
	connlimitOver  = 1  // NFT_CONNLIMIT_F_INV
	dynsetAdd      = 0  // NFT_DYNSET_OP_ADD
	dynsetUpdate   = 1  // NFT_DYNSET_OP_UPDATE
	hashJenkins    = 0  // NFT_HASH_JENKINS
	ctID           = 23 // NFT_CT_ID, of Linux 5.2
	csumInet       = 1  // NFT_PAYLOAD_CSUM_INET
)

// limiting encodes what limits endpoints' traffic.
func (e *ruleEncoder) limiting(s nftable.Stmt) {
	switch s := s.(type) {
	case nftable.First:
		const confirmed = 8 // IPS_CONFIRMED of linux/netfilter/nf_conntrack_common.h: what is let through gets it where it leaves
		e.expr("ct", func() {
			e.attr32(unix.NFTA_CT_DREG, reg)
			e.attr32(unix.NFTA_CT_KEY, unix.NFT_CT_STATUS)
		})
		e.mask(native32(confirmed), native32(0))
		e.compare(false, native32(0))
	case nftable.Above:
		e.above(s)
	case nftable.Crowd:
		e.expr("connlimit", func() { e.crowd(s.Limit) })
	case nftable.CrowdOf:
		e.crowdOf(s)
	case nftable.Remember:
		e.ifname(s.Out)
		e.dynset(s.Set, dynsetUpdate, func() { e.attr64(unix.NFTA_DYNSET_TIMEOUT, s.Millis) })
	case nftable.IfaceIn:
		e.ifname(s.Out)
		e.lookup(s.Set, false, false)
	case nftable.SetDSCP:
		e.dscp(s)
	case nftable.Reset:
		e.expr("reject", func() {
			e.attr32(unix.NFTA_REJECT_TYPE, unix.NFT_REJECT_TCP_RST)
			e.attr(unix.NFTA_REJECT_ICMP_CODE, []byte{0})
		})
	default:
		e.err = errors.Join(e.err, fmt.Errorf("statement %T is unknown", s))
	}
}

func (e *ruleEncoder) above(s nftable.Above) {
	typ := uint32(unix.NFT_LIMIT_PKTS)
	if s.Bytes {
		typ = unix.NFT_LIMIT_PKT_BYTES
	}
	e.expr("limit", func() {
		e.attr64(unix.NFTA_LIMIT_RATE, s.Rate)
		e.attr64(unix.NFTA_LIMIT_UNIT, 1)
		e.attr32(unix.NFTA_LIMIT_BURST, s.Burst)
		e.attr32(unix.NFTA_LIMIT_TYPE, typ)
		e.attr32(unix.NFTA_LIMIT_FLAGS, unix.NFT_LIMIT_F_INV)
	})
}

func (e *ruleEncoder) crowd(limit uint32) {
	e.attr32(connlimitCount, limit)
	e.attr32(connlimitFlags, connlimitOver)
}

// crowdOf makes the key of the interface's name and a number that is drawn from the connection's id. The id is the kernel's secret, so nobody can choose
// which part his connections are in.
func (e *ruleEncoder) crowdOf(s nftable.CrowdOf) {
	const part = reg + unix.IFNAMSIZ/4
	const id = part + 1
	e.ifname(s.Out)
	e.expr("ct", func() {
		e.attr32(unix.NFTA_CT_DREG, id)
		e.attr32(unix.NFTA_CT_KEY, ctID)
	})
	e.expr("hash", func() {
		e.attr32(unix.NFTA_HASH_SREG, id)
		e.attr32(unix.NFTA_HASH_DREG, part)
		e.attr32(unix.NFTA_HASH_LEN, 4)
		e.attr32(unix.NFTA_HASH_MODULUS, s.Parts)
		e.attr32(unix.NFTA_HASH_TYPE, hashJenkins)
	})
	e.dynset(s.Set, dynsetAdd, func() {
		e.nest(unix.NFTA_DYNSET_EXPR, func() {
			e.attrString(unix.NFTA_EXPR_NAME, "connlimit")
			e.nest(unix.NFTA_EXPR_DATA, func() { e.crowd(s.Limit) })
		})
	})
}

// dynset puts what is loaded into a set.
func (e *ruleEncoder) dynset(set string, op uint32, more func()) {
	e.expr("dynset", func() {
		e.attrString(unix.NFTA_DYNSET_SET_NAME, set)
		e.attr32(unix.NFTA_DYNSET_OP, op)
		e.attr32(unix.NFTA_DYNSET_SREG_KEY, reg)
		more()
	})
}

// dscp writes the upper six bits of IPv4's second byte and keeps the header's checksum right (RFC 791 section 3.1), or those of IPv6's traffic
// class, which begins in the middle of the first byte (RFC 8200 section 3).
func (e *ruleEncoder) dscp(s nftable.SetDSCP) {
	keep, value := uint16(0xff03), uint16(s.Value)<<2
	if s.V6 {
		keep, value = 0xf03f, uint16(s.Value)<<6
	}
	e.need(s.V6)
	e.payload(unix.NFT_PAYLOAD_NETWORK_HEADER, 0, 2, reg)
	e.mask(binary.BigEndian.AppendUint16(nil, keep), binary.BigEndian.AppendUint16(nil, value))
	e.expr("payload", func() {
		e.attr32(unix.NFTA_PAYLOAD_SREG, reg)
		e.attr32(unix.NFTA_PAYLOAD_BASE, unix.NFT_PAYLOAD_NETWORK_HEADER)
		e.attr32(unix.NFTA_PAYLOAD_OFFSET, 0)
		e.attr32(unix.NFTA_PAYLOAD_LEN, 2)
		if s.V6 {
			return
		}
		e.attr32(unix.NFTA_PAYLOAD_CSUM_TYPE, csumInet)
		e.attr32(unix.NFTA_PAYLOAD_CSUM_OFFSET, 10)
	})
}
