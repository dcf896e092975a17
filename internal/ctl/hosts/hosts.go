// Package hosts answers for the host that the command runs on: whether an agent runs, how the paths to other nodes fare, what support needs to
// know, whether the kernel has what is needed, whose a node's name is, and (from package why) what drops packets. These are the verbs
// below "node".
package hosts

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/muslin-cni/muslin/internal/ctl/cli"
	"github.com/muslin-cni/muslin/internal/ctl/why"
	"github.com/muslin-cni/muslin/internal/machineid"
	"github.com/muslin-cni/muslin/internal/startup"
	"github.com/muslin-cni/muslin/pkg/store"
)

// Command is "node" with its verbs.
func Command(env cli.Env) *cobra.Command {
	c := &cobra.Command{Use: "node", Short: "Look after the node that this host is", Args: cobra.NoArgs}
	c.AddCommand(statusCommand(env), pathsCommand(env), diagsCommand(env), checkSystemCommand(env), adoptCommand(env), why.DropsCommand(env))
	return c
}

func adoptCommand(env cli.Env) *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "adopt <NODENAME>",
		Short: "Give a node's name to this machine, whose it was before is gone",
		Long: "Give a node's name to this machine. Say so only if the machine that had it is gone, or has another name now: from then on that one assigns no\n" +
			"more addresses and leaves its kernel as it is. Then restart the agent here.",
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			find := machineid.Host(file).Ask
			if file != "" {
				find = machineid.Host(file).Find
			}
			machine, err := find()
			if err != nil {
				return err
			}
			return env.With(c.Context(), func(client *store.Client) error { return adopt(c.Context(), env, client, args[0], machine) })
		},
	}
	c.Flags().StringVar(&file, "machine-id-file", "", "the file that holds this machine's id; if left out, what the agent or the system says")
	return c
}

func adopt(ctx context.Context, env cli.Env, c *store.Client, node, machine string) error {
	if err := startup.Adopt(ctx, c, node, machine); err != nil {
		return err
	}
	_, err := fmt.Fprintf(env.Out, "The node name %s belongs to this machine (%s) now.\n", node, machine)
	return err
}
