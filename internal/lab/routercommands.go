package lab

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/muslin-cni/muslin/pkg/api"
)

func fabricCommand(set Settings) *cobra.Command {
	cmd := &cobra.Command{Use: "fabric", Short: "BGP routers of the lab: real BIRD and FRR"}
	cmd.AddCommand(addRouterCommand(set), removeRouterCommand(set), listRoutersCommand(set))
	return cmd
}

// routerFlags are what add-router is told, before it is understood.
type routerFlags struct {
	spec     RouterSpec
	as       string
	peers    []string
	announce []string
	cluster  string
}

func addRouterCommand(set Settings) *cobra.Command {
	var f routerFlags
	cmd := &cobra.Command{
		Use:   "add-router bird|frr NAME",
		Short: "Add a BGP router, or a Calico node that BIRD drives",
		Long: `Add a BGP router: Debian's bird2 or frr in namespaces of its own, plugged into a subnet at 172.30.S.201 and up. Its daemons answer where
their tools look for them:

  muslin-lab fabric add-router frr tor-1 --as 65001 --announce 192.0.2.0/24
  muslin-lab exec tor-1 -- vtysh -c 'show bgp summary'
  muslin-lab exec rr-1 -- birdc show protocols

It has a session with every node, those added later included, or with those that --peer names. The nodes' side is a BGPPeer, for the
operator to write:

  muslin-lab exec node-1 -- muslinctl apply -f - <<EOF
  {apiVersion: projectcalico.org/v3, kind: BGPPeer, metadata: {name: tor-1}, spec: {peerIP: 172.30.1.201, asNumber: 65001}}
  EOF

It passes on what it learns, and forwards by it; of each network that it announces it has the first address, so that something answers.

With --calico-node BIRD is a node of the cluster, configured as Calico configures it: a Node and an address block of its own are in
etcd, it is in the mesh (or has the sessions of --peer), and one address of its block answers as a pod would. That needs a lab with
--bgp and --mode direct; in the IP-in-IP modes its tunl0 and the routes into it are yours to make.

The router starts anew with muslin-lab stop and start; muslin-lab logs prints what its daemons say.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return fmt.Errorf("want a kind and a name: %s", cmd.UseLine())
			}
			return nil
		},
		RunE: onLab(set, func(ctx context.Context, cmd *cobra.Command, l *Lab, args []string) error {
			f.spec.Kind, f.spec.Name = RouterKind(args[0]), args[1]
			if err := f.parse(); err != nil {
				return err
			}
			r, err := l.AddRouter(ctx, f.spec)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s on subnet %d has %s, AS %d%s\n", r.Spec.Name, r.Spec.Subnet, addrsText(valid(r.Addr, r.Addr6)), r.Spec.AS, blocksText(r))
			return nil
		}),
	}
	flags := cmd.Flags()
	flags.StringVar(&f.as, "as", "", "AS number (default 65000; 64512 with --calico-node)")
	flags.IntVar(&f.spec.Subnet, "subnet", 1, "subnet that it is plugged into")
	flags.StringArrayVar(&f.peers, "peer", nil, "who it has a session with, instead of every node: a node, a router or an address, NAME[=AS] (default AS 64512); may be repeated")
	flags.StringVar(&f.spec.Password, "password", "", "of all its sessions (TCP MD5)")
	flags.StringArrayVar(&f.announce, "announce", nil, "a network of its own, a CIDR; may be repeated")
	flags.StringVar(&f.cluster, "reflector", "", "reflect routes to peers of the same AS, under this cluster id (a.b.c.d)")
	flags.DurationVar(&f.spec.Hold, "hold", 0, "hold time that it proposes (default 9s; 240s with --calico-node)")
	flags.BoolVar(&f.spec.CalicoNode, "calico-node", false, "be a node of the cluster that BIRD drives; bird only")
	return cmd
}

func blocksText(r Router) string {
	if len(r.Blocks) == 0 {
		return ""
	}
	blocks := make([]string, len(r.Blocks))
	for i, b := range r.Blocks {
		blocks[i] = b.String()
	}
	return fmt.Sprintf(", block %s, of which %s answers", strings.Join(blocks, " "), addrsText(r.Pods))
}

// parse completes the spec by the flags that have a form of their own.
func (f *routerFlags) parse() (err error) {
	if f.as != "" {
		if f.spec.AS, err = parseAS(f.as); err != nil {
			return err
		}
	}
	for _, p := range f.peers {
		host, as, given := strings.Cut(p, "=")
		peer := RouterPeer{Host: host}
		if given {
			if peer.AS, err = parseAS(as); err != nil {
				return fmt.Errorf("peer %q: %w", p, err)
			}
		}
		f.spec.Peers = append(f.spec.Peers, peer)
	}
	for _, a := range f.announce {
		p, err := netip.ParsePrefix(a)
		if err != nil {
			return fmt.Errorf("announce %q: want a CIDR, for example 192.0.2.0/24", a)
		}
		f.spec.Announce = append(f.spec.Announce, p)
	}
	if f.cluster != "" {
		if f.spec.Cluster, err = netip.ParseAddr(f.cluster); err != nil {
			return fmt.Errorf("reflector %q: want a cluster id in the form of an IPv4 address", f.cluster)
		}
	}
	return nil
}

func parseAS(text string) (api.ASN, error) {
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("AS %q: want a number from 1 to 4294967295", text)
	}
	return api.ASN(n), nil
}

func removeRouterCommand(set Settings) *cobra.Command {
	return &cobra.Command{
		Use:   "rm-router NAME",
		Short: "Take a router away, as if its power were cut; after a Calico node muslinctl delete node cleans up",
		Args:  exactly("a router's name"),
		RunE: onLab(set, func(ctx context.Context, _ *cobra.Command, l *Lab, args []string) error {
			return l.RemoveRouter(ctx, args[0])
		}),
	}
}

func listRoutersCommand(set Settings) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the routers",
		Args:  cobra.NoArgs,
		RunE: onLab(set, func(_ context.Context, cmd *cobra.Command, l *Lab, _ []string) error {
			routers, err := l.Routers()
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "NAME\tKIND\tAS\tADDRESS")
			for _, r := range routers {
				fmt.Fprintf(w, "%s\t%s\t%d\t%s\n", r.Spec.Name, r.Spec.Kind, r.Spec.AS, addrsText(valid(r.Addr, r.Addr6)))
			}
			return w.Flush()
		}),
	}
}
