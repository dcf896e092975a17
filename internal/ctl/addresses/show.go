package addresses

import (
	"context"
	"fmt"
	"maps"
	"math/big"
	"net/netip"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/muslin-cni/muslin/internal/ctl/cli"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
	"github.com/muslin-cni/muslin/pkg/store"
)

type showOptions struct {
	ip, format                      string
	blocks, borrowed, configuration bool
}

func showCommand(env cli.Env) *cobra.Command {
	var o showOptions
	c := &cobra.Command{
		Use:   "show [--ip=<IP> | --show-blocks | --show-borrowed | --show-configuration]",
		Short: "Show how much of each pool is used, or who has an address",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := exclusive(c, "ip", "show-blocks", "show-borrowed", "show-configuration"); err != nil {
				return err
			}
			if err := cli.CheckFormat(o.format); err != nil {
				return err
			}
			return show(c.Context(), env, o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.ip, "ip", "", "say who has this address")
	f.BoolVar(&o.blocks, "show-blocks", false, "list the blocks of each pool too")
	f.BoolVar(&o.borrowed, "show-borrowed", false, "list addresses that a node uses out of another node's block")
	f.BoolVar(&o.configuration, "show-configuration", false, "print the settings that hold for all pools")
	f.StringVarP(&o.format, "output", "o", "", "json, or text if left out")
	return c
}

func show(ctx context.Context, env cli.Env, o showOptions) error {
	s := shower{env: env, json: o.format == "json"}
	if o.ip != "" {
		addr, err := parseIP(o.ip)
		if err != nil {
			return err
		}
		return env.With(ctx, func(c *store.Client) error { return s.address(ctx, c, addr) })
	}
	if o.configuration {
		return env.With(ctx, func(c *store.Client) error { return s.configuration(ctx, c) })
	}
	return env.With(ctx, func(c *store.Client) error {
		v, err := ipam.LoadView(ctx, c)
		if err != nil {
			return err
		}
		for _, bad := range v.Unreadable {
			_, _ = fmt.Fprintf(env.Err, "left out: %v\n", &bad)
		}
		if o.borrowed {
			return s.borrowed(v)
		}
		return s.usage(v, o.blocks)
	})
}

// shower prints what is asked for.
type shower struct {
	env  cli.Env
	json bool
}

// usage is how much of a range is in use. Ranges of IPv6 are larger than an int.
type usage struct {
	Name  string   `json:"name,omitempty"` // of a pool
	CIDR  string   `json:"cidr"`
	Node  string   `json:"node,omitempty"` // of a block: whose it is
	Total *big.Int `json:"total"`
	InUse int64    `json:"inUse"`
	Free  *big.Int `json:"free"`

	Blocks []*usage `json:"blocks,omitempty"` // of a pool
}

// newUsage is that of a range of which nothing is used.
func newUsage(cidr netip.Prefix) *usage {
	total := new(big.Int).Lsh(big.NewInt(1), uint(cidr.Addr().BitLen()-cidr.Bits()))
	return &usage{CIDR: cidr.String(), Total: total, Free: total}
}

func (u *usage) use(n int64) {
	u.InUse += n
	u.Free = new(big.Int).Sub(u.Total, big.NewInt(u.InUse))
}

// row is the usage as cells of a table.
func (u *usage) row(grouping string) []string {
	share := func(n *big.Int) string {
		q, _ := new(big.Rat).SetFrac(new(big.Int).Mul(n, big.NewInt(100)), u.Total).Float64()
		return fmt.Sprintf("%v (%.0f%%)", n, q)
	}
	return []string{grouping, u.CIDR, u.Total.String(), share(big.NewInt(u.InUse)), share(u.Free)}
}

// measure counts what is in use, by pool and block. orphans are blocks in no pool.
func measure(v ipam.View) (pools, orphans []*usage) {
	for _, p := range v.Pools {
		u := newUsage(p.Value.Spec.CIDR)
		u.Name = p.Value.Metadata.Name
		pools = append(pools, u)
	}
	for _, b := range v.Blocks {
		u := newUsage(b.Value.CIDR)
		u.Node, _ = b.Value.Host()
		u.use(int64(block.Size(b.Value.CIDR) - block.Free(b.Value)))
		pooled := false
		for i, p := range v.Pools {
			if p.Value.Spec.CIDR.Overlaps(b.Value.CIDR) {
				pools[i].use(u.InUse)
				pools[i].Blocks = append(pools[i].Blocks, u)
				pooled = true
			}
		}
		if !pooled {
			orphans = append(orphans, u)
		}
	}
	return pools, orphans
}

func (s shower) usage(v ipam.View, blocks bool) error {
	pools, orphans := measure(v)
	if !blocks {
		orphans = nil
		for _, p := range pools {
			p.Blocks = nil
		}
	}
	if s.json {
		return cli.PrintJSON(s.env.Out, struct {
			Pools    []*usage `json:"pools"`
			Orphaned []*usage `json:"orphanedBlocks,omitempty"` // in no pool
		}{pools, orphans})
	}
	t := cli.Table{Head: []string{"GROUPING", "CIDR", "IPS TOTAL", "IPS IN USE", "IPS FREE"}}
	for _, p := range pools {
		t.Rows = append(t.Rows, p.row("IP Pool"))
		for _, b := range p.Blocks {
			t.Rows = append(t.Rows, b.row("Block"))
		}
	}
	for _, b := range orphans {
		t.Rows = append(t.Rows, b.row("Block"))
	}
	return t.Print(s.env.Out)
}

// holder is who has an address.
type holder struct {
	IP         string            `json:"ip"`
	Assigned   bool              `json:"assigned"`
	Handle     string            `json:"handle,omitempty"`
	Attributes map[string]string `json:"attributes,omitempty"`
	Alternate  map[string]string `json:"alternateOwnerAttributes,omitempty"`
	Block      string            `json:"block,omitempty"`
	BlockOwner string            `json:"blockOwner,omitempty"`
}

func (s shower) address(ctx context.Context, c *store.Client, addr netip.Addr) error {
	b, err := blockWith(ctx, c, addr)
	if err != nil {
		return err
	}
	h := holder{IP: addr.String()}
	if b.Value != nil {
		var by api.Attributes
		by, h.Assigned = block.OwnerOf(b.Value, addr)
		h.Block = b.Value.CIDR.String()
		h.BlockOwner, _ = b.Value.Host()
		h.Attributes, h.Alternate = by.Secondary, by.Alternate
		if by.HandleID != nil {
			h.Handle = block.Handle(*by.HandleID)
		}
	}
	if s.json {
		return cli.PrintJSON(s.env.Out, h)
	}
	return s.holder(h)
}

// holder prints who has an address, as text.
func (s shower) holder(h holder) error {
	if !h.Assigned {
		_, err := fmt.Fprintf(s.env.Out, "%s is not assigned\n", h.IP)
		return err
	}
	text := fmt.Sprintf("IP %s is in use\n", h.IP)
	if h.Handle != "" {
		text += fmt.Sprintf("Handle ID: %s\n", h.Handle)
	}
	list := func(title string, attrs map[string]string) {
		if len(attrs) == 0 {
			return
		}
		text += title + ":\n"
		for _, k := range slices.Sorted(maps.Keys(attrs)) {
			text += fmt.Sprintf("  %s: %s\n", k, attrs[k])
		}
	}
	list("Active Owner Attributes", h.Attributes)
	list("Alternate Owner Attributes", h.Alternate)
	_, err := fmt.Fprint(s.env.Out, text)
	return err
}

// blockWith finds the block that an address is in; an entry without a Value if there is none.
func blockWith(ctx context.Context, c *store.Client, addr netip.Addr) (store.Entry[api.Block], error) {
	all, err := ipam.Etcd{Client: c}.AllBlocks(ctx, addr.Is6())
	if err != nil {
		return store.Entry[api.Block]{}, err
	}
	var found store.Entry[api.Block]
	for _, e := range all {
		if e.Value == nil || !e.Value.CIDR.Contains(addr) {
			continue
		}
		if _, held := block.OwnerOf(e.Value, addr); held || found.Value == nil {
			found = e // blocks should not overlap; where they do, the one that gave the address away
		}
	}
	return found, nil
}

// loan is an address that a node uses out of a block that is not its own.
type loan struct {
	IP          string `json:"ip"`
	Node        string `json:"borrowingNode"`
	Block       string `json:"block"`
	BlockOwner  string `json:"blockOwner"` // "": nobody
	Type        string `json:"type"`
	AllocatedTo string `json:"allocatedTo"`
}

func (s shower) borrowed(v ipam.View) error {
	loans := []loan{}
	for _, b := range v.Blocks {
		owner, _ := b.Value.Host()
		for addr, by := range ipam.Allocated(b.Value) {
			node := by.Secondary[api.AttrNode]
			if node == "" || node == owner {
				continue
			}
			kind, to := user(by)
			loans = append(loans, loan{addr.String(), node, b.Value.CIDR.String(), owner, kind, to})
		}
	}
	if s.json {
		return cli.PrintJSON(s.env.Out, loans)
	}
	t := cli.Table{Head: []string{"IP", "BORROWING-NODE", "BLOCK", "BLOCK OWNER", "TYPE", "ALLOCATED-TO"}}
	for _, l := range loans {
		t.Rows = append(t.Rows, []string{l.IP, l.Node, l.Block, l.BlockOwner, l.Type, l.AllocatedTo})
	}
	return t.Print(s.env.Out)
}

// user is what an address is used as, and by whom.
func user(by api.Attributes) (kind, to string) {
	s := by.Secondary
	switch {
	case s[api.AttrType] != "":
		return s[api.AttrType], s[api.AttrNode]
	case s[api.AttrPod] != "":
		return "pod", s[api.AttrNamespace] + "/" + s[api.AttrPod]
	case by.HandleID != nil:
		return "container", block.Handle(*by.HandleID)
	}
	return "unknown", ""
}

func (s shower) configuration(ctx context.Context, c *store.Client) error {
	cfg, err := readConfig(ctx, c)
	if err != nil {
		return err
	}
	i := api.NewIPAMConfiguration(cfg)
	if s.json {
		return cli.PrintJSON(s.env.Out, i.Spec)
	}
	t := cli.Table{Head: []string{"PROPERTY", "VALUE"}, Rows: [][]string{
		{"StrictAffinity", strconv.FormatBool(i.Spec.StrictAffinity)},
		{"AutoAllocateBlocks", strconv.FormatBool(i.Spec.AutoAllocateBlocks)},
		{"MaxBlocksPerHost", strconv.Itoa(i.Spec.MaxBlocksPerHost)},
		{"KubeVirtVMAddressPersistence", i.Spec.KubeVirtVMAddressPersistence},
	}}
	return t.Print(s.env.Out)
}
