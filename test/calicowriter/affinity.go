package calicowriter

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
)

// Outcomes of claiming and giving back blocks.
var (
	errClaimed  = errors.New("already claimed by another")
	errStale    = errors.New("affinity is stale")
	errNotEmpty = errors.New("block is not empty")
	errChanged  = errors.New("IPAM block updated since we last read it")
)

func affinity(s api.AffinityState) *api.Affinity { return &api.Affinity{State: s} }

// Claim makes a block the node's own: affinity pending, block, affinity confirmed.
func (w Writer) Claim(cidr netip.Prefix) *Sequence {
	return w.sequence(fmt.Sprintf("claim %v for %s", cidr, w.Node), func(r *run) error {
		a, err := r.pending(cidr)
		if err != nil {
			return err
		}
		_, err = r.makeBlock(a, cidr)
		return err
	})
}

// pending creates the node's affinity, or makes it pending again unless it is confirmed.
func (r *run) pending(cidr netip.Prefix) (entry[api.Affinity], error) {
	key := api.AffinityKey(r.Node, cidr)
	a, err := create(r, key, affinity(api.AffinityPending))
	if !errors.Is(err, errExists) {
		return a, err
	}
	err = retry(func() (err error) {
		if a, err = get[api.Affinity](r, key); err != nil || a.value.Confirmed() {
			return err
		}
		a, err = update(r, a, affinity(api.AffinityPending))
		return err
	})
	return a, err
}

// makeBlock creates the block of a pending affinity and confirms it.
func (r *run) makeBlock(a entry[api.Affinity], cidr netip.Prefix) (entry[api.Block], error) {
	fresh, err := block.New(cidr, r.Node, r.Now())
	if err != nil {
		return entry[api.Block]{}, err
	}
	b, err := create(r, api.BlockKey(cidr), fresh)
	if errors.Is(err, errExists) {
		b, err = get[api.Block](r, api.BlockKey(cidr))
	}
	if err != nil {
		return b, err
	}
	if !r.owns(b.value) {
		return b, errors.Join(fmt.Errorf("%v: %w", cidr, errClaimed), remove(r, a))
	}
	return b, r.confirm(a)
}

func (r *run) owns(b *api.Block) bool {
	host, ok := b.Host()
	return ok && host == r.Node
}

func (r *run) confirm(a entry[api.Affinity]) error {
	_, err := update(r, a, affinity(api.AffinityConfirmed))
	if !errors.Is(err, errConflict) {
		return err
	}
	now, err := get[api.Affinity](r, a.key)
	if err == nil && !now.value.Confirmed() {
		return fmt.Errorf("confirm %s: %w", a.key, errConflict)
	}
	return err
}

// use returns the block of one of the node's affinities, and puts right what an earlier writer left undone. The error is errStale
// for a block that is not the node's.
func (r *run) use(a entry[api.Affinity], cidr netip.Prefix) (entry[api.Block], error) {
	b, err := get[api.Block](r, api.BlockKey(cidr))
	switch {
	case errors.Is(err, errMissing):
		if a, err = update(r, a, affinity(api.AffinityPending)); err != nil {
			return b, err
		}
		return r.makeBlock(a, cidr)
	case err != nil:
		return b, err
	case !r.owns(b.value):
		return b, errors.Join(fmt.Errorf("%v: %w", cidr, errStale), ignore(remove(r, a), errConflict, errMissing))
	case a.value.Confirmed():
		return b, nil
	}
	if a, err = update(r, a, affinity(api.AffinityPending)); err != nil {
		return b, err
	}
	touched := *b.value
	touched.SequenceNumber++ // so that whoever is about to release the block fails
	if b, err = update(r, b, &touched); err != nil {
		return b, err
	}
	return b, r.confirm(a)
}

// ReleaseAffinity gives the node's block back if it is empty, or makes it nobody's where it need not be: affinity pendingDeletion, block, affinity.
func (w Writer) ReleaseAffinity(cidr netip.Prefix, requireEmpty bool) *Sequence {
	return w.sequence(fmt.Sprintf("release %v of %s", cidr, w.Node), func(r *run) error {
		return r.releaseAffinity(r.Node, cidr, requireEmpty, nil)
	})
}

// releaseAffinity gives a block of the host back. seq is the sequence number that it must still have; nil: any.
func (r *run) releaseAffinity(host string, cidr netip.Prefix, requireEmpty bool, seq *uint64) error {
	return retry(func() error {
		a, err := get[api.Affinity](r, api.AffinityKey(host, cidr))
		if err != nil {
			return ignore(err, errMissing)
		}
		b, err := get[api.Block](r, api.BlockKey(cidr))
		if errors.Is(err, errMissing) {
			return remove(r, a)
		}
		if err != nil {
			return err
		}
		if owner, _ := b.value.Host(); owner != host {
			return errors.Join(fmt.Errorf("%v: %w", cidr, errStale), ignore(remove(r, a), errConflict, errMissing))
		}
		switch {
		case requireEmpty && !block.Empty(b.value):
			return fmt.Errorf("%v: %w", cidr, errNotEmpty)
		case seq != nil && *seq != b.value.SequenceNumber:
			return fmt.Errorf("%v: %w", cidr, errChanged)
		}
		if a, err = update(r, a, affinity(api.AffinityPendingDeletion)); err != nil {
			return err
		}
		if err := r.disown(b); err != nil {
			return err
		}
		return ignore(remove(r, a), errMissing)
	})
}

// disown deletes an empty block and makes another one nobody's.
func (r *run) disown(b entry[api.Block]) error {
	if block.Empty(b.value) {
		return ignore(remove(r, b), errMissing)
	}
	nobodys := *b.value
	nobodys.Affinity, nobodys.ClaimTime = nil, nil
	nobodys.SequenceNumber++
	_, err := update(r, b, &nobodys)
	return err
}

// DeletePool disables the pool, releases every block of it, whoever's it is, and deletes the pool.
func (w Writer) DeletePool(name string) *Sequence {
	return w.sequence("delete pool "+name, func(r *run) error {
		key := (*api.IPPool)(nil).KindOf().Key("", name)
		pool, err := get[api.IPPool](r, key)
		if err != nil {
			return err
		}
		disabled := *pool.value
		disabled.Spec.Disabled = true
		if pool, err = update(r, pool, &disabled); err != nil {
			return err
		}
		blocks, err := r.blocks(disabled.Spec.CIDR)
		if err != nil {
			return err
		}
		for _, b := range blocks {
			host, ok := b.value.Host()
			if !ok {
				continue
			}
			if err := r.releaseAffinity(host, b.value.CIDR, false, nil); ignore(err, errStale) != nil {
				return err
			}
		}
		return remove(r, pool)
	})
}

// blocks lists the blocks within a range.
func (r *run) blocks(within netip.Prefix) ([]entry[api.Block], error) {
	all, err := list[api.Block](r, api.BlocksPrefix(within.Addr().Is6()))
	return slices.DeleteFunc(all, func(b entry[api.Block]) bool { return !within.Contains(b.value.CIDR.Addr()) }), err
}

// releaseHost gives back all blocks of the node.
func (r *run) releaseHost(requireEmpty bool) error {
	affinities, err := list[api.Affinity](r, api.AffinitiesPrefix(r.Node))
	if err != nil {
		return err
	}
	for _, a := range affinities {
		_, cidr, err := api.ParseAffinityKey(a.key)
		if err != nil {
			return err
		}
		if err := r.releaseAffinity(r.Node, cidr, requireEmpty, nil); ignore(err, errStale, errNotEmpty) != nil {
			return err
		}
	}
	return nil
}
