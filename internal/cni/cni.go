// Package cni answers CNI commands as network plugin.
//
//  1. An ADD that fails leaves nothing behind, neither in the kernel nor in etcd; one that is cut off leaves only what DEL removes.
//     Every step after the lock is undone in one place, undo.
//  2. DEL always works: without an agent, a network namespace or an interface, and any number of times. It removes the interface
//     before it frees the addresses, so that no other pod gets an address that still has a wire.
//  3. A late DEL never harms a newer pod of the same name: it removes an interface only inside its own pod's network namespace.
//  4. Nothing hangs: every wait ends by the Limits.
//  5. CHECK changes nothing. GC frees nothing that may be alive, or another network's.
//
// The pod's addresses come from one handler behind two doors, see door. The veth pair is made while the handler works.
package cni

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"time"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/attachlock"
	"github.com/muslin-cni/muslin/internal/cni/netconf"
	"github.com/muslin-cni/muslin/internal/fault"
)

// Plugin answers CNI commands. It works in the network namespace of the thread that calls it.
type Plugin struct {
	Limits Limits
	Stdout io.Writer // for results
}

// Limits bound the plugin's waits. An ADD ends after Work + Undo at the latest, a DEL after Work.
type Limits struct {
	Work time.Duration // one command, without undoing it
	Lock time.Duration // for another command on the same interface
	Turn time.Duration // for each answer of the agent
	Undo time.Duration // of a failed ADD

	Queue time.Duration // in line with other plugins for the kernel: after that it goes on out of turn
}

// DefaultLimits keep an ADD below 90 seconds. (kubelet gives up after two minutes.)
func DefaultLimits() Limits {
	return Limits{Work: 75 * time.Second, Lock: 30 * time.Second, Turn: 30 * time.Second, Undo: 14 * time.Second, Queue: 500 * time.Millisecond}
}

// Add makes the pod's interface and prints the result. Errors are *types.Error, and nothing is left behind; where something may be,
// the error's details say so.
func (p *Plugin) Add(args *skel.CmdArgs) error { return netconf.AsCNI(p.logged("ADD", args, p.add)) }

// Del removes the pod's interface and releases its addresses. It succeeds when there is nothing to remove. Errors are *types.Error.
func (p *Plugin) Del(args *skel.CmdArgs) error { return netconf.AsCNI(p.logged("DEL", args, p.del)) }

func (p *Plugin) add(args *skel.CmdArgs, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(context.Background(), p.Limits.Work)
	defer cancel()
	a, err := newAttachment(args)
	if err != nil {
		return err
	}
	defer a.close()
	a.log, a.queue = log, kernelQueue{path: attach.QueueLock, patience: p.Limits.Queue}
	lock, err := p.lock(ctx, a.req.HostIf)
	if err != nil {
		return err
	}
	defer lock.Release()
	if err := fault.At(fault.PluginAddLocked); err != nil {
		return err
	}
	a.door, err = p.open(&a.conf, a.req, args, lock)
	if err != nil {
		return err
	}
	log.Debug("locked, and door open")
	err = a.attach(ctx)
	if err == nil {
		err = p.print(a)
	}
	if err == nil {
		err = fault.At(fault.PluginAddPrinted)
	}
	if err != nil {
		return p.undo(a, err)
	}
	return nil
}

func (p *Plugin) del(args *skel.CmdArgs, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(context.Background(), p.Limits.Work)
	defer cancel()
	conf, err := netconf.Parse(args.StdinData)
	if err != nil {
		return err
	}
	req, err := conf.Request(attach.Del, args)
	if err != nil {
		return err
	}
	lock, err := p.lock(ctx, req.HostIf)
	if err != nil {
		return err
	}
	defer lock.Release()
	if err := fault.At(fault.PluginDelLocked); err != nil {
		return err
	}
	if err := detach(req.Netns, req.IfName); err != nil {
		return failure(attach.CodeKernel, err, "")
	}
	log.Debug("interface removed")
	if err := fault.At(fault.PluginDelUnlinked); err != nil {
		return err
	}
	door, err := p.open(&conf, req, args, lock)
	if err != nil {
		return err
	}
	defer door.close()
	if err := door.release(ctx, req); err != nil {
		return err // and the foreign IPAM module keeps the addresses as long as the endpoint has them
	}
	log.Debug("released")
	if err := fault.At(fault.PluginDelReleased); err != nil {
		return err
	}
	return delegate(ctx, "DEL", &conf, args)
}

func (p *Plugin) print(a *attachment) error {
	if err := printTo(p.Stdout, a.result(), a.conf.ResultVersion(), a.prev != nil); err != nil {
		return failure(attach.CodeIO, err, "") // unless it says something else
	}
	return nil
}

func (p *Plugin) lock(ctx context.Context, hostIf string) (*attachlock.Lock, error) {
	ctx, cancel := context.WithTimeout(ctx, p.Limits.Lock)
	defer cancel()
	lock, err := attachlock.Acquire(ctx, attach.LockDir, hostIf)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return nil, failure(attach.CodeTryAgain, err, "another ADD or DEL of this pod is under way; try again")
	case err != nil:
		return nil, failure(attach.CodeIO, err, "see that "+attach.LockDir+" can be written to")
	}
	return lock, nil
}

// undo removes what a failed ADD made, and returns its error.
func (p *Plugin) undo(a *attachment, cause error) error {
	var told *attach.Error
	etcdAway := errors.As(cause, &told) && told.Code == attach.CodeDatastore
	ctx, cancel := context.WithTimeout(context.Background(), p.Limits.Undo)
	defer cancel()
	limit := p.Limits.Undo
	if etcdAway {
		limit = min(limit, hopeless)
	}
	linkErr, releaseErr := a.removePair(), error(nil)
	if err := fault.At(fault.PluginUndoUnlinked); err != nil {
		return err
	}
	if told == nil || told.Code != attach.CodeBadEnv && told.Code != attach.CodeBadConfig {
		releaseErr = a.release(ctx, limit) // what the handler cannot heed it has not written, and would mostly not release either
	}
	if etcdAway {
		releaseErr = nil // was to be expected; the cause says what state etcd is in
	}
	if err := errors.Join(linkErr, releaseErr, a.giveBack(ctx)); err != nil {
		return unclean(cause, err)
	}
	return cause
}

// hopeless is how long releasing takes at most after etcd has not answered: it will mostly fail the same way, and the runtime, which
// calls DEL after a failed ADD, wants to know soon.
const hopeless = 500 * time.Millisecond
