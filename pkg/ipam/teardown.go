package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
	"github.com/muslin-cni/muslin/pkg/store"
)

// Remains tells what a ReleasePool or ReleaseNode has done, and what is left for somebody else to do. Lists are in order.
type Remains struct {
	Deleted  []netip.Prefix // blocks that were empty
	Disowned []netip.Prefix // blocks that are nobody's now: their last address to be released deletes them
	Claims   []string       // keys of claims that had no such block, deleted
	Damaged  []string       // keys of blocks that cannot be read, left alone
	Held     []Holding      // addresses that are still in use
}

// ReleasePool takes the blocks in a range from their owners: empty ones are deleted, and those with addresses in use become nobody's.
// Each is one transaction with the owner's claim. The pool must be disabled, or gone: else nodes claim its blocks anew. It may be
// interrupted anywhere and called again, and goes on past what fails; the errors come joined, beside what was done. While the datastore is locked it is
// refused, between any two transactions: see Unlocked.
func ReleasePool(ctx context.Context, c *store.Client, pool netip.Prefix) (Remains, error) {
	t := teardown{
		c: c, v6: []bool{pool.Addr().Is6()},
		concerns: func(cidr netip.Prefix, _ string) bool {
			return pool.Bits() <= cidr.Bits() && pool.Contains(cidr.Addr())
		},
		holds: func(h Holding) bool { return pool.Contains(h.Addr) },
	}
	if err := t.run(ctx, api.HostsRoot, virtualRoot); err != nil {
		return t.done, fmt.Errorf("release the blocks of pool %v: %w", pool, err)
	}
	return t.done, nil
}

// ReleaseNode takes from a node that is gone what it has in the datastore: its tunnel addresses, in one transaction with their
// entries on the Node if that is still there, then its blocks, as ReleasePool does, and the marker that old versions keep per host. What
// its pods hold stays, and is named in Held. Where somebody works under the name again, it stops, and the error is ErrCameBack. Otherwise as ReleasePool.
func ReleaseNode(ctx context.Context, c *store.Client, gone *Departed, now func() time.Time) (Remains, error) {
	node := gone.name
	own := api.HostAffinityOf(node)
	t := teardown{
		c: c, v6: []bool{false, true}, gone: gone,
		concerns: func(_ netip.Prefix, owner string) bool { return owner == own },
		holds:    func(h Holding) bool { return h.Attrs[api.AttrNode] == node },
	}
	tunnels := dropTunnels(ctx, c, gone, now)
	if errors.Is(tunnels, ErrCameBack) {
		return t.done, tunnels
	}
	blocks := t.run(ctx, api.AffinitiesPrefix(node))
	marker := t.unmark(ctx, strings.TrimSuffix(api.AffinitiesPrefix(node), "/"))
	if err := errors.Join(tunnels, blocks, marker); err != nil {
		return t.done, fmt.Errorf("release what node %s has: %w", node, err)
	}
	return t.done, nil
}

// virtualRoot is the root of claims of owners that are no hosts.
const virtualRoot = api.IPAMRoot + "virtual/"

// teardown is a procedure that takes blocks from their owners.
type teardown struct {
	c        *store.Client
	v6       []bool                                     // the families that are concerned
	concerns func(cidr netip.Prefix, owner string) bool // a block, or a claim; owner is "host:node", "" for nobody
	holds    func(Holding) bool                         // what is worth a mention in Held
	gone     *Departed                                  // on which all rests; nil: it is no node's
	done     Remains

	cluster *store.Entry[api.ClusterInformation] // as it was read last; nil: it was not yet
}

// begin is a transaction that depends on the datastore not being locked, and on the node's being gone. What was read of that before a conflict is read again.
func (t *teardown) begin(ctx context.Context, attempt int) (*store.Txn, error) {
	if err := t.gone.Again(ctx, t.c, attempt); err != nil {
		return nil, err
	}
	if t.cluster == nil || attempt > 0 {
		e, err := store.Get[api.ClusterInformation](ctx, t.c, ClusterKey())
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return nil, err
		}
		t.cluster = &e
	}
	txn := &store.Txn{}
	txn.Expect(ClusterKey(), t.cluster.Rev)
	if t.gone != nil {
		t.gone.Expect(txn)
	}
	return txn, Unlocked(*t.cluster)
}

// unmark deletes a host's marker, if there is one.
func (t *teardown) unmark(ctx context.Context, key string) error {
	return Retry(ctx, func(attempt int) error {
		got, _, err := t.c.Read(ctx, store.Range{Key: key})
		if err != nil || len(got[0]) == 0 {
			return err
		}
		txn, err := t.begin(ctx, attempt)
		if err != nil {
			return err
		}
		txn.Delete(key, got[0][0].Rev)
		_, err = t.c.Commit(ctx, txn)
		return err
	})
}

// run releases every block that is concerned, then the claims below the roots that lead to none, and lists what is left.
func (t *teardown) run(ctx context.Context, roots ...string) error {
	ranges := make([]store.Range, len(roots))
	for i, r := range roots {
		ranges[i] = store.Range{Key: r, Prefix: true}
	}
	claims, _, err := t.c.ReadAll(ctx, claimsPage, ranges...)
	if err != nil {
		return err
	}
	var errs []error
	for _, v6 := range t.v6 {
		errs = append(errs, t.family(ctx, v6))
	}
	for _, kv := range claims {
		owner, cidr, ok := parseClaim(kv.Key)
		if !ok || !t.concerns(cidr, owner) {
			continue
		}
		if err := t.claim(ctx, kv.Key, cidr, owner); err != nil {
			errs = append(errs, err)
		}
		if stops(errs) {
			break
		}
	}
	return errors.Join(append(errs, t.rest(ctx))...)
}

// family releases the blocks of a family.
func (t *teardown) family(ctx context.Context, v6 bool) error {
	all, err := Etcd{t.c}.AllBlocks(ctx, v6)
	errs := []error{err}
	for _, e := range all {
		cidr, err := api.ParseBlockKey(e.Key)
		switch {
		case err != nil:
		case e.Value == nil && t.concerns(cidr, ""):
			t.done.Damaged = append(t.done.Damaged, e.Key)
		case e.Value != nil && t.concerns(cidr, ownerOf(e.Value)):
			errs = append(errs, t.block(ctx, cidr))
		}
		if stops(errs) {
			break
		}
	}
	return errors.Join(errs...)
}

// stops reports whether the last error is one that all that follows would meet too.
func stops(errs []error) bool {
	if len(errs) == 0 {
		return false
	}
	last := errs[len(errs)-1]
	for _, e := range []error{ErrNotReady, ErrCameBack, store.ErrUnavailable, store.ErrUnauthorized, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(last, e) {
			return true
		}
	}
	return false
}

// block releases one block: with its owner's claim, and as it is now.
func (t *teardown) block(ctx context.Context, cidr netip.Prefix) error {
	return Retry(ctx, func(attempt int) error {
		entries, err := Etcd{t.c}.Blocks(ctx, cidr)
		if err != nil {
			return err
		}
		e := entries[0]
		if e.Value == nil || !t.concerns(cidr, ownerOf(e.Value)) {
			return nil
		}
		owner, empty := ownerOf(e.Value), block.Empty(e.Value)
		if owner == "" && !empty {
			return nil // nobody's already; Held tells of its addresses
		}
		txn, err := t.begin(ctx, attempt)
		if err != nil {
			return err
		}
		if err := t.deleteKey(ctx, txn, api.OwnerKey(owner, cidr)); err != nil {
			return err
		}
		list := &t.done.Disowned
		if empty {
			list = &t.done.Deleted
			txn.Delete(e.Key, e.Rev)
		} else {
			store.Put(txn, e, block.Disown(e.Value))
		}
		if _, err := t.c.Commit(ctx, txn); err != nil {
			return err
		}
		*list = append(*list, cidr)
		return nil
	})
}

// deleteKey adds the deletion of a key, if it exists.
func (t *teardown) deleteKey(ctx context.Context, txn *store.Txn, key string) error {
	if key == "" {
		return nil
	}
	got, _, err := t.c.Read(ctx, store.Range{Key: key})
	if err != nil {
		return err
	}
	if len(got[0]) == 0 {
		txn.Expect(key, 0)
		return nil
	}
	txn.Delete(key, got[0][0].Rev)
	return nil
}

// claim deletes a claim whose block is not there, or another's.
func (t *teardown) claim(ctx context.Context, key string, cidr netip.Prefix, owner string) error {
	return Retry(ctx, func(attempt int) error {
		entries, err := Etcd{t.c}.Blocks(ctx, cidr)
		if err != nil {
			return err
		}
		e := entries[0]
		if e.Exists() && (e.Value == nil || ownerOf(e.Value) == owner) {
			return nil // damaged, or claimed a moment ago
		}
		txn, err := t.begin(ctx, attempt)
		if err != nil {
			return err
		}
		txn.Expect(e.Key, e.Rev)
		if err := t.deleteKey(ctx, txn, key); err != nil || txn.Empty() {
			return err
		}
		if _, err := t.c.Commit(ctx, txn); err != nil {
			return err
		}
		t.done.Claims = append(t.done.Claims, key)
		return nil
	})
}

// rest lists the addresses that are in use still.
func (t *teardown) rest(ctx context.Context) error {
	var errs []error
	for _, v6 := range t.v6 {
		all, err := Etcd{t.c}.AllBlocks(ctx, v6)
		errs = append(errs, err)
		for _, e := range all {
			if e.Value == nil {
				continue
			}
			for _, h := range Holdings(e.Value) {
				if t.holds(h) {
					t.done.Held = append(t.done.Held, h)
				}
			}
		}
	}
	return errors.Join(errs...)
}

// parseClaim reads the key of a claim, a host's or a virtual owner's.
func parseClaim(key string) (owner string, cidr netip.Prefix, ok bool) {
	kind := "host:"
	if rest, virtual := strings.CutPrefix(key, virtualRoot); virtual {
		kind, key = "virtual:", api.HostsRoot+rest
	}
	name, cidr, err := api.ParseAffinityKey(key)
	return kind + name, cidr, err == nil
}
