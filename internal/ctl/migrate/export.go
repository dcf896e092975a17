package migrate

import (
	"bufio"
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/muslin-cni/muslin/internal/ctl/cli"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// roots are the prefixes of what is exported. What agents report about themselves is not: it is old when it is imported.
func roots() []string { return []string{api.ResourcesRoot, api.IPAMRoot, muslinRoot} }

// below are the ranges of what is exported.
func below() []store.Range {
	var out []store.Range
	for _, r := range roots() {
		out = append(out, store.Range{Key: r, Prefix: true})
	}
	return out
}

// muslinRoot is the root of what Muslin alone keeps: whose the nodes' names are.
const muslinRoot = "/muslin/"

// page is how many keys are read at a time.
const page = 500

func exportCommand(env cli.Env) *cobra.Command {
	var backup bool
	c := &cobra.Command{
		Use:   "export [--backup] > <FILE>",
		Short: "Print the whole datastore, as it is at one moment",
		Long: "Print the whole datastore, as it is at one moment: resources, addresses, and whose the nodes' names are. What is stored is printed byte for\n" +
			"byte; resources come first, as YAML documents.\n\n" +
			"The datastore must be locked, so that nothing is changed that the copy lacks. --backup does without.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return env.With(c.Context(), func(client *store.Client) error {
				if !backup {
					if _, err := env.Locked(c.Context(), client, "export it, or give --backup for a copy of a cluster that goes on working"); err != nil {
						return err
					}
				}
				return export(c.Context(), env.Out, client)
			})
		},
	}
	c.Flags().BoolVar(&backup, "backup", false, "the datastore need not be locked")
	return c
}

func export(ctx context.Context, w io.Writer, c *store.Client) error {
	kvs, _, err := c.ReadAll(ctx, page, below()...)
	if err != nil {
		return err
	}
	out := bufio.NewWriter(w)
	if err := write(out, kvs); err != nil {
		return fmt.Errorf("write the export: %w", err)
	}
	return out.Flush()
}
