package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

// Settings are what the muslin-lab command takes from its process.
type Settings struct {
	Dir     string // of the lab's state; "": DefaultDir
	Bin     string // folder of the programs
	Version string
}

// NewCommand is the whole command line of muslin-lab, the daemons that it starts of itself included. Its commands end on SIGINT,
// SIGTERM and SIGHUP; a failing command run by `exec` is an *exec.ExitError.
func NewCommand(set Settings) *cobra.Command {
	root := &cobra.Command{
		Use:           "muslin-lab",
		Short:         "Many Muslin nodes on this machine, one network namespace each",
		Version:       set.Version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.AddCommand(
		upCommand(set), downCommand(set), demoCommand(set), checkCommand(set),
		podCommand(set), nodeCommand(set), fabricCommand(set), execCommand(set), logsCommand(set),
		serviceCommand(set, service{"stop", "Stop a node's agent, a router's daemons, or etcd", (*Lab).StopAgent, (*Lab).StopRouter, (*Lab).StopEtcd}),
		serviceCommand(set, service{"start", "Start a node's agent, a router's daemons, or etcd", (*Lab).StartAgent, (*Lab).StartRouter, (*Lab).StartEtcd}),
		holderCommand(), etcdCommand(), relayCommand(), guardCommand(), writeCommand(),
	)
	return root
}

// interruptible ends the context when somebody wants the command to end.
func interruptible(cmd *cobra.Command) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
}

// onLab is a command on the lab that is up, until somebody wants it to end.
func onLab(set Settings, run func(ctx context.Context, cmd *cobra.Command, l *Lab, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		ctx, cancel := interruptible(cmd)
		defer cancel()
		l, err := Open(set.Dir)
		if err != nil {
			return err
		}
		return run(ctx, cmd, l, args)
	}
}

func upCommand(set Settings) *cobra.Command {
	o := Defaults()
	mode, mode6, pool, pool6 := string(o.Mode), "", o.Pool.String(), o.Pool6.String()
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Bring a lab up",
		Long: `Bring a lab up: nodes in network namespaces of their own, a fabric that joins them, and a host outside.

node-N on subnet S has the address 172.30.S.N, with --dual-stack also fd00:172:30:S::N (N in hexadecimal digits).
The router has 254 (fe) on every subnet, the outside host 172.30.254.1 and fd00:172:30:fe::1; etcd listens on ` + etcdAddr + `, and its other members on the addresses that follow.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := interruptible(cmd)
			defer cancel()
			o.Mode, o.Mode6 = Mode(mode), Mode(mode6)
			var err error
			if o.Pool, err = netip.ParsePrefix(pool); err != nil {
				return fmt.Errorf("pool %q: want an IPv4 CIDR, for example 192.168.0.0/16", pool)
			}
			if o.Pool6, err = netip.ParsePrefix(pool6); err != nil {
				return fmt.Errorf("pool6 %q: want an IPv6 CIDR, for example fd00:192:168::/48", pool6)
			}
			say := func(text string) { fmt.Fprintln(cmd.OutOrStdout(), text) }
			_, err = Up(ctx, Config{Dir: set.Dir, Bin: set.Bin, Options: o, Progress: say})
			return err
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.Nodes, "nodes", o.Nodes, "number of nodes: node-1, node-2, …")
	f.IntVar(&o.Subnets, "subnets", o.Subnets, "subnets that the nodes take turns on, with a router between them that knows no pod routes")
	f.StringVar(&mode, "mode", mode, "how pods of different nodes reach each other: direct, ipip, ipip-crosssubnet, vxlan or vxlan-crosssubnet")
	f.StringVar(&mode6, "mode6", "", "the same for IPv6, with --dual-stack: direct, vxlan or vxlan-crosssubnet (default: as --mode, and vxlan in place of ipip)")
	f.StringVar(&o.Etcd, "etcd", "", "an etcd that this machine reaches, http://host:port (default: one inside the lab)")
	f.IntVar(&o.Members, "members", 0, "members of the lab's own etcd, not together with --etcd (default: one)")
	f.Int64Var(&o.EtcdQuota, "etcd-quota", 0, "bytes that the lab's own etcd may hold before it is full (default: etcd's own)")
	f.BoolVar(&o.BGP, "bgp", false, "have nodes speak BGP; with direct pools and several subnets the router between these does too (needs bird2), so that all pods reach each other")
	f.BoolVar(&o.WireGuard, "wireguard", false, "encrypt what pods of different nodes send each other, for which the kernel needs WireGuard")
	f.BoolVar(&o.TLS, "tls", false, "have the lab's own etcd want TLS and certificates, which all get; not together with --etcd")
	f.IntVar(&o.BlockSize, "block-size", o.BlockSize, "prefix length of the address blocks that nodes take from the pool")
	f.StringVar(&pool, "pool", pool, "IPv4 CIDR of the pods")
	f.BoolVar(&o.DualStack, "dual-stack", false, "IPv6 beside IPv4, on the fabric and in the pods")
	f.IntVar(&o.BlockSize6, "block-size6", o.BlockSize6, "prefix length of the IPv6 address blocks, with --dual-stack")
	f.StringVar(&pool6, "pool6", pool6, "IPv6 CIDR of the pods, with --dual-stack")
	return cmd
}

func downCommand(set Settings) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "End the lab and everything in it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return Down(cmd.Context(), set.Dir) // not interruptible: half a down helps nobody, and it is bounded
		},
	}
}

func demoCommand(set Settings) *cobra.Command {
	wireGuard := false
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Bring up three nodes, show that their pods reach each other, take all down",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := interruptible(cmd)
			defer cancel()
			return Demo(ctx, set.Dir, set.Bin, wireGuard, cmd.OutOrStdout())
		},
	}
	cmd.Flags().BoolVar(&wireGuard, "wireguard", false, "encrypt what pods of different nodes send each other")
	return cmd
}

func checkCommand(set Settings) *cobra.Command {
	asJSON := false
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Try every way between pods, nodes and the outside; fail unless all work",
		Args:  cobra.NoArgs,
		RunE: onLab(set, func(ctx context.Context, cmd *cobra.Command, l *Lab, _ []string) error {
			report, err := l.Check(ctx)
			if err != nil {
				return err
			}
			if err := report.write(cmd.OutOrStdout(), asJSON); err != nil {
				return err
			}
			if !report.OK {
				return fmt.Errorf("%w: %d of %d fail", ErrUnreachable, report.Failed(), len(report.Pairs))
			}
			return nil
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the report for programs; durations are nanoseconds")
	return cmd
}

func (r Report) write(w io.Writer, asJSON bool) error {
	if !asJSON {
		r.WriteText(w)
		return nil
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}

func nodeCommand(set Settings) *cobra.Command {
	cmd := &cobra.Command{Use: "node", Short: "Nodes of the lab"}
	cmd.AddCommand(&cobra.Command{
		Use:   "add",
		Short: "Add a node, with its agent",
		Args:  cobra.NoArgs,
		RunE: onLab(set, func(ctx context.Context, cmd *cobra.Command, l *Lab, _ []string) error {
			n, err := l.AddNode(ctx)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s on subnet %d has %s\n", n.Name, n.Subnet, addrsText(valid(n.Addr, n.Addr6)))
			return nil
		}),
	}, &cobra.Command{
		Use:   "rm NODE",
		Short: "Take a node away, as if its power were cut; muslinctl delete node then cleans up",
		Args:  exactly("a node's name"),
		RunE: onLab(set, func(ctx context.Context, _ *cobra.Command, l *Lab, args []string) error {
			return l.RemoveNode(ctx, args[0])
		}),
	})
	return cmd
}

func podCommand(set Settings) *cobra.Command {
	cmd := &cobra.Command{Use: "pod", Short: "Pods of the lab"}
	cmd.AddCommand(podAddCommand(set), podRemoveCommand(set), podListCommand(set), podExecCommand(set))
	return cmd
}

func podAddCommand(set Settings) *cobra.Command {
	var spec PodSpec
	var labels, annotations []string
	cmd := &cobra.Command{
		Use:   "add NAME --node NODE",
		Short: "Add a pod by the CNI plugin",
		Args:  exactly("a pod's name"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			ctx, cancel := interruptible(cmd)
			defer cancel()
			spec.Name = args[0]
			if spec.Labels, err = pairs("label", labels); err != nil {
				return err
			}
			if spec.Annotations, err = pairs("annotation", annotations); err != nil {
				return err
			}
			l, err := Open(set.Dir)
			if err != nil {
				return err
			}
			pod, err := l.AddPod(ctx, spec)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s on %s has %s (ADD took %s)\n", pod.Name, pod.Node, addrsText(pod.Addrs()), milliseconds(pod.Took))
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&spec.Node, "node", "", "where the pod runs")
	f.BoolVar(&spec.IPv6Only, "ipv6-only", false, "without an IPv4 address, in a dual-stack lab")
	f.StringArrayVar(&labels, "label", nil, "key=value, may be repeated")
	f.StringArrayVar(&annotations, "annotation", nil, "key=value, may be repeated")
	return cmd
}

// pairs parses what a repeatable key=value flag was given.
func pairs(what string, list []string) (map[string]string, error) {
	out := make(map[string]string)
	for _, text := range list {
		key, value, ok := strings.Cut(text, "=")
		if !ok || key == "" {
			return nil, fmt.Errorf("%s %q: want key=value", what, text)
		}
		out[key] = value
	}
	return out, nil
}

// exactly words the error of a missing or superfluous argument.
func exactly(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return fmt.Errorf("want exactly %s: %s", what, cmd.UseLine())
		}
		return nil
	}
}

func podRemoveCommand(set Settings) *cobra.Command {
	return &cobra.Command{
		Use:   "rm NAME",
		Short: "Remove a pod by the CNI plugin",
		Args:  exactly("a pod's name"),
		RunE: onLab(set, func(ctx context.Context, _ *cobra.Command, l *Lab, args []string) error {
			return l.RemovePod(ctx, args[0])
		}),
	}
}

func podListCommand(set Settings) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the pods",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := Open(set.Dir)
			if err != nil {
				return err
			}
			pods, err := l.Pods()
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "NAME\tNODE\tADDRESS")
			for _, p := range pods {
				addr := "(ADD has not finished)"
				if addrs := p.Addrs(); len(addrs) > 0 {
					addr = addrsText(addrs)
				}
				fmt.Fprintf(w, "%s\t%s\t%s\n", p.Name, p.Node, addr)
			}
			return w.Flush()
		},
	}
}

func addrsText(addrs []netip.Addr) string {
	texts := make([]string, len(addrs))
	for i, a := range addrs {
		texts[i] = a.String()
	}
	return strings.Join(texts, " ")
}

func podExecCommand(set Settings) *cobra.Command {
	return insideCommand("exec NAME -- CMD…", "Run a command in a pod's network", set, (*Lab).PodExec)
}

func execCommand(set Settings) *cobra.Command {
	return insideCommand("exec NODE|ROUTER|fabric|outside -- CMD…", "Run a command on a node, a router, in the fabric or on the outside host", set, (*Lab).Exec)
}

type runner func(l *Lab, ctx context.Context, where string, c Command) error

func insideCommand(use, short string, set Settings, run runner) *cobra.Command {
	cmd := &cobra.Command{
		Use:                   use,
		Short:                 short,
		DisableFlagsInUseLine: true,
		RunE:                  func(cmd *cobra.Command, args []string) error { return runInside(cmd, set, args, run) },
	}
	cmd.Flags().SetInterspersed(false) // what follows the place is the command's, with or without the two dashes
	return cmd
}

// runInside hands the terminal to a command. Ctrl-C is that command's business.
func runInside(cmd *cobra.Command, set Settings, args []string, run runner) error {
	if len(args) > 1 && args[1] == "--" {
		args = slices.Delete(args, 1, 2)
	}
	if len(args) < 2 {
		return fmt.Errorf("want a place and a command: %s", cmd.UseLine())
	}
	ctx, cancel := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGHUP)
	defer cancel()
	swallowed := make(chan os.Signal, 1)
	signal.Notify(swallowed, syscall.SIGINT, syscall.SIGQUIT)
	defer signal.Stop(swallowed)
	l, err := Open(set.Dir)
	if err != nil {
		return err
	}
	return run(l, ctx, args[0], Command{Args: args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr})
}

func logsCommand(set Settings) *cobra.Command {
	return &cobra.Command{
		Use:   "logs NODE|ROUTER|etcd",
		Short: "Print the log of a node's agent, of a router, or of etcd",
		Args:  exactly("a node's or router's name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := Open(set.Dir)
			if err != nil {
				return err
			}
			return l.Log(args[0], cmd.OutOrStdout())
		},
	}
}

// service is a verb on what the lab runs in the background.
type service struct {
	verb, short   string
	agent, router func(*Lab, context.Context, string) error
	etcd          func(*Lab, context.Context) error
}

func serviceCommand(set Settings, v service) *cobra.Command {
	return &cobra.Command{
		Use:   v.verb + " NODE|ROUTER|etcd",
		Short: v.short,
		Args:  exactly("a node's or router's name"),
		RunE: onLab(set, func(ctx context.Context, _ *cobra.Command, l *Lab, args []string) error {
			s, err := l.load()
			if err != nil {
				return err
			}
			_, notRouter := s.router(args[0])
			switch {
			case args[0] == "etcd":
				return v.etcd(l, ctx)
			case notRouter == nil:
				return v.router(l, ctx, args[0])
			}
			return v.agent(l, ctx, args[0])
		}),
	}
}

// The lab starts the following of itself; see Config.Bin.

func holderCommand() *cobra.Command {
	var spec holderSpec
	cmd := daemonCommand("run-holder", func(ctx context.Context, _ *slog.Logger) error { return hold(ctx, spec) })
	f := cmd.Flags()
	f.StringVar(&spec.hostname, "hostname", "", "")
	f.StringVar(&spec.machineID, "machine-id", "", "")
	f.StringVar(&spec.bin, "bin", "", "")
	return cmd
}

func etcdCommand() *cobra.Command {
	var m etcdMember
	cmd := daemonCommand("run-etcd", m.run)
	f := cmd.Flags()
	f.StringVar(&m.dir, "dir", "", "")
	f.StringVar(&m.certificates, "tls", "", "")
	f.IntVar(&m.self, "member", 0, "")
	f.IntVar(&m.members, "members", 1, "")
	f.Int64Var(&m.quota, "quota", 0, "")
	return cmd
}

func relayCommand() *cobra.Command {
	fabric, etcd := 0, ""
	cmd := daemonCommand("run-relay", func(ctx context.Context, _ *slog.Logger) error { return runRelay(ctx, fabric, etcd) })
	cmd.Flags().IntVar(&fabric, "fabric", 0, "")
	cmd.Flags().StringVar(&etcd, "etcd", "", "")
	return cmd
}

func guardCommand() *cobra.Command {
	dir := ""
	cmd := &cobra.Command{
		Use: "run-guard", Hidden: true, Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return watch(dir) },
	}
	cmd.Flags().StringVar(&dir, "dir", "", "")
	return cmd
}

func writeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "run-write", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := interruptible(cmd)
			defer cancel()
			return runWrite(ctx, cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
}

func daemonCommand(name string, run func(context.Context, *slog.Logger) error) *cobra.Command {
	return &cobra.Command{
		Use:    name,
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if os.Getenv(idVar) == "" {
				return errors.New(name + " is for `muslin-lab up` to start")
			}
			ctx, cancel := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer cancel()
			return run(ctx, slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil)))
		},
	}
}
