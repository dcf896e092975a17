package ipam

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
	"github.com/muslin-cni/muslin/pkg/store"
)

// Repair is a change that puts right some of what Audit finds. It is one transaction, which depends on all that it rests on.
type Repair struct {
	Text string // what it does
	Txn  *store.Txn
}

// Repairs lists what can be put right without a doubt: handles that do not count what the blocks hold, claims that lead nowhere or were not
// finished, blocks of hosts without a claim, and addresses of containers on nodes that do not exist any more, that no endpoint has.
// The view must be of a datastore that is locked: elsewhere, a writer of several steps may be about to finish what looks wrong. After the
// repairs are committed, another view may show more to do: what an address was released from may be empty now. guard adds to each
// transaction what else it shall depend on.
func Repairs(v View, guard func(*store.Txn)) []Repair {
	r := repairer{audit: newAudit(v), guard: guard, nodes: map[string]bool{}, touched: map[string]bool{}}
	for _, n := range v.Nodes {
		r.nodes[n.Value.Metadata.Name] = true
	}
	for _, u := range v.Unreadable {
		r.touched[u.Key] = true
	}
	r.leaks()
	r.recounts()
	r.claims()
	r.unclaimed()
	return r.out
}

// repairer is the work on one view. Of two repairs of one key, only the first is made: the second is the next view's.
type repairer struct {
	*audit
	guard   func(*store.Txn)
	nodes   map[string]bool // by name
	touched map[string]bool // keys that are written already, or that cannot be read
	out     []Repair
}

// add makes a repair that writes the keys, unless one of them is touched already.
func (r *repairer) add(text string, keys []string, write func(*store.Txn)) {
	if slices.ContainsFunc(keys, func(k string) bool { return r.touched[k] }) {
		return
	}
	for _, k := range keys {
		r.touched[k] = true
	}
	t := &store.Txn{}
	r.guard(t)
	write(t)
	r.out = append(r.out, Repair{Text: text, Txn: t})
}

// leaks releases, per block, what containers of nodes that do not exist hold without an endpoint.
func (r *repairer) leaks() {
	for _, e := range r.Blocks {
		next := e.Value
		var freed []netip.Addr
		for addr, by := range Allocated(e.Value) {
			node := by.Secondary[api.AttrNode]
			if node == "" || r.nodes[node] || by.Secondary[api.AttrType] != "" || len(r.users[addr]) > 0 {
				continue
			}
			released, err := block.ReleaseAddr(next, block.Release{Addr: addr})
			if err != nil {
				continue // the block contradicts itself: Audit says so
			}
			next, freed = released, append(freed, addr)
		}
		if len(freed) == 0 {
			continue
		}
		r.add(fmt.Sprintf("release %v: their nodes do not exist any more", freed), []string{e.Key}, func(t *store.Txn) {
			writeBlock(t, e, next)
		})
	}
}

// writeBlock writes a block after a release: one that is nobody's and empty is deleted.
func writeBlock(t *store.Txn, e store.Entry[api.Block], next *api.Block) {
	if next.Unowned() && block.Empty(next) {
		t.Delete(e.Key, e.Rev)
		return
	}
	store.Put(t, e, next)
}

// maxRecount bounds the blocks of a handle that one transaction looks at.
const maxRecount = store.MaxKeys - 8

// recounts makes handles count what the blocks hold.
func (r *repairer) recounts() {
	handles := map[string]store.Entry[api.Handle]{}
	for _, e := range r.Handles {
		handles[handleID(e)] = e
	}
	for _, id := range slices.Sorted(maps.Keys(mergeSets(handles, r.counts))) {
		e, has := handles[id], r.counts[id]
		e.Key = api.HandleKey(id)
		var says map[string]int
		if e.Exists() {
			says = e.Value.Block
		}
		if e.Exists() && len(has) > 0 && maps.Equal(says, has) {
			continue
		}
		concerned := slices.Sorted(maps.Keys(mergeKeys(has, says)))
		if len(concerned) > maxRecount {
			continue
		}
		r.add(fmt.Sprintf("make handle %s count what the blocks hold", id), []string{e.Key}, func(t *store.Txn) {
			r.expectBlocks(t, concerned)
			if len(has) == 0 {
				t.Delete(e.Key, e.Rev)
				return
			}
			next := api.Handle{}
			if e.Exists() {
				next = *e.Value
			}
			next.Block = has
			store.Put(t, e, &next)
		})
	}
}

// expectBlocks makes the transaction depend on the blocks as they are in the view.
func (r *repairer) expectBlocks(t *store.Txn, cidrs []string) {
	for _, s := range cidrs {
		if cidr, err := netip.ParsePrefix(s); err == nil && cidr == cidr.Masked() {
			t.Expect(api.BlockKey(cidr), r.byCIDR[cidr].Rev)
		}
	}
}

// claims confirms those to blocks that are the node's, and deletes all others.
func (r *repairer) claims() {
	for _, e := range r.Affinities {
		node, cidr, _ := api.ParseAffinityKey(e.Key) // the view holds no others
		b, exists := r.byCIDR[cidr]
		own := exists && ownerOf(b.Value) == api.HostAffinityOf(node)
		if own && e.Value.Confirmed() {
			continue
		}
		text := fmt.Sprintf("delete the affinity of node %s to block %v, which is not its own", node, cidr)
		if own {
			text = fmt.Sprintf("confirm the affinity of node %s to block %v", node, cidr)
		}
		r.add(text, []string{e.Key}, func(t *store.Txn) {
			t.Expect(api.BlockKey(cidr), b.Rev)
			if !own {
				t.Delete(e.Key, e.Rev)
				return
			}
			next := *e.Value
			next.State = api.AffinityConfirmed
			store.Put(t, e, &next)
		})
	}
}

// unclaimed gives a block of a host the claim that it lacks; where there is no such node and the block is empty, the block goes.
func (r *repairer) unclaimed() {
	for _, e := range r.Blocks {
		host, ok := e.Value.Host()
		if !ok || r.claim[api.AffinityKey(host, e.Value.CIDR)] {
			continue
		}
		claim := store.Entry[api.Affinity]{Key: api.AffinityKey(host, e.Value.CIDR)}
		switch {
		case r.nodes[host]:
			r.add(fmt.Sprintf("give node %s the affinity to its block %v", host, e.Value.CIDR), []string{claim.Key}, func(t *store.Txn) {
				t.Expect(e.Key, e.Rev)
				store.Put(t, claim, &api.Affinity{State: api.AffinityConfirmed})
			})
		case block.Empty(e.Value):
			r.add(fmt.Sprintf("delete the empty block %v of node %s, which does not exist", e.Value.CIDR, host), []string{e.Key}, func(t *store.Txn) {
				t.Expect(claim.Key, 0)
				t.Delete(e.Key, e.Rev)
			})
		}
	}
}

func mergeSets[K comparable, A, B any](a map[K]A, b map[K]B) map[K]bool {
	out := make(map[K]bool, len(a)+len(b))
	for k := range a {
		out[k] = true
	}
	for k := range b {
		out[k] = true
	}
	return out
}

// ReleaseAddr takes one address of a block back from its holder, whoever that is, in one transaction with the count of the holder's handle. A
// block that is nobody's and becomes empty is deleted. guard adds to the transaction what else it shall depend on; it may be called
// several times, each time with another transaction. The error is that of block.ReleaseAddr, with block.ErrNotHeld also where there is
// no such block, a *Refusal or the store's.
func ReleaseAddr(ctx context.Context, c *store.Client, cidr netip.Prefix, r block.Release, guard func(*store.Txn)) error {
	return Retry(ctx, func(int) error {
		e, err := store.Get[api.Block](ctx, c, api.BlockKey(cidr))
		if errors.Is(err, store.ErrNotFound) {
			return fmt.Errorf("release %v: there is no block %v: %w", r.Addr, cidr, block.ErrNotHeld)
		}
		if err != nil {
			return err
		}
		next, err := block.ReleaseAddr(e.Value, r)
		if err != nil {
			return err
		}
		t := &store.Txn{}
		guard(t)
		writeBlock(t, e, next)
		if err := discount(ctx, c, t, e.Value, r.Addr); err != nil {
			return err
		}
		_, err = c.Commit(ctx, t)
		return err
	})
}

// discount takes the address from the count of the handle that holds it, which is deleted when it counts nothing more.
func discount(ctx context.Context, c *store.Client, t *store.Txn, b *api.Block, addr netip.Addr) error {
	by, _ := block.OwnerOf(b, addr)
	if by.HandleID == nil {
		return nil
	}
	h, err := store.Get[api.Handle](ctx, c, api.HandleKey(block.Handle(*by.HandleID)))
	if errors.Is(err, store.ErrNotFound) {
		t.Expect(h.Key, 0)
		return nil
	}
	if err != nil {
		return err
	}
	next := *h.Value
	next.Block = maps.Clone(h.Value.Block)
	key := b.CIDR.String()
	if next.Block[key] > 1 {
		next.Block[key]--
	} else {
		delete(next.Block, key)
	}
	if len(next.Block) == 0 {
		t.Delete(h.Key, h.Rev)
		return nil
	}
	store.Put(t, h, &next)
	return nil
}
