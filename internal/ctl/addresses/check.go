package addresses

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/muslin-cni/muslin/internal/ctl/cli"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
)

type checkOptions struct {
	allIPs, problemIPs, fix bool
	report                  string
}

func checkCommand(env cli.Env) *cobra.Command {
	var o checkOptions
	c := &cobra.Command{
		Use:   "check [--show-all-ips] [--show-problem-ips] [-o <FILE>] [--fix]",
		Short: "Hold blocks, handles, affinities, endpoints and nodes against each other",
		Long: "Hold blocks, handles, affinities, endpoints and nodes against each other, all as of one moment. The exit code is 1 if a problem is found.\n\n" +
			"Containers of other main plugins than muslin (bridge, macvlan) have addresses but no endpoints: they are listed as no-endpoint, and are right so.\n\n" +
			"--fix needs a locked datastore. It puts right what is beyond doubt: counts of handles, affinities, and addresses that containers held on nodes\n" +
			"that do not exist any more. It can be interrupted and run again. All else it leaves to you, with what to do about it.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return env.With(c.Context(), func(client *store.Client) error { return check(c.Context(), env, client, o) })
		},
	}
	f := c.Flags()
	f.BoolVar(&o.allIPs, "show-all-ips", false, "list every assigned address and who has it")
	f.BoolVar(&o.problemIPs, "show-problem-ips", false, "list every problem and what to do about it")
	f.StringVarP(&o.report, "output", "o", "", "write a report as JSON into this file, for ipam release --from-report")
	f.BoolVar(&o.fix, "fix", false, "put right what is beyond doubt")
	f.String("kubeconfig", "", "") // calicoctl needs it; the datastore says all that we ask
	_ = f.MarkHidden("kubeconfig") // it exists
	return c
}

func check(ctx context.Context, env cli.Env, c *store.Client, o checkOptions) error {
	if o.fix {
		if err := fix(ctx, env, c); err != nil {
			return err
		}
	}
	cluster, err := store.Get[api.ClusterInformation](ctx, c, cli.ClusterKey())
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	v, err := ipam.LoadView(ctx, c)
	if err != nil {
		return err
	}
	findings := ipam.Audit(v)
	r := newReport(v, findings, cluster)
	if err := (checked{v, findings, r, o}).print(env.Out); err != nil {
		return err
	}
	if o.report != "" {
		if err := r.write(o.report); err != nil {
			return err
		}
	}
	if len(findings) > 0 {
		return cli.ErrReported
	}
	return nil
}

// maxPasses bounds how often fix looks for more to do: a leak leaves a handle, an empty block and an affinity, each the next pass's.
const maxPasses = 5

// fix puts right what it can. Somebody who writes all the same makes a repair conflict, which the next pass plans anew.
func fix(ctx context.Context, env cli.Env, c *store.Client) error {
	var conflict error
	for range maxPasses {
		cluster, err := env.Locked(ctx, c, "fix addresses")
		if err != nil {
			return err
		}
		v, err := ipam.LoadView(ctx, c)
		if err != nil {
			return err
		}
		repairs := ipam.Repairs(v, func(t *store.Txn) { t.Expect(cluster.Key, cluster.Rev) })
		conflict = nil
		for _, r := range repairs {
			switch _, err := c.Commit(ctx, r.Txn); {
			case errors.Is(err, store.ErrConflict):
				conflict = fmt.Errorf("%s: %w", r.Text, err)
				continue
			case err != nil:
				return fmt.Errorf("%s: %w", r.Text, err)
			}
			if _, err := fmt.Fprintf(env.Out, "Fixed: %s\n", r.Text); err != nil {
				return err
			}
		}
		if len(repairs) == 0 {
			break
		}
	}
	return conflict
}

// checked is the outcome of a check.
type checked struct {
	view     ipam.View
	findings []ipam.Finding
	report   report
	o        checkOptions
}

func (c checked) print(w io.Writer) error {
	var b strings.Builder
	b.WriteString("Checking IPAM for inconsistencies...\n\n")
	c.blocks(&b)
	c.pools(&b)
	c.users(&b)
	c.problems(&b)
	fmt.Fprintf(&b, "Check complete; found %d problems.\n", len(c.findings))
	_, err := io.WriteString(w, b.String())
	return err
}

func (c checked) blocks(b *strings.Builder) {
	fmt.Fprintf(b, "Loading all IPAM blocks...\nFound %d IPAM blocks.\n", len(c.view.Blocks))
	allocated := map[string][]allocation{}
	for _, a := range c.report.Allocations {
		allocated[a.Block] = append(allocated[a.Block], a)
	}
	for _, e := range c.view.Blocks {
		affinity := "none"
		if e.Value.Affinity != nil {
			affinity = *e.Value.Affinity
		}
		fmt.Fprintf(b, "  %v affinity=%s\n", e.Value.CIDR, affinity)
		if !c.o.allIPs {
			continue
		}
		for _, a := range allocated[e.Value.CIDR.String()] {
			fmt.Fprintf(b, "    %s handle=%s used by: %s\n", a.IP, a.Handle, strings.Join(a.Users, ", "))
		}
	}
	fmt.Fprintf(b, "IPAM blocks record %d allocations.\n\n", len(c.report.Allocations))
}

func (c checked) pools(b *strings.Builder) {
	b.WriteString("Loading all IPAM pools...\n")
	active := 0
	for _, p := range c.view.Pools {
		if p.Value.Spec.Disabled {
			continue
		}
		active++
		fmt.Fprintf(b, "  %v\n", p.Value.Spec.CIDR)
	}
	fmt.Fprintf(b, "Found %d active IP pools.\n\n", active)
}

func (c checked) users(b *strings.Builder) {
	tunnels, workloads := 0, 0
	for _, e := range c.view.Nodes {
		tunnels += len(ipam.TunnelAddrs(e.Value))
	}
	for _, e := range c.view.Endpoints {
		workloads += len(e.Value.Spec.IPNetworks)
	}
	fmt.Fprintf(b, "Loading all nodes...\nFound %d node tunnel IPs.\n\n", tunnels)
	fmt.Fprintf(b, "Loading all workload endpoints...\nFound %d workload IPs.\n", workloads)
	fmt.Fprintf(b, "Workloads and nodes are using %d IPs.\n\n", tunnels+workloads)
	fmt.Fprintf(b, "Loading all handles...\nFound %d handles.\n\n", len(c.view.Handles))
}

func (c checked) problems(b *strings.Builder) {
	if len(c.findings) == 0 {
		return
	}
	byKind := map[ipam.FindingKind][]ipam.Finding{}
	for _, f := range c.findings {
		byKind[f.Kind] = append(byKind[f.Kind], f)
	}
	for _, kind := range slices.Sorted(maps.Keys(byKind)) {
		fmt.Fprintf(b, "Found %d of %s.\n", len(byKind[kind]), kind)
		if !c.o.problemIPs {
			continue
		}
		for _, f := range byKind[kind] {
			fmt.Fprintf(b, "  %s\n    %s\n", f.Text, f.Remedy)
		}
	}
	if !c.o.problemIPs {
		b.WriteString("List them with --show-problem-ips.\n")
	}
	b.WriteString("\n")
}
