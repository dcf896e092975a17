package policy

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash"
	"net/netip"

	"github.com/muslin-cni/muslin/pkg/api"
)

// digest collects what a name is made of. Every part is preceded by its length, so that no two lists of parts look alike.
type digest struct {
	h   hash.Hash
	buf []byte
}

func newDigest(what string) *digest {
	d := &digest{h: sha256.New()}
	d.text(what)
	return d
}

func (d *digest) number(n uint64) { d.h.Write(binary.BigEndian.AppendUint64(d.buf[:0], n)) }

func (d *digest) text(s string) {
	d.number(uint64(len(s)))
	d.buf = append(d.buf[:0], s...)
	d.h.Write(d.buf)
}

func (d *digest) prefixes(list []netip.Prefix) {
	d.number(uint64(len(list)))
	for _, p := range list {
		d.buf, _ = p.AppendBinary(d.buf[:0]) // never fails
		d.h.Write(d.buf)
	}
}

func (d *digest) sets(list []SetID) {
	d.number(uint64(len(list)))
	for _, id := range list {
		d.text(string(id))
	}
}

func (d *digest) ranges(list []PortRange) {
	d.number(uint64(len(list)))
	for _, r := range list {
		d.number(uint64(r.Min)<<16 | uint64(r.Max))
	}
}

func (d *digest) icmp(m *ICMP) {
	if m == nil {
		d.number(0)
		return
	}
	d.number(1<<32 | uint64(m.Type)<<16 | uint64(uint16(int16(m.Code))))
}

func (d *digest) match(m *Match) {
	d.prefixes(m.Nets)
	d.prefixes(m.NotNets)
	d.sets(m.Sets)
	d.sets(m.NotSets)
	d.ranges(m.Ports)
	d.sets(m.PortSets)
	d.ranges(m.NotPorts)
	d.sets(m.NotPortSets)
}

// name is the first 64 bits of the hash: the chance that two of a million names are one is 3e-8.
func (d *digest) name() string {
	var sum [sha256.Size]byte
	return hex.EncodeToString(d.h.Sum(sum[:0])[:8])
}

// ruleID names a rule by what it says and whose it is; the nth of equal ones.
func ruleID(s *source, d api.PolicyType, r *Rule, nth int) RuleID {
	h := newDigest("rule")
	for _, t := range []string{s.kind, s.namespace, s.name, string(d), string(r.Action)} {
		h.text(t)
	}
	h.number(uint64(nth))
	h.number(uint64(r.IPVersion)<<16 | uint64(r.Protocol)<<8 | uint64(r.NotProtocol))
	h.icmp(r.ICMP)
	h.icmp(r.NotICMP)
	h.match(&r.Source)
	h.match(&r.Destination)
	return RuleID(h.name())
}

// policyID names a policy's direction by all that Policy holds: the names of its rules stand for the rules.
func policyID(p *Policy) PolicyID {
	h := newDigest("policy")
	for _, t := range []string{p.Kind, p.Namespace, p.Name, p.Tier, string(p.Direction)} {
		h.text(t)
	}
	staged := uint64(0)
	if p.Staged {
		staged = 1
	}
	h.number(staged)
	for i := range p.Rules {
		h.number(uint64(p.Rules[i].Index))
		h.text(string(p.Rules[i].ID))
	}
	return PolicyID(h.name())
}

// listID names a list by all that it holds.
func listID(l *List) ListID {
	h := newDigest("list")
	h.text(string(l.Direction))
	h.text(string(l.End))
	for _, t := range l.Tiers {
		h.text(t.Tier)
		h.text(string(t.End))
		h.number(uint64(len(t.Policies)))
		for _, p := range t.Policies {
			h.text(string(p))
		}
	}
	h.text("profiles")
	for _, p := range l.Profiles {
		h.text(string(p))
	}
	return ListID(h.name())
}

// EndOfTier names what becomes in a direction of what a tier's policies did not decide. The same in every list.
func EndOfTier(d api.PolicyType, tier string) RuleID {
	h := newDigest("end of tier")
	h.text(string(d))
	h.text(tier)
	return RuleID(h.name())
}

// EndOfList names what becomes in a direction of what neither policies nor profiles decided. The same in every list.
func EndOfList(d api.PolicyType) RuleID {
	h := newDigest("end of list")
	h.text(string(d))
	return RuleID(h.name())
}
