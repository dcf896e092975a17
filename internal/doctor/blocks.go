package doctor

import (
	"math"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
	"github.com/muslin-cni/muslin/pkg/selector"
	"github.com/muslin-cni/muslin/pkg/store"
)

// fullShare is how much of a pool may be in use before it is worth a warning.
const fullShare = 0.9

func blocks(v View) []Finding {
	var l list
	switch {
	case v.Data.Err != nil:
		l.unknown("", v.Data.Err)
		return l
	case v.Node.Err != nil:
		l.unknown("", ErrNoName)
		return l
	}
	l.audit(v)
	for _, v6 := range []bool{false, true} {
		l.room(v, v6)
	}
	l.networks(v)
	return l
}

// audit passes on what the books of addresses say against this node.
func (l *list) audit(v View) {
	mine := v.Data.Value.keysOf(v.Node.Value)
	grave := []ipam.FindingKind{ipam.BlocksOverlap, ipam.EndpointsShare, ipam.NoAllocation, ipam.ForeignAllocation, ipam.BlockDamaged, ipam.Unreadable}
	for _, f := range ipam.Audit(v.Data.Value.IPAM) {
		if f.Kind != ipam.Unreadable && !slices.ContainsFunc(f.Keys, mine) { // what cannot be read may be anybody's
			continue
		}
		s := Warning
		if slices.Contains(grave, f.Kind) {
			s = Error
		}
		l.add(s, string(f.Kind), f.Remedy, "%s", f.Text)
	}
}

// keysOf tells which keys concern a node: its Node, its blocks and claims, its endpoints, handles in its blocks, and pools.
func (d Data) keysOf(node string) func(key string) bool {
	known := map[string]bool{api.NodeKey(node): true}
	inOurs := map[string]bool{}
	for _, e := range d.IPAM.Blocks {
		if host, ok := e.Value.Host(); ok && host == node {
			known[e.Key], inOurs[e.Value.CIDR.String()] = true, true
		}
	}
	for _, e := range d.IPAM.Endpoints {
		if e.Value.Spec.Node == node {
			known[e.Key] = true
		}
	}
	for _, e := range d.IPAM.Handles {
		for cidr := range e.Value.Block {
			known[e.Key] = known[e.Key] || inOurs[cidr]
		}
	}
	pools := (*api.IPPool)(nil).KindOf().Prefix()
	return func(key string) bool {
		owner, _, err := api.ParseAffinityKey(key)
		return known[key] || err == nil && owner == node || strings.HasPrefix(key, pools)
	}
}

// room judges whether new pods of a family find addresses.
func (l *list) room(v View, v6 bool) {
	d := v.Data.Value
	var serving, spent []string
	for _, e := range d.IPAM.Pools {
		if e.Value.Spec.CIDR.Addr().Is6() != v6 || !d.serves(e.Value, v.Node.Value) {
			continue
		}
		u := d.use(e.Value, v.Node.Value)
		name := e.Value.Metadata.Name
		serving = append(serving, name)
		switch {
		case u.freeHere == 0 && u.ranges == 0 && (d.Config.StrictAffinity || u.free == 0):
			spent = append(spent, name)
		case u.freeHere == 0 && u.ranges == 0:
			l.add(Warning, "pool "+name, "create another pool, or one with smaller blocks", "all its blocks are claimed, and this node's are full: new pods borrow addresses from other nodes' blocks (%.0f are free)", u.free)
		case 1-u.free/u.size >= fullShare:
			l.add(Warning, "pool "+name, "create another pool", "%.0f%% of its addresses are in use", 100*(1-u.free/u.size))
		}
	}
	for _, name := range spent {
		s, more := Warning, "; other pools have room"
		if len(spent) == len(serving) {
			s, more = Error, ": new pods of this node get no address"
		}
		l.add(s, "pool "+name, "create another pool, or release what nobody uses (muslinctl ipam check)", "is exhausted%s", more)
	}
	if len(serving) == 0 && !v6 && !slices.ContainsFunc(d.IPAM.Pools, func(e store.Entry[api.IPPool]) bool { return isPool6(e) && d.serves(e.Value, v.Node.Value) }) {
		l.add(Error, "pools", "create or enable an IPPool, or label the node as a pool's nodeSelector wants", "no enabled pool serves this node: new pods get no address")
		if d.node(v.Node.Value) == nil { // without labels nothing selects it
			l.blame(v, "identity")
		}
	}
	l.limit(d, v.Node.Value, v6)
}

// networks finds pools that hold addresses of networks that this host is on: what they give to pods may be others' already, and what pods send there
// keeps the pod's address, as between pods.
func (l *list) networks(v View) {
	for _, e := range v.Data.Value.IPAM.Pools {
		if e.Value.Spec.Disabled || !e.Value.Allows(api.UseWorkload) { // no pod gets its addresses; some say by such pools where pods need no masquerading
			continue
		}
		for _, a := range v.Host.Value.Addrs {
			net, cidr := a.Addr.Masked(), e.Value.Spec.CIDR
			if a.Dev == "lo" || v.workload(a.Dev) || v.tunnel(a.Dev) || net.Bits() == 0 || !net.Overlaps(cidr) {
				continue
			}
			l.add(Error, "pool "+e.Value.Metadata.Name, "make a pool of a range that nobody else uses, disable this one, and restart its pods (muslinctl ipam check shows them)",
				"its range %v holds addresses of %v, the network of %s: pods get addresses that hosts there have, and answers go astray", cidr, net, a.Dev)
			break
		}
	}
}

// limit judges how many blocks the node may have.
func (l *list) limit(d Data, node string, v6 bool) {
	n, free := 0, 0
	for _, e := range d.IPAM.Blocks {
		if host, ok := e.Value.Host(); ok && host == node && e.Value.CIDR.Addr().Is6() == v6 {
			n, free = n+1, free+block.Free(e.Value)
		}
	}
	most := d.Config.MaxBlocksPerHost
	if most > 0 && n >= most && free == 0 {
		l.add(Error, "maxBlocksPerHost", "raise it (muslinctl ipam configure --max-blocks-per-host), or run fewer pods on the node", "the node has %s, as many as it may have, and all are full", count(n, "block"))
	}
}

// serves tells whether pods of a node get addresses from a pool without asking for it.
func (d Data) serves(p *api.IPPool, node string) bool {
	n := d.node(node)
	selects, err := selector.Parse(p.Spec.NodeSelector)
	return n != nil && err == nil && !p.Spec.Disabled && p.Metadata.DeletionTimestamp == nil && p.Spec.AssignmentMode == api.AssignAutomatic &&
		p.Allows(api.UseWorkload) && selects.Match(selector.Map(n.Metadata.Labels))
}

// use is how much of a pool is in use.
type use struct {
	size, free float64 // addresses; a pool of IPv6 has more than an int counts
	ranges     float64 // of a block's size that have no block
	freeHere   int     // addresses in blocks of the node
}

func (d Data) use(p *api.IPPool, node string) use {
	cidr := p.Spec.CIDR
	u := use{size: math.Exp2(float64(cidr.Addr().BitLen() - cidr.Bits())), ranges: math.Exp2(float64(max(p.Spec.BlockSize-cidr.Bits(), 0)))}
	u.free = u.size
	for _, e := range d.IPAM.Blocks {
		b := e.Value
		if b.CIDR.Bits() < cidr.Bits() || !cidr.Contains(b.CIDR.Addr()) {
			continue
		}
		u.ranges = max(u.ranges-1, 0)
		u.free -= float64(block.Size(b.CIDR) - block.Free(b))
		if host, ok := b.Host(); ok && host == node {
			u.freeHere += block.Free(b)
		}
	}
	return u
}
