package objects

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
)

// settle is how long a disabled pool is left alone before its blocks are taken away. Muslin's allocations depend on the pool's revision and
// need no time; Calico's, in several steps, may have read the pool just before.
const settle = 500 * time.Millisecond

// Delete removes the object of that kind, name and namespace; where target has a resourceVersion, only if it still is that one. The error
// is a *NotFoundError if there is none. Deleting an IPPool disables it, takes its blocks from the nodes and then deletes it; deleting a
// Node first takes back what the node and its endpoints hold. Both may be interrupted and called again.
func (c *Client) Delete(ctx context.Context, target api.Object) error {
	k, m := target.KindOf(), target.Meta()
	if k.ReadOnly {
		return &ReadOnlyError{Op: "delete", Kind: k.Name}
	}
	if err := api.Permit(api.OpDelete, target); err != nil {
		return err
	}
	old, err := c.Get(ctx, k, m.Namespace, m.Name)
	if err != nil {
		return err
	}
	if err := sameRevision(target, old); err != nil {
		return err
	}
	switch k.Name {
	case "IPPool":
		return c.deletePool(ctx, old)
	case "Node":
		gone, err := ipam.DepartAnyway(ctx, c.Store, m.Name)
		if err != nil {
			return err
		}
		return c.DeleteNode(ctx, m.Name, gone)
	case "Tier":
		if err := c.tierIsEmpty(ctx, m.Name); err != nil {
			return err
		}
	}
	return c.deleteKey(ctx, old, target)
}

// deleteKey deletes an object that is still as it was read; one that has changed meanwhile is read again, unless the user named a revision.
func (c *Client) deleteKey(ctx context.Context, old Stored, target api.Object) error {
	for range tries {
		err := c.commit(ctx, write{key: old.Key, rev: old.Rev})
		if !errors.Is(err, store.ErrConflict) {
			return err
		}
		m := target.Meta()
		if old, err = c.Get(ctx, target.KindOf(), m.Namespace, m.Name); err != nil {
			return err
		}
		if err := sameRevision(target, old); err != nil {
			return err
		}
	}
	return fmt.Errorf("delete %s: %w %d times in a row", api.Identify(target), store.ErrConflict, tries)
}

// tierIsEmpty refuses while a policy names the tier.
func (c *Client) tierIsEmpty(ctx context.Context, tier string) error {
	for _, k := range api.Kinds() {
		if k.Names != api.NamePolicy && k.Names != api.NameGlobalPolicy {
			continue
		}
		all, err := c.List(ctx, k, "")
		if err != nil {
			return err // a policy that cannot be read may be of the tier
		}
		for _, s := range all.Items {
			for _, r := range api.References(s.Object) {
				if r.Kind.Name == "Tier" && r.Name == tier {
					return &api.UnsupportedError{Op: api.OpDelete, Object: identify(r.Kind, "", tier),
						Reason: "Cannot delete a non-empty tier: " + api.Identify(s.Object) + " is in it"}
				}
			}
		}
	}
	return nil
}

func (c *Client) deletePool(ctx context.Context, old Stored) error {
	pool, ok := old.Object.(*api.IPPool)
	if !ok {
		return fmt.Errorf("delete %s: it is no pool", api.Identify(old.Object))
	}
	name, cidr := api.Identify(pool), pool.Spec.CIDR
	if !cidr.IsValid() {
		return c.deleteKey(ctx, old, pool) // never of use, so nobody has an address of it
	}
	if err := c.sayHeld(ctx, name, cidr); err != nil || c.DryRun {
		return err
	}
	if err := c.disable(ctx, pool); err != nil {
		return fmt.Errorf("disable %s: %w", name, err)
	}
	left, err := ipam.ReleasePool(ctx, c.Store, cidr)
	for _, key := range left.Damaged {
		c.notice("%s: the block at %s cannot be read and was left alone", name, key)
	}
	if err != nil {
		return fmt.Errorf("%s is disabled and not deleted yet, run the command again: %w", name, err)
	}
	key := api.KeyOf(pool)
	return ipam.Retry(ctx, func(int) error {
		got, _, err := c.Store.Read(ctx, store.Range{Key: key})
		if err != nil || len(got[0]) == 0 {
			return err
		}
		var txn store.Txn
		txn.Delete(key, got[0][0].Rev)
		_, err = c.Store.Commit(ctx, &txn)
		return err
	})
}

// disable stops allocations from a pool and gives those of other writers that are under way the time to end.
func (c *Client) disable(ctx context.Context, pool *api.IPPool) error {
	var was bool
	_, err := store.Mutate(ctx, c.Store, api.KeyOf(pool), func(p *api.IPPool, exists bool) (bool, error) {
		was = p.Spec.Disabled || !exists
		p.Spec.Disabled = true
		return !was, nil
	})
	if err != nil || was {
		return err
	}
	wait := time.NewTimer(settle)
	defer wait.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-wait.C:
		return nil
	}
}

// sayHeld tells how many addresses of a pool are in use, and on which nodes.
func (c *Client) sayHeld(ctx context.Context, name string, cidr netip.Prefix) error {
	held, err := c.holdings(ctx, cidr.Addr().Is6())
	if err != nil {
		return err
	}
	var pods []ipam.Holding
	for _, h := range held {
		if cidr.Contains(h.Addr) && h.Attrs[api.AttrType] == "" {
			pods = append(pods, h)
		}
	}
	if len(pods) > 0 {
		c.notice("%s: %s; they keep them until they are deleted", name, census(pods))
	}
	return nil
}

// census is how many pods have addresses of a pool, and where.
func census(held []ipam.Holding) string {
	on := map[string]int{}
	for _, h := range held {
		on[h.Attrs[api.AttrNode]]++
	}
	var parts []string
	for _, node := range slices.Sorted(maps.Keys(on)) {
		where := "on " + node
		if node == "" {
			where = "nobody knows where"
		}
		parts = append(parts, fmt.Sprintf("%d %s", on[node], where))
	}
	return fmt.Sprintf("%s addresses of it (%s)", plural(len(held), "pod still has", "pods still have"), strings.Join(parts, ", "))
}

// plural is a count with its noun and verb.
func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func (c *Client) holdings(ctx context.Context, v6 bool) ([]ipam.Holding, error) {
	blocks, err := ipam.Etcd{Client: c.Store}.AllBlocks(ctx, v6)
	if err != nil {
		return nil, err
	}
	var out []ipam.Holding
	for _, b := range blocks {
		if b.Value != nil {
			out = append(out, ipam.Holdings(b.Value)...)
		}
	}
	return out, nil
}

func (c *Client) notice(format string, args ...any) {
	if c.Notice != nil {
		c.Notice(fmt.Sprintf(format, args...))
	}
}

// DeleteNode takes back, in this order, what the node's endpoints hold and the endpoints, and its tunnel addresses and blocks; its
// settings, the record of whose its name is and the Node, if there is one, go last, so that an interrupted call finds the Node again. The error is
// ipam.ErrCameBack where the node was judged to be gone and somebody works under its name again.
func (c *Client) DeleteNode(ctx context.Context, node string, gone *ipam.Departed) error {
	endpoints, err := c.endpointsOn(ctx, node)
	if err != nil {
		return err
	}
	if len(endpoints) > 0 {
		c.notice("Node(%s): %s recorded on it, whose endpoints and addresses are taken back: they lose their network if that host still runs", node,
			plural(len(endpoints), "pod is", "pods are"))
	}
	if c.DryRun {
		return nil
	}
	if err := c.deleteEndpoints(ctx, node, gone, endpoints); err != nil {
		return fmt.Errorf("delete the endpoints of node %s: %w", node, err)
	}
	left, err := ipam.ReleaseNode(ctx, c.Store, gone, c.Now)
	for _, key := range left.Damaged {
		c.notice("Node(%s): the block at %s cannot be read and was left alone", node, key)
	}
	if len(left.Held) > 0 {
		c.notice("Node(%s): %s allocated to it that no endpoint has: `muslinctl ipam check` lists them", node,
			plural(len(left.Held), "address stays", "addresses stay"))
	}
	if err != nil {
		return err
	}
	last := []store.Range{
		{Key: (*api.FelixConfiguration)(nil).KindOf().Key("", "node."+node)},
		{Key: api.PathsKey(node)},
	}
	return ipam.Retry(ctx, func(attempt int) error {
		if err := gone.Again(ctx, c.Store, attempt); err != nil {
			return err
		}
		got, _, err := c.Store.Read(ctx, last...)
		if err != nil {
			return err
		}
		var txn store.Txn
		gone.Delete(&txn)
		for _, kvs := range got {
			for _, kv := range kvs {
				txn.Delete(kv.Key, kv.Rev)
			}
		}
		if txn.Empty() {
			return nil
		}
		_, err = c.Store.Commit(ctx, &txn)
		return err
	})
}

// endpointsOn lists a node's endpoints. One that cannot be read may be any node's, and stops nobody.
func (c *Client) endpointsOn(ctx context.Context, node string) ([]Stored, error) {
	all, err := c.List(ctx, (*api.WorkloadEndpoint)(nil).KindOf(), "")
	if err != nil && all.Rev == 0 {
		return nil, err
	}
	if err != nil {
		c.notice("Node(%s): left alone: %v", node, err)
	}
	return slices.DeleteFunc(all.Items, func(s Stored) bool {
		w, ok := s.Object.(*api.WorkloadEndpoint)
		return !ok || w.Spec.Node != node
	}), nil
}

// deleteEndpoints deletes a node's endpoints, each in one transaction with the addresses of its container.
func (c *Client) deleteEndpoints(ctx context.Context, node string, gone *ipam.Departed, endpoints []Stored) error {
	handles := map[netip.Addr]string{}
	for _, v6 := range []bool{false, true} {
		held, err := c.holdings(ctx, v6)
		if err != nil {
			return err
		}
		for _, h := range held {
			if on := h.Attrs[api.AttrNode]; on == node || on == "" {
				handles[h.Addr] = h.Handle
			}
		}
	}
	for _, s := range endpoints {
		w, ok := s.Object.(*api.WorkloadEndpoint)
		if !ok {
			continue
		}
		if err := c.deleteEndpoint(ctx, s.Key, node, gone, handlesOf(w, handles)); err != nil {
			return err
		}
	}
	return nil
}

// handlesOf lists what an endpoint's addresses are allocated to, each handle once.
func handlesOf(w *api.WorkloadEndpoint, handles map[netip.Addr]string) []string {
	var out []string
	for _, p := range w.Spec.IPNetworks {
		if h := handles[p.Addr()]; h != "" && !slices.Contains(out, h) {
			out = append(out, h)
		}
	}
	return out
}

func (c *Client) deleteEndpoint(ctx context.Context, key, node string, gone *ipam.Departed, handles []string) error {
	return ipam.Retry(ctx, func(attempt int) error {
		if err := gone.Again(ctx, c.Store, attempt); err != nil {
			return err
		}
		cluster, err := store.Get[api.ClusterInformation](ctx, c.Store, ipam.ClusterKey())
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		if err := ipam.Unlocked(cluster); err != nil {
			return err
		}
		plan := ipam.NewPlan(ipam.Etcd{Client: c.Store}, node, ipam.Facts{Cluster: cluster}, c.Now())
		for _, id := range handles {
			h, err := store.Get[api.Handle](ctx, c.Store, api.HandleKey(id))
			if errors.Is(err, store.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			if _, err := plan.Release(ctx, h); err != nil {
				return err
			}
		}
		got, _, err := c.Store.Read(ctx, store.Range{Key: key})
		if err != nil {
			return err
		}
		for _, kv := range got[0] {
			plan.Then("endpoint", func(t *store.Txn) { t.Delete(kv.Key, kv.Rev) })
		}
		txn := plan.Txn()
		if txn.Empty() {
			return nil
		}
		gone.Expect(txn)
		_, err = c.Store.Commit(ctx, txn)
		return err
	})
}
