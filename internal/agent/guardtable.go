package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/muslin-cni/muslin/internal/nft"
	"github.com/muslin-cni/muslin/internal/nftable"
	"github.com/muslin-cni/muslin/internal/reconcile"
	"github.com/muslin-cni/muslin/internal/ruleset"
)

// policyTable is the name of the table of policy among those of the reconciler.
const policyTable reconcile.Name = "policy"

// openKernel opens the kernel's table. Where the kernel cannot do nftables, that is tried again with each round.
func (g *guard) openKernel() (policyKeeper, error) {
	conn, err := nft.Open()
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	g.syslog, g.uncounted = conn.CanSyslog(context.Background()), !conn.CanCount(context.Background())
	m, err := nft.NewMonitor(conn, ruleset.Table)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open nftables' events: %w", err), conn.Close())
	}
	g.monitored <- m // once: the table stays open
	return nft.NewKeeper(conn, ruleset.Table), nil
}

// watch hears of what others do to the table, from when it is open until ctx ends. The loop has it put right.
func (g *guard) watch(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case m := <-g.monitored:
		return m.Run(ctx, func() { poke(g.touched) })
	}
}

// resultOf says what was done to the table, object by object. If it was as it should be, what is not of the change that was asked for
// others have brought about.
func resultOf(done nft.Done, asked nftable.Delta, settled bool) reconcile.Result {
	all := touchedBy(done.Changed)
	res := reconcile.Result{Changed: len(all), Tables: map[reconcile.Name]int{}}
	if len(all) > 0 {
		res.Tables[policyTable] = len(all)
	}
	if !done.Listed || !settled {
		return res
	}
	ours := touchedBy(asked)
	for _, r := range all {
		if slices.ContainsFunc(ours, func(o reconcile.Repair) bool { return o.Object == r.Object }) {
			continue
		}
		if res.Repaired++; res.Repaired <= maxToldRepairs {
			res.Repairs = append(res.Repairs, r)
		}
	}
	return res
}

// touchedBy lists the objects that a change is about, as if it put right what others had done.
func touchedBy(d nftable.Delta) (out []reconcile.Repair) {
	if d.Whole {
		return []reconcile.Repair{{Table: policyTable, Object: "table inet " + ruleset.Table, Found: "missing, or another's", Done: "made"}}
	}
	put := func(kind, name, found, done string) {
		out = append(out, reconcile.Repair{Table: policyTable, Object: kind + " " + name, Found: found, Done: done})
	}
	for _, c := range d.AddChains {
		put("chain", c.Name, "missing", "added")
	}
	for _, c := range d.SetChains {
		put("chain", c.Name, "other rules", "replaced")
	}
	for _, name := range d.DelChains {
		put("chain", name, "not ours", "removed")
	}
	for _, s := range d.AddSets {
		put("set", s.Name, "missing", "added")
	}
	for _, e := range d.Elems {
		put("set", e.Set.Name, fmt.Sprintf("%d members missing, %d too many", len(e.Add), len(e.Del)), "replaced")
	}
	for _, name := range d.DelSets {
		put("set", name, "not ours", "removed")
	}
	for _, name := range d.AddCounters {
		put("counter", name, "missing", "added")
	}
	for _, name := range d.DelCounters {
		put("counter", name, "not ours", "removed")
	}
	return out
}

// sum is what two pieces of work have done.
func sum(a, b reconcile.Result) reconcile.Result {
	out := reconcile.Result{Changed: a.Changed + b.Changed, Tables: map[reconcile.Name]int{}, Repaired: a.Repaired + b.Repaired, Repairs: slices.Concat(a.Repairs, b.Repairs)}
	for _, r := range []reconcile.Result{a, b} {
		for name, n := range r.Tables {
			out.Tables[name] += n
		}
	}
	return out
}
