package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/spf13/cobra"
)

// newCommand is the whole command line.
func newCommand() *cobra.Command {
	var name string
	root := &cobra.Command{Use: "k8s", Short: "Muslin under a real Kubernetes on this machine", SilenceUsage: true, SilenceErrors: true, TraverseChildren: true}
	root.CompletionOptions.DisableDefaultCmd = true
	root.PersistentFlags().StringVar(&name, "cluster", "default", "name of the cluster, of several")
	root.AddCommand(
		buildCommand(), upCommand(&name), installCommand(&name), e2eCommand(&name), powerCommand(&name),
		&cobra.Command{Use: "down", Short: "End the cluster and remove every trace of it", Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error { return down(cmd.Context(), name) }},
		within(&name, "kubectl ARGS…", "Run kubectl", func(ctx context.Context, c *cluster, args []string) (*exec.Cmd, error) {
			return c.kubectl(ctx, args...)
		}),
		within(&name, "muslinctl ARGS…", "Run muslinctl, in its own pod", func(ctx context.Context, c *cluster, args []string) (*exec.Cmd, error) {
			return c.muslinctl(ctx, args...)
		}),
		within(&name, "exec NODE COMMAND…", "Run a command as one of a node's own, or of the control plane's network", func(ctx context.Context, c *cluster, args []string) (*exec.Cmd, error) {
			switch {
			case len(args) < 2:
				return nil, fmt.Errorf("want a node and a command")
			case args[0] == "control-plane":
				return c.command(ctx, args[1:]...)
			}
			return c.onNode(ctx, args[0], args[1:]...)
		}),
		within(&name, "logs [NODE] [PROGRAM]", "List logs, or print one", func(ctx context.Context, c *cluster, args []string) (*exec.Cmd, error) {
			switch len(args) {
			case 2:
				return exec.CommandContext(ctx, "cat", filepath.Join(c.nodeDir(args[0]), "log", args[1]+".log")), nil
			case 1:
				return exec.CommandContext(ctx, "cat", filepath.Join(c.Dir, "log", args[0]+".log")), nil
			}
			return exec.CommandContext(ctx, "find", c.Dir, "-path", "*/root", "-prune", "-o", "-path", "*/var", "-prune", "-o", "-name", "*.log", "-print"), nil
		}),
	)
	return root
}

// within is a command on the cluster that is up, which leaves as the program that it runs. Its flags are that program's.
func within(name *string, use, short string, program func(context.Context, *cluster, []string) (*exec.Cmd, error)) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, DisableFlagParsing: true}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := open(*name)
		if err != nil {
			return err
		}
		run, err := program(cmd.Context(), c, args)
		return show(run, err, os.Stdin, os.Stdout, os.Stderr)
	}
	return cmd
}

func buildCommand() *cobra.Command {
	return &cobra.Command{Use: "build", Short: "Build what clusters are made of, and say where it is", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := build(cmd.Context())
			if err == nil {
				fmt.Printf("%s\n%s\n", p.Bin, p.Images)
			}
			return err
		}}
}

func upCommand(name *string) *cobra.Command {
	o := options{Nodes: 3, ProxyMode: "iptables"}
	var bare bool
	m := muslin{Dist: "dist"}
	cmd := &cobra.Command{Use: "up", Short: "Bring a cluster up, with the images of dist/ (make image); one of that name that is up goes first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := up(cmd.Context(), *name, o)
			if err != nil || bare {
				return err
			}
			return c.install(cmd.Context(), m)
		}}
	cmd.Flags().IntVar(&o.Nodes, "nodes", o.Nodes, "number of nodes")
	cmd.Flags().StringVar(&o.ProxyMode, "proxy", o.ProxyMode, "mode of kube-proxy: iptables or nftables")
	cmd.Flags().BoolVar(&bare, "bare", false, "without Muslin: the nodes do not become ready")
	m.flags(cmd)
	return cmd
}

func installCommand(name *string) *cobra.Command {
	m := muslin{Dist: "dist"}
	cmd := &cobra.Command{Use: "install", Short: "Apply Muslin's manifest with the images of dist/ (make image), or newer ones over older ones", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := open(*name)
			if err != nil {
				return err
			}
			return c.install(cmd.Context(), m)
		}}
	m.flags(cmd)
	return cmd
}

func powerCommand(name *string) *cobra.Command {
	return &cobra.Command{Use: "power NODE off|wipe|on", Short: "Take a node's power away, make its disk a new machine's, or let it boot again", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := open(*name)
			if err != nil {
				return err
			}
			switch args[1] {
			case "off":
				return c.powerOff(cmd.Context(), args[0])
			case "wipe":
				return c.wipe(args[0])
			case "on":
				return c.powerOn(args[0])
			}
			return fmt.Errorf("power is not %q: off, wipe or on", args[1])
		}}
}

func e2eCommand(name *string) *cobra.Command {
	procs, keep := 4, false
	cmd := &cobra.Command{Use: "e2e [conformance] [policy]", Short: "Run parts of Kubernetes' own tests on the cluster that is up", ValidArgs: []string{"conformance", "policy"},
		Args: cobra.OnlyValidArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := open(*name)
			if err != nil {
				return err
			}
			return c.e2e(cmd.Context(), args, procs, keep)
		}}
	cmd.Flags().IntVar(&procs, "procs", procs, "how many specs run at a time")
	cmd.Flags().BoolVar(&keep, "record", false, "write the results into test/k8s/RESULTS.md")
	return cmd
}

func (m *muslin) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&m.Dist, "dist", m.Dist, "folder of Muslin's images")
	cmd.Flags().BoolVar(&m.DualStack, "dual-stack", false, "give pods IPv6 addresses too")
	cmd.Flags().StringVar(&m.VXLAN, "vxlan", "Always", "mode of the default pools: Always, CrossSubnet or Never")
	cmd.Flags().StringToStringVar(&m.Env, "env", nil, "more variables for the agents, as NAME=VALUE,…")
}
