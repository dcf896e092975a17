package agent

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/muslin-cni/muslin/internal/attachlock"
	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/internal/register"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
	"github.com/muslin-cni/muslin/pkg/store"
)

const (
	auditInterval = 3 * time.Minute  // between two looks, and up to a third more
	doubtInterval = 10 * time.Second // between looks once the outcome of a command was unknown
	doubtLooks    = 12               // of these: what etcd had received before it fell silent may be done when it speaks again, behind the DEL
	emptyGrace    = 15 * time.Minute // for which a block stays the node's after its last address was freed
	lockPatience  = 5 * time.Millisecond
	freeTimeout   = 15 * time.Second // for one orphan
)

// audit finds what pods of this node left in etcd when they went without a DEL: power failed after the ADD's commit, the runtime lost its
// memory, the node was rebooted.
//
//  1. Nothing is freed that may be in use. An endpoint goes only if its interface does not exist, under the attach lock of that interface,
//     so that no ADD or DEL of it is under way, and if it is in etcd as it was judged.
//  2. Not here yet is not gone: the kernel is listed first, then the feed catches up with etcd, then both are compared. Without etcd nothing is judged.
//     After the first look, an interface must be missing in two looks in a row.
//  3. Nothing is freed for another: each transaction compares that the node's name is this machine's.
//  4. Every correction is one transaction and one line in the log. What cannot be judged is counted, and left to the operator.
type audit struct {
	AuditDeps
	doubts <-chan struct{} // tells of commands whose outcome is unknown

	// Owned by run.
	looked  bool
	soon    int                      // so many looks more follow each other quickly
	missing map[string]int64         // endpoints that the last look found without interface, with their revisions
	empty   map[netip.Prefix]emptied // blocks that were empty at the last look
	finding bool                     // addresses without endpoint were found, and said
	failing string                   // why the last look failed, as logged
}

// emptied is when a block was first seen empty, as it is.
type emptied struct {
	rev   int64
	since time.Time
}

// run looks once when up is closed, and then every few minutes, until ctx ends. A look that fails is repeated sooner, and so are those after a command
// that may have been done or may yet be.
func (a *audit) run(ctx context.Context, up <-chan struct{}) error {
	select {
	case <-ctx.Done():
		return nil
	case <-up:
	}
	retry := backoff{}
	for {
		if a.look(ctx) {
			retry.reset()
		} else {
			retry.next()
		}
		if !a.rest(ctx, &retry) {
			return nil
		}
	}
}

// rest waits until it is time for the next look. It returns false when ctx has ended.
func (a *audit) rest(ctx context.Context, retry *backoff) bool {
	next := time.After(auditInterval + rand.N(auditInterval/3))
	if a.soon > 0 {
		a.soon--
		next = time.After(doubtInterval)
	}
	for {
		select {
		case <-ctx.Done():
			return false
		case <-next:
			return true
		case <-retry.due():
			retry.fired()
			return true
		case <-a.doubts:
			if a.soon == 0 {
				next = time.After(doubtInterval)
			}
			a.soon = doubtLooks
		}
	}
}

// look judges once. What goes wrong is logged once, and tried again after a while.
func (a *audit) look(ctx context.Context) (ok bool) {
	err := a.judge(ctx)
	switch {
	case ctx.Err() != nil:
		return true
	case err == nil:
		a.failing = ""
		return true
	case err.Error() != a.failing:
		a.failing = err.Error()
		a.Log.Warn("the audit of this node's addresses is not complete; it is tried again", "error", err)
	}
	return false
}

func (a *audit) judge(ctx context.Context) error {
	links, err := a.Links(ctx)
	if err != nil {
		return fmt.Errorf("list the host's devices: %w", err)
	}
	snap, usable, err := a.Picture(ctx)
	if err != nil || !usable {
		return err
	}
	has := holdingsOf(snap, a.Node)
	err = errors.Join(a.freeOrphans(ctx, has.orphans(links)), a.returnBlocks(ctx, snap, has.blocks), attachlock.Sweep(a.Locks))
	a.sayUnclaimed(has.unclaimed())
	return err
}

// freeOrphans frees those that are to be freed now, and remembers the others.
func (a *audit) freeOrphans(ctx context.Context, orphans []register.Orphan) error {
	before := a.missing
	a.missing = make(map[string]int64)
	var errs []error
	for _, o := range orphans {
		a.missing[o.Endpoint.Key] = o.Endpoint.Rev
		if a.looked && before[o.Endpoint.Key] != o.Endpoint.Rev {
			continue
		}
		if err := a.freeOrphan(ctx, o); err != nil {
			errs = append(errs, err)
		}
	}
	a.looked = true
	return errors.Join(errs...)
}

func (a *audit) freeOrphan(ctx context.Context, o register.Orphan) error {
	ctx, cancel := context.WithTimeout(ctx, freeTimeout)
	defer cancel()
	s := o.Endpoint.Value.Spec
	lock := a.lock(ctx, s.InterfaceName)
	if lock == nil {
		return nil // an ADD or a DEL is under way, and will settle it
	}
	defer lock.Release()
	if there, err := a.Linked(s.InterfaceName); err != nil || there {
		return err
	}
	freed, err := a.Free(ctx, o)
	if errors.Is(err, register.ErrJudgedAnew) {
		return nil
	}
	if err != nil {
		return err
	}
	a.Log.Warn("freed what a pod left behind that is gone without a DEL", "namespace", o.Endpoint.Value.Metadata.Namespace, "pod", s.Pod,
		"container", s.ContainerID, "interface", s.InterfaceName, "addresses", freed)
	return nil
}

// lock returns the attach lock of an interface, or nil if a command has it or the interface's name is none.
func (a *audit) lock(ctx context.Context, ifName string) *attachlock.Lock {
	ctx, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	lock, err := attachlock.Acquire(ctx, a.Locks, ifName)
	if err != nil {
		a.Log.Debug("not judged", "interface", ifName, "error", err)
		return nil
	}
	return lock
}

// returnBlocks gives back blocks of the node that have been empty for a while, but for the last one of each family: the next pod
// would only claim it again.
func (a *audit) returnBlocks(ctx context.Context, snap feed.Snapshot, blocks []store.Entry[api.Block]) error {
	before := a.empty
	a.empty = make(map[netip.Prefix]emptied)
	left := map[bool]int{} // by "is IPv6"
	for _, e := range blocks {
		left[e.Value.CIDR.Addr().Is6()]++
	}
	var errs []error
	for _, e := range blocks {
		cidr := e.Value.CIDR
		if !block.Empty(e.Value) {
			continue
		}
		was, known := before[cidr]
		if !known || was.rev != e.Rev {
			was = emptied{e.Rev, a.Now()}
		}
		a.empty[cidr] = was
		if a.Now().Sub(was.since) < emptyGrace || left[cidr.Addr().Is6()] <= 1 {
			continue
		}
		err := a.GiveUp(ctx, ipam.Unused{Block: e, Affinity: snap.Affinity(a.Node, cidr), Identity: snap.Identity(a.Node), Cluster: snap.Cluster()})
		switch {
		case errors.Is(err, store.ErrConflict): // somebody uses it
		case err != nil:
			errs = append(errs, err)
		default:
			left[cidr.Addr().Is6()]--
			a.Log.Info("gave back a block that was empty", "block", cidr)
		}
	}
	return errors.Join(errs...)
}

// sayUnclaimed says once that there are such addresses, and once that there are none any more.
func (a *audit) sayUnclaimed(addrs []netip.Addr) {
	const shown = 5
	switch {
	case len(addrs) > 0 && !a.finding:
		a.Log.Warn("addresses of this node are allocated to containers without an endpoint; they are left alone: right where another main plugin uses muslin-ipam, "+
			"else see muslinctl ipam check", "count", len(addrs), "first", addrs[:min(len(addrs), shown)])
	case len(addrs) == 0 && a.finding:
		a.Log.Info("every address of this node has an endpoint again")
	}
	a.finding = len(addrs) > 0
}
