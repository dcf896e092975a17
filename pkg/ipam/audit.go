package ipam

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
	"github.com/muslin-cni/muslin/pkg/store"
)

// FindingKind says what is wrong.
type FindingKind string

// The kinds of findings. None can come of Muslin's own transactions; they are what other writers, restored backups and
// hands leave behind.
const (
	BlocksOverlap      FindingKind = "blocks-overlap"      // an address of both could be given twice
	EndpointsShare     FindingKind = "endpoints-share"     // two endpoints with one address
	NoHandle           FindingKind = "no-handle"           // an allocation whose handle does not exist
	HandleOvercounts   FindingKind = "handle-overcounts"   // a handle that counts more than the blocks hold
	HandleUndercounts  FindingKind = "handle-undercounts"  // or less
	NoEndpoint         FindingKind = "no-endpoint"         // an allocation of a container without an endpoint
	NoAllocation       FindingKind = "no-allocation"       // an endpoint whose address, of a pool, nobody holds
	ForeignAllocation  FindingKind = "foreign-allocation"  // an endpoint whose address another container holds
	AffinityUnfinished FindingKind = "affinity-unfinished" // a claim that is neither confirmed nor gone
	AffinityWithout    FindingKind = "affinity-without"    // a claim to a block that does not exist
	AffinityStale      FindingKind = "affinity-stale"      // a claim to a block of somebody else
	NoAffinity         FindingKind = "no-affinity"         // a block of a host that has no claim to it
	BlockDamaged       FindingKind = "block-damaged"       // a block that contradicts itself
	NoPool             FindingKind = "no-pool"             // a block in no pool
	TunnelUnallocated  FindingKind = "tunnel-unallocated"  // a node's tunnel address that is not allocated to it
	Unreadable         FindingKind = "unreadable"          // a value that cannot be decoded
)

// Finding is one thing that is wrong.
type Finding struct {
	Kind   FindingKind
	Keys   []string     // the etcd keys concerned, the one to look at first
	Addrs  []netip.Addr // the addresses concerned, in order; may be none
	Text   string       // what was found
	Remedy string       // what to do about it
}

// String is the finding as one line.
func (f Finding) String() string { return fmt.Sprintf("%s: %s: %s", f.Kind, f.Text, f.Remedy) }

// Audit finds every contradiction in a view. It computes and does nothing else; the order of the findings depends only on the view.
func Audit(v View) []Finding {
	a := newAudit(v)
	for _, bad := range v.Unreadable {
		a.find(Finding{Kind: Unreadable, Keys: []string{bad.Key}, Text: bad.Error(), Remedy: "correct the value, or delete the key"})
	}
	a.overlaps()
	a.blocks()
	a.claims()
	a.handles()
	a.allocations()
	a.endpoints()
	a.tunnels()
	slices.SortStableFunc(a.found, func(x, y Finding) int {
		return cmp.Or(cmp.Compare(x.Kind, y.Kind), slices.Compare(x.Keys, y.Keys), slices.CompareFunc(x.Addrs, y.Addrs, netip.Addr.Compare))
	})
	return a.found
}

// audit is the work on one view.
type audit struct {
	View
	owners map[netip.Addr]owned                    // of every held address; of overlapping blocks, the first
	counts map[string]map[string]int               // held addresses by handle and block, as the blocks say
	users  map[netip.Addr][]string                 // keys of the endpoints with the address
	byCIDR map[netip.Prefix]store.Entry[api.Block] // the blocks
	claim  map[string]bool                         // keys of the affinities
	handle map[string]bool                         // IDs of the handles
	found  []Finding
}

// owned is a held address.
type owned struct {
	block store.Entry[api.Block]
	by    api.Attributes
}

// id is the owner's handle as it is compared; "" if it has none.
func (o owned) id() string {
	if o.by.HandleID == nil {
		return ""
	}
	return block.Handle(*o.by.HandleID)
}

func newAudit(v View) *audit {
	a := &audit{
		View: v, owners: map[netip.Addr]owned{}, counts: map[string]map[string]int{}, users: map[netip.Addr][]string{},
		byCIDR: map[netip.Prefix]store.Entry[api.Block]{}, claim: map[string]bool{}, handle: map[string]bool{},
	}
	for _, e := range v.Blocks {
		a.byCIDR[e.Value.CIDR] = e
		a.count(e)
	}
	for _, e := range v.Affinities {
		a.claim[e.Key] = true
	}
	for _, e := range v.Handles {
		a.handle[handleID(e)] = true
	}
	for _, e := range v.Endpoints {
		for _, n := range e.Value.Spec.IPNetworks {
			a.users[n.Addr()] = append(a.users[n.Addr()], e.Key)
		}
	}
	return a
}

func (a *audit) count(e store.Entry[api.Block]) {
	for addr, by := range Allocated(e.Value) {
		o := owned{e, by}
		if _, known := a.owners[addr]; !known {
			a.owners[addr] = o
		}
		if o.id() == "" {
			continue
		}
		if a.counts[o.id()] == nil {
			a.counts[o.id()] = map[string]int{}
		}
		a.counts[o.id()][e.Value.CIDR.String()]++
	}
}

func (a *audit) find(f Finding) { a.found = append(a.found, f) }

// overlaps looks for blocks within blocks. Two ranges are one in the other or apart, so in order of their first addresses, the
// larger first, a block lies in one of those before it that it has not left yet.
func (a *audit) overlaps() {
	var around []store.Entry[api.Block]
	for _, cidr := range slices.SortedFunc(maps.Keys(a.byCIDR), netip.Prefix.Compare) {
		inner := a.byCIDR[cidr]
		around = slices.DeleteFunc(around, func(o store.Entry[api.Block]) bool { return !o.Value.CIDR.Overlaps(cidr) })
		for _, outer := range around {
			var both []netip.Addr
			for addr := range Allocated(inner.Value) {
				if _, held := block.OwnerOf(outer.Value, addr); held {
					both = append(both, addr)
				}
			}
			a.find(Finding{Kind: BlocksOverlap, Keys: []string{outer.Key, inner.Key}, Addrs: both,
				Text:   fmt.Sprintf("blocks %v of %s and %v of %s overlap, and %d addresses are allocated in both", outer.Value.CIDR, ownerName(outer.Value), cidr, ownerName(inner.Value), len(both)),
				Remedy: "move the pods of one of the two, delete those with addresses of both first, and release that block once it is empty"})
		}
		around = append(around, inner)
	}
}

func (a *audit) blocks() {
	for _, e := range a.Blocks {
		b := e.Value
		if err := block.Validate(b); err != nil {
			a.find(Finding{Kind: BlockDamaged, Keys: []string{e.Key}, Text: strings.ReplaceAll(err.Error(), "\n", "; "),
				Remedy: "what is allocated there next, or released, puts it right"})
		}
		if !a.pooled(b.CIDR) {
			a.find(Finding{Kind: NoPool, Keys: []string{e.Key}, Text: fmt.Sprintf("block %v of %s is in no pool", b.CIDR, ownerName(b)),
				Remedy: "create the pool again, or delete the pods that have its addresses: traffic to them is not masqueraded or encapsulated as they expect"})
		}
		if host, ok := b.Host(); ok && !a.claim[api.AffinityKey(host, b.CIDR)] {
			a.find(Finding{Kind: NoAffinity, Keys: []string{e.Key, api.AffinityKey(host, b.CIDR)}, Text: fmt.Sprintf("block %v is node %s's, which has no affinity to it", b.CIDR, host),
				Remedy: "the node takes it up when it next needs a block; delete it if it is empty and the node is gone"})
		}
	}
}

// pooled reports whether a range lies in a pool.
func (a *audit) pooled(cidr netip.Prefix) bool {
	_, ok := poolOf(a.Pools, cidr)
	return ok
}

func (a *audit) claims() {
	for _, e := range a.Affinities {
		node, cidr, _ := api.ParseAffinityKey(e.Key) // the view holds no others
		b, exists := a.byCIDR[cidr]
		ours := exists && ownerOf(b.Value) == api.HostAffinityOf(node)
		f := Finding{Keys: []string{e.Key, api.BlockKey(cidr)}, Remedy: fmt.Sprintf("node %s puts it right when it next needs a block; delete the key if that node is gone", node)}
		switch {
		case !exists && e.Value.Confirmed():
			f.Kind, f.Text = AffinityWithout, fmt.Sprintf("node %s has an affinity to block %v, which does not exist", node, cidr)
		case exists && !ours:
			f.Kind, f.Text = AffinityStale, fmt.Sprintf("node %s has an affinity to block %v, which is %s's", node, cidr, strings.TrimPrefix(ownerName(b.Value), "node "))
		case !e.Value.Confirmed():
			f.Kind, f.Text = AffinityUnfinished, fmt.Sprintf("node %s's affinity to block %v is %s: whoever was changing it did not finish", node, cidr, e.Value.State)
		default:
			continue
		}
		a.find(f)
	}
}

func (a *audit) handles() {
	for _, e := range a.Handles {
		id := handleID(e)
		more, fewer := Finding{Kind: HandleOvercounts, Keys: []string{e.Key}}, Finding{Kind: HandleUndercounts, Keys: []string{e.Key}}
		var over, under []string
		has := a.counts[id]
		for _, cidr := range slices.Sorted(maps.Keys(mergeKeys(has, e.Value.Block))) {
			says, holds := e.Value.Block[cidr], has[cidr]
			text := fmt.Sprintf("%d of %s, which holds %d", says, cidr, holds)
			switch {
			case says > holds:
				over = append(over, text)
			case says < holds:
				under = append(under, text)
			}
		}
		const remedy = "the DEL of its container puts it right"
		if len(over) > 0 || len(has) == 0 && len(e.Value.Block) == 0 {
			more.Text, more.Remedy = fmt.Sprintf("handle %s counts %s", id, cmp.Or(strings.Join(over, ", "), "nothing")), remedy
			if len(has) == 0 {
				more.Remedy = "it holds no address at all: delete the key"
			}
			a.find(more)
		}
		if len(under) > 0 {
			fewer.Text, fewer.Remedy = fmt.Sprintf("handle %s counts %s", id, strings.Join(under, ", ")), remedy
			a.find(fewer)
		}
	}
}

func mergeKeys(x, y map[string]int) map[string]int {
	out := maps.Clone(y)
	if out == nil {
		out = map[string]int{}
	}
	maps.Copy(out, x)
	return out
}

// allocations looks for the owners of what is held. Only a container's allocation has an endpoint: those of tunnels and
// services name their type.
func (a *audit) allocations() {
	for _, addr := range slices.SortedFunc(maps.Keys(a.owners), netip.Addr.Compare) {
		o := a.owners[addr]
		keys, who := []string{o.block.Key}, ownerText(o.by)
		switch {
		case o.id() == "":
			a.find(Finding{Kind: NoHandle, Keys: keys, Addrs: []netip.Addr{addr}, Text: fmt.Sprintf("%v is allocated (%s) without a handle", addr, who),
				Remedy: "release it if nobody uses it (muslinctl ipam release)"})
		case !a.handle[o.id()]:
			a.find(Finding{Kind: NoHandle, Keys: append(keys, api.HandleKey(o.id())), Addrs: []netip.Addr{addr},
				Text:   fmt.Sprintf("%v is allocated to handle %s (%s), which does not exist", addr, o.id(), who),
				Remedy: "the container's DEL does not find it: release it once the container is gone (muslinctl ipam release)"})
		}
		if o.by.Secondary[api.AttrType] == "" && len(a.users[addr]) == 0 {
			a.find(Finding{Kind: NoEndpoint, Keys: append(keys, api.HandleKey(o.id())), Addrs: []netip.Addr{addr},
				Text:   fmt.Sprintf("%v is allocated to %s and no endpoint has it", addr, who),
				Remedy: "right where another main plugin (bridge, macvlan) uses muslin-ipam; else release it once its container is gone (muslinctl ipam release)"})
		}
	}
}

func (a *audit) endpoints() {
	for _, addr := range slices.SortedFunc(maps.Keys(a.users), netip.Addr.Compare) {
		if keys := a.users[addr]; len(keys) > 1 {
			a.find(Finding{Kind: EndpointsShare, Keys: keys, Addrs: []netip.Addr{addr}, Text: fmt.Sprintf("%d endpoints have the address %v", len(keys), addr),
				Remedy: "delete all of these pods but the one that holds it, or all"})
		}
	}
	for _, e := range a.Endpoints {
		for _, n := range e.Value.Spec.IPNetworks {
			a.endpoint(e, n.Addr())
		}
	}
}

// endpoint holds an endpoint's address against who holds it.
func (a *audit) endpoint(e store.Entry[api.WorkloadEndpoint], addr netip.Addr) {
	o, held := a.owners[addr]
	s := e.Value.Spec
	switch {
	case !held && a.pooled(netip.PrefixFrom(addr, addr.BitLen())):
		a.find(Finding{Kind: NoAllocation, Keys: []string{e.Key}, Addrs: []netip.Addr{addr}, Text: fmt.Sprintf("%s on node %s has the address %v, which is not allocated: it can be given to another", endpointText(e.Value), s.Node, addr),
			Remedy: "delete the pod"})
	case held && o.id() != "" && s.ContainerID != "" && !strings.HasSuffix(o.id(), "."+s.ContainerID):
		a.find(Finding{Kind: ForeignAllocation, Keys: []string{e.Key, o.block.Key}, Addrs: []netip.Addr{addr}, Text: fmt.Sprintf("%s on node %s has the address %v, which is allocated to %s", endpointText(e.Value), s.Node, addr, ownerText(o.by)),
			Remedy: "delete the pod that came later"})
	}
}

// endpointText names an endpoint for a message.
func endpointText(w *api.WorkloadEndpoint) string {
	if w.Spec.Pod != "" {
		return fmt.Sprintf("pod %s/%s", w.Metadata.Namespace, w.Spec.Pod)
	}
	return "container " + w.Spec.ContainerID
}

func (a *audit) tunnels() {
	for _, e := range a.Nodes {
		for _, k := range tunnelKinds() {
			a.tunnel(e, k)
		}
	}
}

// tunnel holds a node's tunnel address against who holds it.
func (a *audit) tunnel(e store.Entry[api.Node], k tunnelKind) {
	addr, node := k.has(e.Value), e.Value.Metadata.Name
	o, held := a.owners[addr]
	attrs := o.by.Secondary
	if !addr.IsValid() || held && attrs[api.AttrType] == k.attr && attrs[api.AttrNode] == node {
		return
	}
	who := "nobody"
	if held {
		who = ownerText(o.by)
	}
	a.find(Finding{Kind: TunnelUnallocated, Keys: []string{e.Key}, Addrs: []netip.Addr{addr},
		Text:   fmt.Sprintf("node %s has the tunnel address %v (%s), which is allocated to %s", node, addr, k.attr, who),
		Remedy: "restart the node's agent, which allocates another"})
}
