package hosts

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/muslin-cni/muslin/internal/ctl/cli"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// ClusterCommand is "cluster" with its verbs.
func ClusterCommand(env cli.Env) *cobra.Command {
	c := &cobra.Command{Use: "cluster", Short: "Look after the cluster as a whole"}
	c.AddCommand(clusterDiagsCommand(env))
	return c
}

func clusterDiagsCommand(env cli.Env) *cobra.Command {
	var to string
	c := &cobra.Command{
		Use:   "diags",
		Short: "Collect what support needs to know of the datastore into an archive",
		Long: "Collect what support needs to know of the datastore into an archive: every resource, and what is assigned to whom, as etcd holds them at one\n" +
			"moment. Passwords and tokens are left out. The archive is readable by its owner only; look into it before you send it.\n\n" +
			"What a host's kernel holds, and its logs, are collected on that host: `node diags`.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return env.With(c.Context(), func(client *store.Client) error {
				path, err := clusterDiags(c.Context(), env, client, to)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(env.Out, "Diags saved to %s\n", path)
				return err
			})
		},
	}
	c.Flags().StringVar(&to, "output-dir", os.TempDir(), "where to put the archive")
	return c
}

// clusterPage is how many keys are read at a time.
const clusterPage = 500

// clusterDiags writes one file for each kind of resource and one for each of the other roots, of lines with a key and its value.
func clusterDiags(ctx context.Context, env cli.Env, c *store.Client, dir string) (string, error) {
	type part struct{ name, prefix string }
	parts := []part{{"addresses", api.IPAMRoot}, {"identities", api.IdentitiesRoot}}
	for _, k := range api.Kinds() {
		parts = append(parts, part{k.Plural, k.Prefix()})
	}
	ranges := make([]store.Range, len(parts))
	for i, p := range parts {
		ranges[i] = store.Range{Key: p.prefix, Prefix: true}
	}
	kvs, _, err := c.ReadAll(ctx, clusterPage, ranges...)
	if err != nil {
		return "", err
	}
	secrets := newRedactor()
	return save(dir, "muslin-cluster-diags-", env.Now().UTC(), func(a archive) error {
		for _, p := range parts {
			var text bytes.Buffer
			for ; len(kvs) > 0 && strings.HasPrefix(kvs[0].Key, p.prefix); kvs = kvs[1:] {
				fmt.Fprintf(&text, "%s %s\n", kvs[0].Key, kvs[0].Value)
			}
			if err := a.add("etcd/"+p.name+".txt", secrets.redact(text.Bytes())); err != nil {
				return err
			}
		}
		return nil
	})
}
