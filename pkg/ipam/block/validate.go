package block

import (
	"errors"
	"fmt"

	"github.com/muslin-cni/muslin/pkg/api"
)

// CheckKey reports why a block cannot be used under its etcd key: it is another's, or no range that a block can have. Such a
// block is left alone: addresses would be given twice, and nodes route whole blocks.
func CheckKey(key string, b *api.Block) error {
	cidr, err := api.ParseBlockKey(key)
	switch {
	case err != nil:
		return err
	case b.CIDR != cidr:
		return fmt.Errorf("the block says that it is %v", b.CIDR)
	case cidr != cidr.Masked() || Size(cidr) == 0:
		return fmt.Errorf("%v is not a range of at most %d addresses", cidr, 1<<maxBits)
	}
	return nil
}

// Validate reports everything in which a block contradicts itself: its range, the number of its addresses, free ones that are
// held or missing from the queue, owners that are not listed. The other functions work on such a block all the same, and what they
// change in it is right afterwards.
func Validate(b *api.Block) error {
	size := Size(b.CIDR)
	if size == 0 || b.CIDR != b.CIDR.Masked() {
		return fmt.Errorf("block %v: not a range of at most %d addresses", b.CIDR, 1<<maxBits)
	}
	if len(b.Allocation) != size {
		return fmt.Errorf("block %v: %d allocations for %d addresses", b.CIDR, len(b.Allocation), size)
	}
	return errors.Join(checkQueue(b), checkOwners(b))
}

func checkQueue(b *api.Block) error {
	var errs []error
	queued := make([]bool, len(b.Allocation))
	for _, n := range b.Unallocated {
		switch {
		case n < 0 || n >= len(b.Allocation):
			errs = append(errs, fmt.Errorf("block %v: free ordinal %d is outside of it", b.CIDR, n))
		case queued[n]:
			errs = append(errs, fmt.Errorf("block %v: ordinal %d is free twice", b.CIDR, n))
		default:
			queued[n] = true
		}
	}
	for n, a := range b.Allocation {
		switch {
		case a == nil && !queued[n]:
			errs = append(errs, fmt.Errorf("block %v: ordinal %d is neither held nor free", b.CIDR, n))
		case a != nil && queued[n]:
			errs = append(errs, fmt.Errorf("block %v: ordinal %d is held and free", b.CIDR, n))
		}
	}
	return errors.Join(errs...)
}

func checkOwners(b *api.Block) error {
	var errs []error
	for n, a := range b.Allocation {
		if a != nil && (*a < 0 || *a >= len(b.Attributes)) {
			errs = append(errs, fmt.Errorf("block %v: ordinal %d is held by owner %d, of %d", b.CIDR, n, *a, len(b.Attributes)))
		}
	}
	if n := len(used(b)); n < len(b.Attributes) {
		errs = append(errs, fmt.Errorf("block %v: %d owners are listed, and %d hold an address", b.CIDR, len(b.Attributes), n))
	}
	return errors.Join(errs...)
}
