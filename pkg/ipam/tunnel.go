package ipam

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
	"github.com/muslin-cni/muslin/pkg/selector"
	"github.com/muslin-cni/muslin/pkg/store"
)

// EnsureVXLAN gives the node the VXLAN tunnel address that it should have, or takes it back, and records it on the Node object
// in the same transaction. What it needs is read from etcd. The address that the node has is kept while it is the node's and in
// a pool that still serves; the zero Addr means that no VXLAN pool selects the node. changed is what was written, if anything.
//
// The error is a *Refusal or the store's; after store.ErrUnknown, call it again.
func EnsureVXLAN(ctx context.Context, c *store.Client, node string, v6 bool, now func() time.Time) (addr netip.Addr, changed []store.KV, err error) {
	src := Etcd{c}
	err = Retry(ctx, func(int) error {
		facts, err := src.Facts(ctx, node)
		if err != nil {
			return err
		}
		if err := facts.ready(node); err != nil {
			return err
		}
		handle, err := handleEntry(ctx, c, api.VXLANHandle(node, v6))
		if err != nil {
			return err
		}
		t := tunnel{plan: NewPlan(src, node, facts, now()), handle: handle, v6: v6}
		if addr, err = t.ensure(ctx); err != nil {
			return err
		}
		txn := t.plan.Txn()
		if txn.Empty() {
			return nil
		}
		changed, err = c.Commit(ctx, txn)
		return err
	})
	if err != nil {
		return netip.Addr{}, nil, fmt.Errorf("give node %s its VXLAN tunnel address: %w", node, err)
	}
	return addr, changed, nil
}

// handleEntry reads a handle, which may not exist.
func handleEntry(ctx context.Context, c *store.Client, id string) (store.Entry[api.Handle], error) {
	key := api.HandleKey(id)
	got, _, err := c.Read(ctx, store.Range{Key: key})
	if err != nil {
		return store.Entry[api.Handle]{}, err
	}
	return one[api.Handle](key, got[0])
}

// tunnel is the work on one node's tunnel address of one family.
type tunnel struct {
	plan   *Plan
	handle store.Entry[api.Handle]
	v6     bool
}

// ensure plans what has to change and returns the address that will hold.
func (t tunnel) ensure(ctx context.Context) (netip.Addr, error) {
	node := t.plan.facts.Node
	pools := t.pools()
	has := *t.field(node.Value)
	kept, err := t.keep(ctx, has, pools)
	if err != nil || kept {
		return has, err
	}
	if _, err := t.plan.Release(ctx, t.handle); err != nil {
		return netip.Addr{}, err
	}
	var want netip.Addr
	if len(pools) > 0 {
		a, err := t.plan.Assign(ctx, t.request(pools))
		if err != nil {
			return netip.Addr{}, err
		}
		want = a.Addr()
	}
	if want != has {
		next := *node.Value
		*t.field(&next) = want
		t.plan.Then(node.Key, func(txn *store.Txn) { store.Put(txn, node, &next) })
	}
	return want, nil
}

// field is where the Node object records the address.
func (t tunnel) field(n *api.Node) *netip.Addr {
	if t.v6 {
		return &n.Spec.IPv6VXLANTunnelAddr
	}
	return &n.Spec.IPv4VXLANTunnelAddr
}

func (t tunnel) attrType() string {
	if t.v6 {
		return api.AttrTypeVXLAN6
	}
	return api.AttrTypeVXLAN
}

// pools are the pools whose traffic the tunnel carries and that may number it.
func (t tunnel) pools() []store.Entry[api.IPPool] {
	labels := selector.Map(t.plan.facts.Node.Value.Metadata.Labels)
	return slices.DeleteFunc(t.plan.facts.enabled(t.v6), func(e store.Entry[api.IPPool]) bool {
		selects, err := selector.Parse(e.Value.Spec.NodeSelector)
		return err != nil || !selects.Match(labels) || e.Value.Spec.VXLANMode == api.Never || !e.Value.Allows(api.UseTunnel)
	})
}

func (t tunnel) request(pools []store.Entry[api.IPPool]) Request {
	r := Request{
		Handle: api.VXLANHandle(t.plan.node, t.v6),
		Attrs:  map[string]string{api.AttrNode: t.plan.node, api.AttrType: t.attrType()},
		V6:     t.v6,
		Use:    api.UseTunnel,
	}
	for _, e := range pools {
		r.Pools = append(r.Pools, e.Value.Spec.CIDR.String())
	}
	return r
}

// keep reports whether the address on the Node object stays: it is in one of the pools, and the node's own. One that is
// held without any owner, as old versions wrote it, becomes the node's unless it has another already.
func (t tunnel) keep(ctx context.Context, a netip.Addr, pools []store.Entry[api.IPPool]) (bool, error) {
	i := slices.IndexFunc(pools, func(e store.Entry[api.IPPool]) bool { return a.IsValid() && e.Value.Spec.CIDR.Contains(a) })
	if i < 0 {
		return false, nil
	}
	o := placed{netip.PrefixFrom(a, pools[i].Value.Spec.BlockSize).Masked(), pools[i]}
	if err := t.plan.load(ctx, o.cidr); err != nil {
		return false, err
	}
	b := t.plan.blocks[o.cidr].now
	if b == nil {
		return false, nil
	}
	owner, held := block.OwnerOf(b, a)
	switch {
	case !held:
		return false, nil
	case owner.HandleID == nil && len(owner.Secondary) == 0 && t.plan.ours(b) && !t.handle.Exists():
		return true, t.plan.reown(o, a, t.request(pools))
	case owner.HandleID != nil && block.Handle(*owner.HandleID) == api.VXLANHandle(t.plan.node, t.v6):
		return true, nil
	}
	return owner.Secondary[api.AttrNode] == t.plan.node && owner.Secondary[api.AttrType] == t.attrType(), nil
}
