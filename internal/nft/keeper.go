package nft

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/nftable"
)

// syncAttempts is how often Sync lists and commits anew because others committed in between; after that it commits whatever others do.
const syncAttempts = 5

// Keeper makes one table of the kernel hold what it is told, with as little work as what is known allows.
//
//  1. A change costs its delta: while the kernel is known to hold what was told before, nothing is listed.
//  2. Whatever others did is found: after an error, after Doubt, and when Check sees that the namespace's rules changed without us, the table is listed, and what
//     differs is put right.
//  3. At no moment is anything but the old content or the new in force: everything is one transaction each time.
//
// Methods may be called by any goroutine; one is executed at a time.
type Keeper struct {
	c     Rules
	table string

	mu        sync.Mutex
	confirmed bool   // the kernel holds what was told last
	gen       uint32 // of our last commit or look, if nobody else committed meanwhile; 0 if that is not known
}

// Rules is what a Keeper asks of the kernel: a Conn, or a simulated one.
type Rules interface {
	Generation(ctx context.Context) (uint32, error)
	List(ctx context.Context, table string) (nftable.Listing, uint32, error)
	Commit(ctx context.Context, table string, d nftable.Delta, gen uint32) error
	Owns() bool
	Adopt(ctx context.Context, table string) error
}

// NewKeeper returns a keeper of a table. It touches nothing yet.
func NewKeeper(c Rules, table string) *Keeper { return &Keeper{c: c, table: table} }

// Done says what a call did.
type Done struct {
	Listed  bool          // the kernel was asked what it holds
	Changed nftable.Delta // what was committed
}

// Apply makes the kernel hold want, where d leads to want from what was told last. Unless the kernel is known to hold that, and if it
// refuses d, it does what Sync does. If keep, nothing is taken away that might be newer than want, see nftable.Delta.Additions; then the
// next call lists anew. After an error the kernel holds what it held, or want.
func (k *Keeper) Apply(ctx context.Context, want *nftable.Table, d nftable.Delta, keep bool) (Done, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.confirmed || keep {
		return k.sync(ctx, want, keep)
	}
	if d.Empty() {
		return Done{}, nil
	}
	k.confirmed = false
	err := k.commit(ctx, d, 0)
	if err == nil {
		k.confirmed = true
		return Done{Changed: d}, nil
	}
	if ctx.Err() != nil {
		return Done{}, err
	}
	done, errSync := k.sync(ctx, want, false)
	if errSync != nil {
		return done, errors.Join(err, errSync)
	}
	return done, nil
}

// Sync lists the table and makes it hold want, whatever was believed.
func (k *Keeper) Sync(ctx context.Context, want *nftable.Table, keep bool) (Done, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.sync(ctx, want, keep)
}

// Check is Sync if anybody but this keeper has committed rules in the namespace since the last look, and costs next to nothing if nobody has.
func (k *Keeper) Check(ctx context.Context, want *nftable.Table) (Done, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	gen, err := k.c.Generation(ctx)
	if err != nil {
		return Done{}, err
	}
	if k.confirmed && k.gen == gen {
		return Done{}, nil
	}
	return k.sync(ctx, want, false)
}

// Doubt says that the table may have been changed by somebody else: the next Apply lists it.
func (k *Keeper) Doubt() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.confirmed = false
}

func (k *Keeper) sync(ctx context.Context, want *nftable.Table, keep bool) (Done, error) {
	k.confirmed = false
	for attempt := range syncAttempts {
		have, gen, err := k.c.List(ctx, k.table)
		if err != nil {
			return Done{Listed: true}, err
		}
		if have.Exists {
			if gen, err = k.adopt(ctx, gen); err != nil {
				return Done{Listed: true}, err
			}
		}
		d := nftable.Diff(have, want)
		if keep && !d.Whole {
			d = d.Additions()
		}
		if attempt == syncAttempts-1 {
			gen = 0
		}
		err = k.commit(ctx, d, gen)
		switch {
		case err == nil:
			k.confirmed = !keep
			return Done{Listed: true, Changed: d}, nil
		case !errors.Is(err, unix.ERESTART):
			return Done{Listed: true}, fmt.Errorf("write table %s: %w", k.table, err)
		}
	}
	return Done{Listed: true}, fmt.Errorf("write table %s: %w", k.table, errChanged)
}

// adopt makes the table ours once more, and returns the generation that this began: gen if it did not have to.
func (k *Keeper) adopt(ctx context.Context, gen uint32) (uint32, error) {
	if !k.c.Owns() {
		return gen, nil
	}
	if err := k.c.Adopt(ctx, k.table); err != nil {
		return 0, err
	}
	after, err := k.c.Generation(ctx)
	if err != nil {
		return 0, err
	}
	if after != gen && after != gen+1 {
		return gen, nil // somebody else committed too: the commit will be refused, and the table listed again
	}
	return after, nil
}

// commit commits a delta and keeps account of generations. gen is as in Conn.Commit.
func (k *Keeper) commit(ctx context.Context, d nftable.Delta, gen uint32) error {
	before, known := gen, gen
	if gen == 0 {
		var err error
		if before, err = k.c.Generation(ctx); err != nil {
			return err
		}
		known = k.gen
	}
	k.gen = 0
	if err := k.c.Commit(ctx, k.table, d, gen); err != nil {
		return err
	}
	after, err := k.c.Generation(ctx)
	if err != nil {
		return nil // committed: what is lost is only that the next Check lists
	}
	if before == known && (after == before+1 || d.Empty() && after == before) {
		k.gen = after
	}
	return nil
}
