package addresses

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/muslin-cni/muslin/internal/ctl/cli"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
	"github.com/muslin-cni/muslin/pkg/store"
)

type releaseOptions struct {
	ip      string
	reports []string
	force   bool
}

func releaseCommand(env cli.Env) *cobra.Command {
	var o releaseOptions
	c := &cobra.Command{
		Use:   "release (--ip=<IP> | --from-report=<FILE>...) [--force]",
		Short: "Take addresses back that nobody uses any more",
		Long: "Take addresses back that nobody uses any more.\n\n" +
			"--ip takes one address back, unless an endpoint or a node still has it; --force does so all the same, and the address may then be given to\n" +
			"a second pod.\n\n" +
			"--from-report takes back what a report of ipam check lists as leaked, if nobody has it now and it was not assigned anew since. Of several\n" +
			"reports, those addresses that all of them list. The datastore must be locked; --force does without.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := exclusive(c, "ip", "from-report"); err != nil {
				return err
			}
			return release(c.Context(), env, o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.ip, "ip", "", "the address to take back")
	f.StringArrayVar(&o.reports, "from-report", nil, "a report that ipam check -o has written; may be given several times")
	f.BoolVar(&o.force, "force", false, "do it although it may harm")
	return c
}

func release(ctx context.Context, env cli.Env, o releaseOptions) error {
	if len(o.reports) > 0 {
		return releaseReported(ctx, env, o)
	}
	if o.ip == "" {
		return errors.New("name what to release, by --ip or --from-report")
	}
	addr, err := parseIP(o.ip)
	if err != nil {
		return err
	}
	err = env.With(ctx, func(c *store.Client) error { return releaseOne(ctx, c, addr, o.force) })
	if errors.Is(err, block.ErrNotHeld) {
		return fmt.Errorf("IP address %v is not assigned", addr)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(env.Out, "Successfully released IP address %v\n", addr)
	return err
}

// releaseOne releases an address that nobody has; with force, whoever has it. The error is block.ErrNotHeld where it is not assigned.
func releaseOne(ctx context.Context, c *store.Client, addr netip.Addr, force bool) error {
	v, err := ipam.LoadView(ctx, c)
	if err != nil {
		return err
	}
	b, by, err := assigned(v, addr)
	if err != nil {
		return err
	}
	if users := usersOf(v)[addr]; len(users) > 0 && !force {
		return fmt.Errorf("IP address %v is in use: %s has it: delete that first, or give --force to release the address all the same", addr, strings.Join(users, ", "))
	}
	seq := sequence(b.Value, addr)
	return ipam.ReleaseAddr(ctx, c, b.Value.CIDR, block.Release{Addr: addr, Handle: handleOf(by), Seq: &seq}, func(*store.Txn) {})
}

// assigned finds the block that an address is assigned from, and its holder.
func assigned(v ipam.View, addr netip.Addr) (store.Entry[api.Block], api.Attributes, error) {
	for _, b := range v.Blocks {
		if by, held := block.OwnerOf(b.Value, addr); held {
			return b, by, nil
		}
	}
	return store.Entry[api.Block]{}, api.Attributes{}, fmt.Errorf("release %v: %w", addr, block.ErrNotHeld)
}

func handleOf(by api.Attributes) string {
	if by.HandleID == nil {
		return ""
	}
	return block.Handle(*by.HandleID)
}

// releaseReported releases what all reports list as leaked.
func releaseReported(ctx context.Context, env cli.Env, o releaseOptions) error {
	reports := make([]report, len(o.reports))
	for i, path := range o.reports {
		var err error
		if reports[i], err = readReport(path); err != nil {
			return err
		}
	}
	return env.With(ctx, func(c *store.Client) error {
		guard, err := reportGuard(ctx, env, c, reports, o)
		if err != nil {
			return err
		}
		v, err := ipam.LoadView(ctx, c)
		if err != nil {
			return err
		}
		return releaser{env: env, c: c, guard: guard, users: usersOf(v)}.all(ctx, leaks(reports))
	})
}

// reportGuard refuses reports of another cluster and an unlocked datastore. The guard makes each transaction depend on the lock.
func reportGuard(ctx context.Context, env cli.Env, c *store.Client, reports []report, o releaseOptions) (func(*store.Txn), error) {
	cluster, err := store.Get[api.ClusterInformation](ctx, c, cli.ClusterKey())
	if err != nil {
		return nil, err
	}
	for i, r := range reports {
		if guid := cluster.Value.Spec.ClusterGUID; r.ClusterGUID != guid {
			return nil, fmt.Errorf("report %s is of cluster %s, and this is %s", o.reports[i], r.ClusterGUID, guid)
		}
	}
	if o.force {
		return func(*store.Txn) {}, nil
	}
	cluster, err = env.Locked(ctx, c, "release addresses, or give --force")
	return func(t *store.Txn) { t.Expect(cluster.Key, cluster.Rev) }, err
}

// releaser releases many addresses.
type releaser struct {
	env   cli.Env
	c     *store.Client
	guard func(*store.Txn)
	users map[netip.Addr][]string
}

// all goes on past what fails. What was released meanwhile, assigned anew or is used now is passed over.
func (r releaser) all(ctx context.Context, list []allocation) error {
	var errs []error
	released := 0
	for _, a := range list {
		addr, err := netip.ParseAddr(a.IP)
		cidr, err2 := netip.ParsePrefix(a.Block)
		if err := errors.Join(err, err2); err != nil {
			errs = append(errs, fmt.Errorf("read report: %w", err))
			continue
		}
		if users := r.users[addr]; len(users) > 0 {
			_, _ = fmt.Fprintf(r.env.Err, "%v is in use now: %s\n", addr, strings.Join(users, ", "))
			continue
		}
		err = ipam.ReleaseAddr(ctx, r.c, cidr, block.Release{Addr: addr, Handle: a.Handle, Seq: &a.SequenceNumber}, r.guard)
		switch {
		case errors.Is(err, block.ErrNotHeld), errors.Is(err, block.ErrDifferent):
			_, _ = fmt.Fprintf(r.env.Err, "passed over: %v\n", err)
		case errors.Is(err, store.ErrUnavailable), ctx.Err() != nil:
			return errors.Join(append(errs, err)...)
		case err != nil:
			errs = append(errs, err)
		default:
			released++
		}
	}
	if _, err := fmt.Fprintf(r.env.Out, "Successfully released %d of %d leaked IP addresses\n", released, len(list)); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
