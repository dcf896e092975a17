package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/plan"
	"github.com/muslin-cni/muslin/internal/reconcile"
	"github.com/muslin-cni/muslin/internal/rtnl"
	"github.com/muslin-cni/muslin/internal/startup"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
)

// loop makes the kernel equal to the plan, again and again, until ctx ends. An event only says "look again".
func (a *Agent) loop(ctx context.Context) error {
	a.looks = newLooks()
	retry := backoff{}
	for {
		began := time.Now()
		if err := a.round(ctx); err != nil {
			retry.next()
			a.failed(ctx, err)
		} else {
			retry.reset()
			a.succeeded()
		}
		a.crowd.gather(ctx, began)
		if !a.news(ctx, &retry) {
			return nil
		}
		a.glance(ctx, time.Now())
		if names := a.looks.take(time.Now()); len(names) > 0 {
			a.kernel.MarkDirty(names...)
			a.guard.check(slices.Contains(names, policyTable))
		}
	}
}

// news returns true when there may be something to do, and false when ctx has ended.
func (a *Agent) news(ctx context.Context, retry *backoff) bool {
	var settled <-chan time.Time // when what happens in the kernel has waited long enough for more
	for {
		select {
		case <-ctx.Done():
			return false
		case <-a.monitor.Changed():
			if settled == nil {
				settled = time.After(gatherEvents)
			}
			if !a.programmed.awaited() {
				continue
			}
		case <-a.programmed.wanted:
			if settled == nil {
				continue // what it waits for has not happened yet
			}
		case <-settled:
		case <-a.feed.Changed():
		case <-a.damage.Changed():
			a.looks.spoiled(a.damage.Spoiled())
		case <-retry.due():
			retry.fired()
		case <-a.guard.disturbed():
			a.guard.doubt()
		case <-a.membersChanged():
			a.guard.relocate()
		case <-a.flows.changed():
		case <-a.linger.over():
		case <-a.onset.due():
		case <-a.bgp.changed():
		case <-a.probes.changed():
		case <-a.servers.changed():
		case <-a.looks.due(time.Now()):
		case <-a.glances.due(a.planned.result.Modes, time.Now()):
		}
		return true
	}
}

// gatherEvents is how long an event of the kernel waits for others, unless a plugin waits for what follows from it: a pod that comes or goes makes
// a dozen, most of them of our own writes.
const gatherEvents = 5 * time.Millisecond

// failed says why rounds fail: once, and again when it is for another reason.
func (a *Agent) failed(ctx context.Context, err error) {
	if ctx.Err() != nil || err.Error() == a.failing {
		return
	}
	a.failing = err.Error()
	a.log.Error("round failed; it is tried again", "error", err)
}

func (a *Agent) succeeded() {
	if a.failing != "" {
		a.log.Info("rounds succeed again")
	}
	a.failing = ""
}

// round is one pass through the picture: list what is in doubt, compute, apply.
func (a *Agent) round(ctx context.Context) error {
	a.pulse.Begin()
	defer a.pulse.End()
	snap, ok := a.usable()
	if !ok {
		return nil
	}
	a.heed(snap)
	a.kernel.Observe(a.monitor.Events())
	listed, listErr := a.kernel.Refresh(ctx)
	if a.kernel.RoutesListed() {
		a.bgp.found(a.kernel.Routes(), a.settled.ours)
	}
	if listErr != nil {
		// The tables that could be listed are looked after all the same, and from the others nothing is removed.
		listErr = fmt.Errorf("list the kernel: %w", listErr)
	}
	if !listed {
		err := a.program(ctx, snap, a.kernel.Apply)
		a.readyOnceEnforced() // policy may have been what was missing
		return errors.Join(listErr, err)
	}
	// Not yet present is not gone: what the kernel holds may be newer than what the feed has seen. What is missing is put back at once,
	// etcd or no etcd; only removals wait until the feed has caught up.
	repairErr := a.program(ctx, snap, a.kernel.Repair)
	if err := a.catchUp(ctx); err != nil {
		a.kernel.MarkDirty()
		return errors.Join(listErr, repairErr, err)
	}
	if snap, ok = a.usable(); !ok {
		a.kernel.MarkDirty()
		return errors.Join(listErr, repairErr)
	}
	a.guard.believe()
	err := a.program(ctx, snap, a.kernel.Apply)
	if repairErr != nil && (err == nil || err.Error() != repairErr.Error()) { // it is said nowhere else
		a.log.Info("what failed at first was tried again in the same round", "error", repairErr)
	}
	a.seen = a.seen || listErr == nil
	a.readyOnceEnforced()
	if listErr == nil && err == nil {
		a.settle()
		a.sweepOther(ctx)
	}
	return errors.Join(listErr, err)
}

// readyOnceEnforced serves pods once every table has been seen and gone through, and policy is in force. One object that the kernel refuses keeps no pod from
// being served: each waits for its own routes.
func (a *Agent) readyOnceEnforced() {
	if a.seen && a.guard.holds() {
		a.ready()
	}
}

// sweepOther takes away, once, what an earlier agent has left in the tables of the other iptables, now that those in use hold everything. What
// fails is tried by the next agent: the rules do the same twice.
func (a *Agent) sweepOther(ctx context.Context) {
	if a.swept {
		return
	}
	a.swept = true
	n, err := a.chains[0].SweepOther(ctx)
	if err != nil {
		a.log.Warn("remove our chains from the tables of the other iptables", "error", err)
	}
	if n > 0 {
		a.log.Info("removed our chains from the tables of the other iptables", "chains", n)
		a.kernel.MarkDirty(reconcile.Sets) // which they had kept in use
	}
}

// usable returns the snapshot that the kernel may be made to match. ok is false before the first complete one, and while the
// datastore is not to be believed.
func (a *Agent) usable() (snap feed.Snapshot, ok bool) {
	snap, ok = a.feed.Snapshot()
	if !ok {
		return snap, false
	}
	a.pulse.Ready(datastorePart)
	if why := frozen(snap, a.node, a.machine); why != "" {
		a.say([]string{why}, nil, snap.Bad())
		return snap, false
	}
	return snap, true
}

// frozen says why the kernel is to be left as it is; "" if it is not. What a datastore lacks that is locked, or that was started without
// its data, is no reason to take the network away from pods that run.
//
// Nor is it one that the node's name was given to another machine: what etcd says of the node is about that machine then. Pods here go
// on as they are, and ADDs are refused.
func frozen(snap feed.Snapshot, node, machine string) string {
	c := snap.Cluster()
	switch {
	case !c.Exists():
		return "ClusterInformation(default) is not in etcd, which seems to have lost its data: nothing is changed on this node until it is back; " +
			"restore etcd, or restart the agent to begin with an empty cluster"
	case !c.Value.Ready():
		return "ClusterInformation(default): datastoreReady is not true, so a migration is under way: nothing is changed on this node until it is"
	}
	if err := ipam.Holds(snap.Identity(node), node, machine); err != nil {
		return "nothing is changed on this node, and no pod is added: " + err.Error()
	}
	return ""
}

// program computes what the kernel should hold by a usable snapshot and writes it by write, unless that is what the kernel holds already.
func (a *Agent) program(ctx context.Context, snap feed.Snapshot, write func(context.Context, kernel.State) (reconcile.Result, error)) error {
	settings, problems := a.settings()
	settings.Keep, settings.IPIPBegun = a.linger.keep(), a.linger.ipipBegun()
	settings.WireGuard = a.begin(settings.WireGuard, snap)
	host, facts := a.monitor.Facts()
	start := time.Now()
	result, again := a.planned.compute(seen{snap: snap, settings: settings, learned: a.bgp.heard(), host: host})
	a.probes.consider(snap, a.probing(settings, result))
	enforced, guardErr := a.guard.enforce(ctx, snap, a.rules(snap, result.Tunnels), host, facts)
	if err := a.publishMTU(result.PodMTU); err != nil {
		problems = append(problems, fmt.Sprintf("the pods' MTU, %d, is not known to the plugin: %v", result.PodMTU, err))
	}
	say := func() {
		a.say(slices.Concat(problems, a.guard.troubles(), a.bgp.troubles(), a.probes.troubles(), a.refused), result.Problems, snap.Bad())
	}
	a.linger.saw(result.Modes)
	a.onset.saw(result.Modes)
	if again && enforced.Changed == 0 && guardErr == nil && !a.guard.owes() && a.kernel.Settled() {
		say()
		a.consider(snap)
		return a.marked(ctx, snap, result.Tunnels, host, facts)
	}
	want := a.guard.admit(result.State)
	done, err := write(ctx, want)
	a.refused, err = refused(err, a.bgp.heard())
	say()
	done, err = sum(enforced, done), errors.Join(guardErr, err)
	if errors.Is(err, rtnl.ErrNoIPIP) {
		a.noIPIP = rtnl.ErrNoIPIP.Error() // the plan goes on without, and says so
	}
	if errors.Is(err, rtnl.ErrNoWireGuard) {
		a.noWireGuard = rtnl.ErrNoWireGuard.Error() // likewise
	}
	a.wrote(want, done, time.Since(start), err)
	a.tell(ctx, done)
	a.programmed.publish(a.kernel.Routes(), settings.Ours, guardErr)
	a.consider(snap)
	if err != nil {
		return fmt.Errorf("apply: %w", err)
	}
	return a.marked(ctx, snap, result.Tunnels, host, facts)
}

// marked has the table of policy go by the mask of marks that iptables goes by now, if that is another one than before.
func (a *Agent) marked(ctx context.Context, snap feed.Snapshot, t plan.Tunnels, host kernel.Host, facts uint64) error {
	if !a.kernel.Settled() || !a.guard.heed(markMask(a.settled.Dataplane)) {
		return nil
	}
	_, err := a.guard.enforce(ctx, snap, a.rules(snap, t), host, facts)
	return err
}

// consider tells those who work beside the loop what it has just seen.
func (a *Agent) consider(snap feed.Snapshot) {
	a.tunnels.consider(snap, a.wish())
	host, facts := a.monitor.Facts()
	a.addresses.consider(host, facts)
	a.bgp.consider(given{snap: snap, local: a.settled.ClusterRoutes, float: a.settled.FloatingIPs, facts: facts})
}

// tell logs what was done: each repair by itself, until there are many, and the rest in sum. What pods and etcd ask for is routine, but for the
// first time, when the operator may want to know what an agent without memory has found.
func (a *Agent) tell(ctx context.Context, done reconcile.Result) {
	told := done.Repairs[:min(len(done.Repairs), maxToldRepairs)]
	for _, r := range told {
		a.log.Info("repaired what others changed", "table", r.Table, "object", r.Object, "found", r.Found, "done", r.Done)
	}
	if done.Repaired > len(told) {
		a.log.Info("repaired more that others changed", "objects", done.Repaired-len(told), "by_table", done.Tables)
	}
	if done.Changed == done.Repaired {
		return
	}
	level := slog.LevelDebug
	if !a.up() {
		level = slog.LevelInfo
	}
	a.log.Log(ctx, level, "kernel changed", "objects", done.Changed-done.Repaired, "by_table", done.Tables)
}

// maxToldRepairs bounds the repairs of one round that are logged one by one.
const maxToldRepairs = 10

// up tells whether the first complete apply has been made.
func (a *Agent) up() bool {
	select {
	case <-a.isUp:
		return true
	default:
		return false
	}
}

// catchUp waits until the feed has seen everything that etcd holds now.
func (a *Agent) catchUp(ctx context.Context) error {
	if !a.feed.Connected() {
		return fmt.Errorf("look for what is to be removed: %w", store.ErrUnavailable)
	}
	ctx, cancel := context.WithTimeout(ctx, catchUpTimeout)
	defer cancel()
	rev, err := a.store.Revision(ctx)
	if err != nil {
		return fmt.Errorf("ask etcd for its revision: %w", err)
	}
	if err := a.feed.WaitFor(ctx, rev); err != nil {
		return fmt.Errorf("wait for revision %d: %w", rev, err)
	}
	return nil
}

const catchUpTimeout = 5 * time.Second

// say logs each problem once when it appears and once when it is gone.
func (a *Agent) say(settings []string, planned []plan.Problem, bad []feed.Bad) {
	now := make(map[string]struct{})
	for _, s := range settings {
		now[s] = struct{}{}
	}
	for _, p := range planned {
		now[p.String()] = struct{}{}
	}
	for _, b := range bad {
		now[b.Key+": "+b.Err.Error()] = struct{}{}
	}
	for p := range now {
		if _, old := a.said[p]; !old {
			a.log.Warn("problem", "what", p)
		}
	}
	for p := range a.said {
		if _, still := now[p]; !still {
			a.log.Info("problem gone", "what", p)
		}
	}
	a.said = now
	still := slices.Sorted(maps.Keys(now))
	a.problems.Store(&still)
}

// publishMTU writes the MTU of new pods where the plugin looks for it.
func (a *Agent) publishMTU(mtu int) error {
	if mtu == a.mtu {
		return nil
	}
	if err := startup.WriteFile(a.cfg.MTUFile, strconv.Itoa(mtu)); err != nil {
		return err
	}
	a.mtu = mtu
	return nil
}
