package agent

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/nft"
	"github.com/muslin-cni/muslin/internal/nftable"
	"github.com/muslin-cni/muslin/internal/plan"
	"github.com/muslin-cni/muslin/internal/policy"
	"github.com/muslin-cni/muslin/internal/register"
	"github.com/muslin-cni/muslin/internal/ruleset"
	"github.com/muslin-cni/muslin/pkg/ipam"
)

// Frozen says why a node's kernel is to be left as it is, given what etcd says; "" if it is not.
func Frozen(snap feed.Snapshot, node, machine string) string { return frozen(snap, node, machine) }

// Model is the part of a snapshot that the plan of a node is computed from.
func Model(snap feed.Snapshot, node string) plan.Model { return model(snap, node, nil) }

// Lingering decides how long a node receives by an encapsulation that no pool asks for any more, for whoever runs rounds without an Agent. It is for one
// goroutine.
type Lingering struct{ l *linger }

// NewLingering begins with the devices that the host has.
func NewLingering(now func() time.Time, h kernel.Host) Lingering {
	return Lingering{newLinger(lingerTime, now, h)}
}

// Settings are a round's, given all other settings.
func (x Lingering) Settings(s plan.Settings) plan.Settings {
	s.Keep, s.IPIPBegun = x.l.keep(), x.l.ipipBegun()
	return s
}

// Saw takes note of what pools ask for in this round.
func (x Lingering) Saw(m plan.Modes) { x.l.saw(m) }

// Kept names the tunnels that keep their addresses though nobody asks for them, as ipam.EnsureTunnels wants it.
func (x Lingering) Kept() []string { return kinds(x.l.left()) }

// Stop ends the timer that would wake the next round.
func (x Lingering) Stop() { x.l.wake(0) }

// Guarding keeps the policy of a node in force, see guard, for whoever runs rounds without an Agent: it enforces policy before it writes what Admit lets pass.
// It is for one goroutine.
type Guarding struct{ g *guard }

// NewGuarding knows nothing yet of what the kernel's rules are.
func NewGuarding(node string, rules nft.Rules, log *slog.Logger) Guarding {
	g := newGuard(node, log)
	g.open = func() (policyKeeper, error) { return nft.NewKeeper(rules, ruleset.Table), nil }
	return Guarding{g}
}

// Enforce makes the kernel hold the policy of a snapshot; facts is a number that differs whenever host does.
func (x Guarding) Enforce(ctx context.Context, snap feed.Snapshot, s ruleset.Settings, host kernel.Host, facts uint64) error {
	_, err := x.g.enforce(ctx, snap, s, host, facts)
	return err
}

// Admit leaves out of a state what has to wait for policy.
func (x Guarding) Admit(s kernel.State) kernel.State { return x.g.admit(s) }

// Believe says that the feed has caught up with etcd since the agent started.
func (x Guarding) Believe() { x.g.believe() }

// Check has the next Enforce look whether others have changed the rules.
func (x Guarding) Check() { x.g.check(true) }

// PolicyTable is what the kernel is to hold by a snapshot, computed at once and from nothing: what a Guarding comes to, whatever came before.
func PolicyTable(node string, snap feed.Snapshot, s ruleset.Settings, host kernel.Host) *nftable.Table {
	var all policy.Delta
	for key, o := range snap.Objects(feed.ForPolicy) {
		all.Objects = append(all.Objects, policy.Change{Key: key, Object: o})
	}
	return ruleset.Of(s, addressed(host, s.Prefixes), policy.Compute(node, all))
}

// Pooled are the ranges of all pools, as ruleset.Settings want them.
func Pooled(snap feed.Snapshot) []netip.Prefix { return pooled(snap) }

// Audit finds what pods of a node left in etcd, see audit. Look does so once.
type Audit struct{ a *audit }

// AuditDeps are what an Audit works with; all are needed.
type AuditDeps struct {
	Node    string
	Locks   string                                             // folder of the attach locks
	Links   func(context.Context) (map[string]bool, error)     // names of the host's devices
	Linked  func(name string) (bool, error)                    // whether one exists, now
	Picture func(context.Context) (feed.Snapshot, bool, error) // caught up with etcd; false: not to be acted on
	Free    func(context.Context, register.Orphan) ([]netip.Prefix, error)
	GiveUp  func(context.Context, ipam.Unused) error // of an empty block
	Now     func() time.Time
	Log     *slog.Logger
}

// NewAudit makes an audit that has not looked yet.
func NewAudit(d AuditDeps) Audit { return Audit{&audit{AuditDeps: d}} }

// Look judges once, and reports whether all was judged. One caller at a time.
func (x Audit) Look(ctx context.Context) bool { return x.a.look(ctx) }
