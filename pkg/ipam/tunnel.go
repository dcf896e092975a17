package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
	"github.com/muslin-cni/muslin/pkg/selector"
	"github.com/muslin-cni/muslin/pkg/store"
)

// The kinds of tunnel addresses, as TunnelAddr names them.
const (
	TunnelIPIP       = "IP-in-IP"
	TunnelVXLAN      = "VXLAN"
	TunnelVXLAN6     = "IPv6 VXLAN"
	TunnelWireGuard  = "WireGuard"
	TunnelWireGuard6 = "IPv6 WireGuard"
)

// tunnelKind is a kind of tunnel address that a node has.
type tunnelKind struct {
	name    string // for messages
	v6      bool
	handle  string                     // without the node's name
	attr    string                     // api.AttrType
	carries func(api.IPPoolSpec) bool  // nil: all pools of the family, where it is asked for
	has     func(*api.Node) netip.Addr // zero if it has none
	set     func(*api.Node, netip.Addr)
	key     func(*api.NodeStatus) *string // where the Node has the tunnel's public key; nil: it has none
}

// tunnelKinds lists the kinds in the order in which a node gets its addresses, as Calico does: IP-in-IP takes the first of a block.
func tunnelKinds() []tunnelKind {
	vxlan := func(s api.IPPoolSpec) bool { return s.VXLANMode != api.Never }
	return []tunnelKind{{
		name: TunnelIPIP, handle: api.IPIPHandle(""), attr: api.AttrTypeIPIP,
		carries: func(s api.IPPoolSpec) bool { return s.IPIPMode != api.Never },
		has:     ipipAddr, set: setIPIPAddr,
	}, {
		name: TunnelVXLAN, handle: api.VXLANHandle("", false), attr: api.AttrTypeVXLAN, carries: vxlan,
		has: func(n *api.Node) netip.Addr { return n.Spec.IPv4VXLANTunnelAddr },
		set: func(n *api.Node, a netip.Addr) { n.Spec.IPv4VXLANTunnelAddr = a },
	}, {
		name: TunnelVXLAN6, v6: true, handle: api.VXLANHandle("", true), attr: api.AttrTypeVXLAN6, carries: vxlan,
		has: func(n *api.Node) netip.Addr { return n.Spec.IPv6VXLANTunnelAddr },
		set: func(n *api.Node, a netip.Addr) { n.Spec.IPv6VXLANTunnelAddr = a },
	}, {
		name: TunnelWireGuard, handle: api.WireguardHandle("", false), attr: api.AttrTypeWireguard,
		has: func(n *api.Node) netip.Addr { return wireguard(n).InterfaceIPv4Address },
		set: func(n *api.Node, a netip.Addr) {
			setWireguard(n, func(w *api.NodeWireguard) { w.InterfaceIPv4Address = a })
		},
		key: func(s *api.NodeStatus) *string { return &s.WireguardPublicKey },
	}, {
		name: TunnelWireGuard6, v6: true, handle: api.WireguardHandle("", true), attr: api.AttrTypeWireguard6,
		has: func(n *api.Node) netip.Addr { return wireguard(n).InterfaceIPv6Address },
		set: func(n *api.Node, a netip.Addr) {
			setWireguard(n, func(w *api.NodeWireguard) { w.InterfaceIPv6Address = a })
		},
		key: func(s *api.NodeStatus) *string { return &s.WireguardPublicKeyV6 },
	}}
}

func wireguard(n *api.Node) api.NodeWireguard {
	if n.Spec.Wireguard == nil {
		return api.NodeWireguard{}
	}
	return *n.Spec.Wireguard
}

// setWireguard leaves no empty part behind.
func setWireguard(n *api.Node, change func(*api.NodeWireguard)) {
	w := wireguard(n)
	change(&w)
	n.Spec.Wireguard = &w
	if w == (api.NodeWireguard{}) {
		n.Spec.Wireguard = nil
	}
}

func ipipAddr(n *api.Node) netip.Addr {
	if n.Spec.BGP == nil {
		return netip.Addr{}
	}
	return n.Spec.BGP.IPv4IPIPTunnelAddr
}

// setIPIPAddr leaves no empty part behind.
func setIPIPAddr(n *api.Node, a netip.Addr) {
	var bgp api.NodeBGP
	if n.Spec.BGP != nil {
		bgp = *n.Spec.BGP
	}
	bgp.IPv4IPIPTunnelAddr = a
	n.Spec.BGP = &bgp
	if bgp == (api.NodeBGP{}) {
		n.Spec.BGP = nil
	}
}

// with is the node with another address.
func (k tunnelKind) with(n *api.Node, a netip.Addr) *api.Node {
	next := *n
	k.set(&next, a)
	return &next
}

// TunnelAddr is an address of a node's tunnel device.
type TunnelAddr struct {
	Kind string // of the tunnel: VXLAN
	Addr netip.Addr
}

// TunnelAddrs lists the tunnel addresses that a Node records.
func TunnelAddrs(n *api.Node) []TunnelAddr {
	var out []TunnelAddr
	for _, k := range tunnelKinds() {
		if a := k.has(n); a.IsValid() {
			out = append(out, TunnelAddr{k.name, a})
		}
	}
	return out
}

// Wish is what a node asks for beside what its pools say.
type Wish struct {
	Keep []string          // kinds that keep the address that they have though no pool uses them any more
	Keys map[string]string // kinds of WireGuard that are on, with the device's public key; "": it is not known yet, and what the Node has stays
}

// EnsureTunnels is EnsureWish for a node without WireGuard.
func EnsureTunnels(ctx context.Context, c *store.Client, node string, now func() time.Time, keep ...string) (have []TunnelAddr, changed []store.KV, err error) {
	return EnsureWish(ctx, c, node, now, Wish{Keep: keep})
}

// EnsureWish gives the node the tunnel addresses that it should have, of every kind that its pools use or that is WireGuard and on, takes back the others, and
// records them on the Node object with the public keys, all in one transaction. What it needs is read from etcd. An address that the node has is kept while
// it is the node's and in a pool that still serves; one of the kinds in Keep, while it is the node's and in any pool. have is what the Node records then, changed what was written, if anything.
//
// A kind that is refused keeps what it has, and does not stop the others: the error comes beside what was done. The errors are
// *Refusal or the store's; after store.ErrUnknown, call it again.
func EnsureWish(ctx context.Context, c *store.Client, node string, now func() time.Time, w Wish) (have []TunnelAddr, changed []store.KV, err error) {
	var refused error
	err = Retry(ctx, func(int) error {
		t, err := readTunnels(ctx, c, node, now)
		if err != nil {
			return err
		}
		if err := t.plan.facts.ready(node); err != nil {
			return err
		}
		t.wish = w
		t.tellKeys()
		if refused, err = t.ensureAll(ctx); err != nil {
			return err
		}
		have = TunnelAddrs(t.node)
		changed, err = t.commit(ctx, c)
		return err
	})
	if err = errors.Join(err, refused); err != nil {
		return have, changed, fmt.Errorf("give node %s its tunnel addresses: %w", node, err)
	}
	return have, changed, nil
}

// dropTunnels takes back all tunnel addresses of a node. The Node need not exist.
func dropTunnels(ctx context.Context, c *store.Client, gone *Departed, now func() time.Time) error {
	return Retry(ctx, func(attempt int) error {
		if err := gone.Again(ctx, c, attempt); err != nil {
			return err
		}
		t, err := readTunnels(ctx, c, gone.name, now)
		if err == nil {
			err = Unlocked(t.plan.facts.Cluster)
		}
		if err != nil {
			return err
		}
		if t.plan.facts.Node.Rev != gone.node {
			return fmt.Errorf("%s %w", api.NodeKey(gone.name), store.ErrConflict)
		}
		t.plan.picture.lost = nil // its blocks are the caller's business
		for _, k := range tunnelKinds() {
			if _, err := t.plan.Release(ctx, t.handle(k)); err != nil {
				return err
			}
		}
		for _, k := range tunnelKinds() {
			if t.node != nil && k.has(t.node).IsValid() {
				t.node = k.with(t.node, netip.Addr{})
			}
		}
		t.plan.depend(api.IdentityKey(gone.name), gone.identity)
		changed, err := t.commit(ctx, c)
		gone.wrote(changed)
		return err
	})
}

// tunnels is the work on one node's tunnel addresses.
type tunnels struct {
	plan    *Plan
	handles map[string]store.Entry[api.Handle] // by ID
	node    *api.Node                          // as it shall be; nil if there is none

	wish Wish
}

func readTunnels(ctx context.Context, c *store.Client, node string, now func() time.Time) (*tunnels, error) {
	src := Etcd{c}
	facts, err := src.Facts(ctx, node)
	if err = errors.Join(err, facts.Err); err != nil {
		return nil, err
	}
	var ids []string
	for _, k := range tunnelKinds() {
		ids = append(ids, k.handle+node)
	}
	ranges := make([]store.Range, len(ids))
	for i, id := range ids {
		ranges[i].Key = api.HandleKey(id)
	}
	got, _, err := c.Read(ctx, ranges...)
	if err != nil {
		return nil, err
	}
	t := &tunnels{plan: NewPlan(src, node, facts, now()), handles: map[string]store.Entry[api.Handle]{}, node: facts.Node.Value}
	for i, id := range ids {
		if t.handles[id], err = store.One[api.Handle](ranges[i].Key, got[i]); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// ensureAll plans every kind. refused is what could not be had; after err nothing is to be committed.
func (t *tunnels) ensureAll(ctx context.Context) (refused, err error) {
	for _, k := range tunnelKinds() {
		trial := *t
		trial.plan = t.plan.Clone()
		err := trial.ensure(ctx, k)
		var refusal *Refusal
		switch {
		case errors.As(err, &refusal):
			refused = errors.Join(refused, fmt.Errorf("%s: %w", k.name, err))
		case err != nil:
			return nil, fmt.Errorf("%s: %w", k.name, err)
		default:
			*t = trial
		}
	}
	return refused, nil
}

// ensure plans what has to change for one kind.
func (t *tunnels) ensure(ctx context.Context, k tunnelKind) error {
	pools := t.pools(k)
	has := k.has(t.node)
	if err := t.recount(ctx, k, has); err != nil {
		return err
	}
	serving := pools
	switch {
	case len(pools) > 0:
	case slices.Contains(t.wish.Keep, k.name):
		serving = t.known(k)
	default:
		serving = t.carried(k)
	}
	if kept, err := t.keep(ctx, k, has, serving); err != nil || kept {
		return err
	}
	if _, err := t.plan.Release(ctx, t.handle(k)); err != nil {
		return err
	}
	var want netip.Addr
	if len(pools) > 0 {
		a, err := t.plan.Assign(ctx, t.request(k, pools))
		if err != nil {
			return err
		}
		want = a.Addr()
	}
	if want != has {
		t.node = k.with(t.node, want)
	}
	return nil
}

// tellKeys has the Node tell the public keys of what is on, and no others.
func (t *tunnels) tellKeys() {
	next := *t.node
	for _, k := range tunnelKinds() {
		if k.key == nil {
			continue
		}
		if key, on := t.wish.Keys[k.name]; !on || key != "" {
			*k.key(&next.Status) = key
		}
	}
	if next.Status.WireguardPublicKey != t.node.Status.WireguardPublicKey || next.Status.WireguardPublicKeyV6 != t.node.Status.WireguardPublicKeyV6 {
		t.node = &next
	}
}

// carries tells whether the tunnel carries the traffic of a pool of its family.
func (t *tunnels) carries(k tunnelKind, pool api.IPPoolSpec) bool {
	if k.carries == nil {
		_, on := t.wish.Keys[k.name]
		return on
	}
	return k.carries(pool)
}

// recount makes the handle count the address that the Node records, if it holds it and does not.
func (t *tunnels) recount(ctx context.Context, k tunnelKind, has netip.Addr) error {
	if !has.IsValid() {
		return nil
	}
	pool, ok := poolOf(t.plan.facts.Pools, netip.PrefixFrom(has, has.BitLen()))
	if !ok {
		return nil
	}
	cidr, err := t.plan.blockAt(ctx, has, pool.Value.Spec.BlockSize)
	if err != nil {
		return err
	}
	t.plan.recount(t.handle(k), cidr)
	return nil
}

// commit carries out what is planned. All of it rests on what the Node records, also where that stays: the handles were read after it.
func (t *tunnels) commit(ctx context.Context, c *store.Client) ([]store.KV, error) {
	was := t.plan.facts.Node
	t.plan.depend(was.Key, was.Rev)
	if t.node != was.Value {
		t.plan.Then(was.Key, func(txn *store.Txn) { store.Put(txn, was, t.node) })
	}
	txn := t.plan.Txn()
	if txn.Empty() {
		return nil, nil
	}
	return c.Commit(ctx, txn)
}

func (t *tunnels) handle(k tunnelKind) store.Entry[api.Handle] {
	return t.handles[k.handle+t.plan.node]
}

// pools are the pools whose traffic the tunnel carries and that may number it.
func (t *tunnels) pools(k tunnelKind) []store.Entry[api.IPPool] {
	labels := selector.Map(t.plan.facts.Node.Value.Metadata.Labels)
	return slices.DeleteFunc(t.plan.facts.enabled(k.v6), func(e store.Entry[api.IPPool]) bool {
		selects, err := selector.Parse(e.Value.Spec.NodeSelector)
		return err != nil || !selects.Match(labels) || !t.carries(k, e.Value.Spec) || !e.Value.Allows(api.UseTunnel)
	})
}

// carried are the pools whose traffic the tunnel carries, also those that hand out no more addresses on this node: pods that have theirs live on,
// and nobody reaches them once the tunnel has no address.
func (t *tunnels) carried(k tunnelKind) []store.Entry[api.IPPool] {
	return slices.DeleteFunc(t.known(k), func(e store.Entry[api.IPPool]) bool { return !t.carries(k, e.Value.Spec) })
}

// known are the pools of the kind's family, also disabled ones, but for those that are being deleted.
func (t *tunnels) known(k tunnelKind) []store.Entry[api.IPPool] {
	return slices.DeleteFunc(slices.Clone(t.plan.facts.Pools), func(e store.Entry[api.IPPool]) bool {
		p := e.Value
		return p.Metadata.DeletionTimestamp != nil || p.Check() != nil || p.Spec.CIDR.Addr().Is6() != k.v6
	})
}

func (t *tunnels) request(k tunnelKind, pools []store.Entry[api.IPPool]) Request {
	r := Request{
		Handle: k.handle + t.plan.node,
		Attrs:  map[string]string{api.AttrNode: t.plan.node, api.AttrType: k.attr},
		V6:     k.v6,
		Use:    api.UseTunnel,
	}
	for _, e := range pools {
		r.Pools = append(r.Pools, e.Value.Spec.CIDR.String())
	}
	return r
}

// keep reports whether the address on the Node object stays: it is in one of the pools, and the node's own. One that is
// held without any owner, as old versions wrote it, becomes the node's unless it has another already.
func (t *tunnels) keep(ctx context.Context, k tunnelKind, a netip.Addr, pools []store.Entry[api.IPPool]) (bool, error) {
	i := slices.IndexFunc(pools, func(e store.Entry[api.IPPool]) bool { return a.IsValid() && e.Value.Spec.CIDR.Contains(a) })
	if i < 0 {
		return false, nil
	}
	cidr, err := t.plan.blockAt(ctx, a, pools[i].Value.Spec.BlockSize)
	if err != nil {
		return false, err
	}
	o := placed{cidr: cidr, pool: pools[i]}
	b := t.plan.blocks[cidr].now
	if b == nil {
		return false, nil
	}
	owner, held := block.OwnerOf(b, a)
	switch {
	case !held:
		return false, nil
	case owner.HandleID == nil && len(owner.Secondary) == 0 && t.plan.ours(b) && !t.handle(k).Exists():
		return true, t.plan.reown(o, a, t.request(k, pools))
	case owner.HandleID != nil && block.Handle(*owner.HandleID) == k.handle+t.plan.node:
		return true, nil
	}
	return owner.Secondary[api.AttrNode] == t.plan.node && owner.Secondary[api.AttrType] == k.attr, nil
}
