package cni

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/attachlock"
	"github.com/muslin-cni/muslin/internal/cni/netconf"
	"github.com/muslin-cni/muslin/internal/fault"
	"github.com/muslin-cni/muslin/internal/rtnl"
)

// GC frees what this node has of the network beyond the attachments that the runtime says live (CNI spec 1.1, "GC"): interfaces on the
// host, endpoints and addresses. What another command is at work on, and what was made since GC began, is left alone, as is what may
// be another network's. It goes on past failures and returns them joined. Errors are *types.Error.
func (p *Plugin) GC(args *skel.CmdArgs) error { return netconf.AsCNI(p.gc(args)) }

func (p *Plugin) gc(args *skel.CmdArgs) error {
	ctx, cancel := context.WithTimeout(context.Background(), p.Limits.Work)
	defer cancel()
	conf, err := netconf.Parse(args.StdinData)
	if err != nil {
		return err
	}
	valid, err := netconf.ValidAttachments(args.StdinData)
	if err != nil {
		return err
	}
	req, err := conf.Request(attach.GC, args)
	if err != nil {
		return err
	}
	req.Valid, req.HostIf = valid, ""
	busy, err := heldLocks()
	if err != nil {
		return failure(attach.CodeIO, err, "")
	}
	door, err := p.open(&conf, req, args, nil)
	if err != nil {
		return err
	}
	defer door.close()
	return attach.Join(gcRemedy, p.collect(ctx, door, req, busy), delegate(ctx, "GC", &conf, args))
}

const gcRemedy = "the rest has been freed; GC tries these again the next time"

// freedAtOnce is how many attachments one request frees.
const freedAtOnce = 48

// collect finds the stale attachments, takes their locks, looks again (one may have changed before its lock was ours), removes the
// interfaces, and then frees the rest: as with DEL, no address is free as long as it has a wire.
func (p *Plugin) collect(ctx context.Context, door door, req attach.Request, busy map[string]bool) error {
	seen, err := door.query(ctx, req)
	if err != nil {
		return err
	}
	stale := slices.DeleteFunc(seen.Stale, func(s attach.Stale) bool { return busy[s.HostIf] })
	locks := takeLocks(stale)
	defer locks.release()
	stale = slices.DeleteFunc(stale, func(s attach.Stale) bool { return s.HostIf != "" && locks[s.HostIf] == nil })
	if len(stale) == 0 {
		return nil
	}
	now, err := door.query(ctx, req)
	if err != nil {
		return err
	}
	stale = slices.DeleteFunc(stale, func(s attach.Stale) bool { return !slices.Contains(now.Stale, s) })
	stale, errs := unlink(stale)
	if err := fault.At(fault.PluginGCUnlinked); err != nil {
		return err
	}
	req.Verb, req.Valid = attach.Free, nil
	for part := range slices.Chunk(stale, freedAtOnce) {
		req.Stale = part
		if _, err := door.query(ctx, req); err != nil {
			errs = append(errs, err)
		}
	}
	return attach.Join(gcRemedy, errs...)
}

// unlink removes the interfaces of stale attachments and returns those whose interface is gone.
func unlink(stale []attach.Stale) (gone []attach.Stale, errs []error) {
	links, err := rtnl.OpenVeths()
	if err != nil {
		return nil, []error{failure(attach.CodeKernel, err, "")}
	}
	defer links.Close()
	for _, s := range stale {
		if err := unlinkOne(links, s.HostIf); err != nil {
			errs = append(errs, failure(attach.CodeKernel, fmt.Errorf("free container %s: %w", s.ContainerID, err), ""))
			continue
		}
		gone = append(gone, s)
	}
	return gone, errs
}

func unlinkOne(links *rtnl.Veths, name string) error {
	if name == "" {
		return nil
	}
	return removeOld(links, name)
}

// locks are the attach locks that GC holds, by interface.
type locks map[string]*attachlock.Lock

// takeLocks takes those that are free. It waits for none.
func takeLocks(stale []attach.Stale) locks {
	now, cancel := context.WithCancel(context.Background())
	cancel()
	out := locks{}
	for _, s := range stale {
		if s.HostIf == "" || out[s.HostIf] != nil {
			continue
		}
		if lock, err := attachlock.Acquire(now, attach.LockDir, s.HostIf); err == nil {
			out[s.HostIf] = lock // else an ADD or DEL is under way, and knows more than the runtime's list
		}
	}
	return out
}

func (l locks) release() {
	for _, lock := range l {
		lock.Release()
	}
}

// heldLocks are the interfaces that a command is at work on.
func heldLocks() (map[string]bool, error) {
	entries, err := os.ReadDir(attach.LockDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list locks: %w", err)
	}
	out := map[string]bool{}
	for _, e := range entries {
		held, err := attachlock.Held(attach.LockDir, e.Name())
		if err != nil {
			return nil, err
		}
		if held {
			out[e.Name()] = true
		}
	}
	return out, nil
}
