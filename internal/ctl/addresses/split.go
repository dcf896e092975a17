package addresses

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"strconv"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/muslin-cni/muslin/internal/ctl/cli"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// maxParts is how many parts one transaction has room for, beside the pool and the ClusterInformation: a power of two below store.MaxKeys.
const maxParts = 64

func splitCommand(env cli.Env) *cobra.Command {
	var cidr, name string
	c := &cobra.Command{
		Use:   "split <NUMBER> (--cidr=<CIDR> | --name=<POOL>)",
		Short: "Replace a pool by several smaller ones of equal size",
		Long: "Replace a pool by several smaller ones of equal size, named split-<pool>-<number>, which are otherwise as the pool was. Blocks and the\n" +
			"addresses of pods stay as they are. The datastore must be locked. Everything is done at once or not at all.",
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := exclusive(c, "cidr", "name"); err != nil {
				return err
			}
			if cidr == "" && name == "" {
				return errors.New("name the pool, by --cidr or --name")
			}
			n, err := parts(args[0])
			if err != nil {
				return err
			}
			return env.With(c.Context(), func(client *store.Client) error {
				return split(c.Context(), env, client, splitting{n, cidr, name})
			})
		},
	}
	c.Flags().StringVar(&cidr, "cidr", "", "the pool's range")
	c.Flags().StringVar(&name, "name", "", "the pool's name")
	return c
}

// parts reads how many pools there shall be.
func parts(text string) (int, error) {
	n, err := strconv.ParseUint(text, 10, 31)
	if err != nil || bits.OnesCount64(n) != 1 || n < 2 {
		return 0, fmt.Errorf("invalid number of pools '%s': want a power of 2, from 2 on", text)
	}
	if n > maxParts {
		return 0, fmt.Errorf("cannot split into %d at once: split into at most %d, and then those", n, maxParts)
	}
	return int(n), nil
}

// splitting says which pool to split: by its CIDR or, if that is "", by its name.
type splitting struct {
	parts      int
	cidr, name string
}

// split replaces the pool in one transaction, so that no moment has both or neither.
func split(ctx context.Context, env cli.Env, c *store.Client, s splitting) error {
	cluster, err := env.Locked(ctx, c, "split the IP pools")
	if err != nil {
		return err
	}
	pool, err := s.find(ctx, c)
	if err != nil {
		return err
	}
	ranges, err := divide(pool.Value.Spec, s.parts)
	if err != nil {
		return fmt.Errorf("cannot split pool %s: %w", pool.Value.Metadata.Name, err)
	}
	var t store.Txn
	t.Expect(cluster.Key, cluster.Rev)
	t.Delete(pool.Key, pool.Rev)
	text := fmt.Sprintf("Successfully split IP pool %s (%v) into %d:\n", pool.Value.Metadata.Name, pool.Value.Spec.CIDR, s.parts)
	for i, cidr := range ranges {
		raw, err := part(pool, i, cidr, env)
		if err != nil {
			return err
		}
		name := partName(pool, i)
		t.PutRaw((*api.IPPool)(nil).KindOf().Key("", name), raw, 0)
		text += fmt.Sprintf("  %s (%v)\n", name, cidr)
	}
	if _, err := c.Commit(ctx, &t); err != nil {
		return fmt.Errorf("split pool %s: %w", pool.Value.Metadata.Name, err)
	}
	_, err = fmt.Fprint(env.Out, text)
	return err
}

func (s splitting) find(ctx context.Context, c *store.Client) (store.Entry[api.IPPool], error) {
	if s.cidr == "" {
		e, err := store.Get[api.IPPool](ctx, c, (*api.IPPool)(nil).KindOf().Key("", s.name))
		if errors.Is(err, store.ErrNotFound) {
			err = fmt.Errorf("unable to find IP pool with name %s", s.name)
		}
		return e, err
	}
	cidr, err := netip.ParsePrefix(s.cidr)
	if err != nil {
		return store.Entry[api.IPPool]{}, fmt.Errorf("invalid CIDR specified: %s", s.cidr)
	}
	all, _, err := store.List[api.IPPool](ctx, c, (*api.IPPool)(nil).KindOf().Prefix())
	for _, e := range all {
		if e.Value.Spec.CIDR == cidr.Masked() {
			return e, nil
		}
	}
	if err == nil {
		err = fmt.Errorf("unable to find IP pool covering the specified CIDR %s", s.cidr)
	}
	return store.Entry[api.IPPool]{}, err
}

// divide cuts a pool's range into n, a power of two, equal parts.
func divide(pool api.IPPoolSpec, n int) ([]netip.Prefix, error) {
	deeper := bits.TrailingZeros(uint(n))
	length := pool.CIDR.Bits() + deeper
	if length > pool.BlockSize {
		return nil, fmt.Errorf("%d parts of %v are smaller than its blocks of /%d", n, pool.CIDR, pool.BlockSize)
	}
	out := make([]netip.Prefix, n)
	for i := range out {
		raw := pool.CIDR.Addr().AsSlice()
		for b := range deeper { // bit b of i is bit length-1-b of the address
			at := length - 1 - b
			raw[at/8] |= byte(i>>b&1) << (7 - at%8)
		}
		addr, _ := netip.AddrFromSlice(raw) // of an address, hence of its length
		out[i] = netip.PrefixFrom(addr, length)
	}
	return out, nil
}

func partName(pool store.Entry[api.IPPool], i int) string {
	return fmt.Sprintf("split-%s-%d", pool.Value.Metadata.Name, i)
}

// part is the stored form of a part: all that the pool is, fields that we do not know included, but for who it is.
func part(pool store.Entry[api.IPPool], i int, cidr netip.Prefix, env cli.Env) ([]byte, error) {
	p := *pool.Value
	m := &p.Metadata
	p.Metadata = api.ObjectMeta{Name: partName(pool, i), Labels: m.Labels, Annotations: m.Annotations}
	p.Spec.CIDR = cidr
	api.Created(&p, uuid.NewString(), env.Now())
	if err := api.Validate(&p); err != nil {
		return nil, err
	}
	return api.Encode(&p, pool.Raw())
}
