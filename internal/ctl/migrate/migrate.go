// Package migrate locks and unlocks the datastore, and copies the whole of it into a file and back: the verbs below "datastore".
package migrate

import (
	"context"
	"fmt"
	"strings"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/muslin-cni/muslin/internal/ctl/cli"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// Command is "datastore" with its verbs.
func Command(env cli.Env) *cobra.Command {
	c := &cobra.Command{Use: "datastore", Short: "Lock the datastore, and copy it as a whole", Args: cobra.NoArgs}
	m := &cobra.Command{
		Use:   "migrate",
		Short: "Lock the datastore, copy it into a file, or fill an empty one from a file",
		Long: "Move a cluster to another etcd: lock, export, import into the other etcd, point the nodes to it, unlock there.\n" +
			"export --backup copies a cluster that goes on working.",
		Args: cobra.NoArgs,
	}
	m.AddCommand(lockCommand(env, "lock", false), lockCommand(env, "unlock", true), exportCommand(env), importCommand(env))
	c.AddCommand(m)
	return c
}

func lockCommand(env cli.Env, verb string, ready bool) *cobra.Command {
	short := "Let nodes assign addresses and program their kernels again"
	if !ready {
		short = "Stop all nodes from assigning addresses and from changing their kernels; pods keep their network"
	}
	return &cobra.Command{
		Use: verb, Short: short, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			err := env.With(c.Context(), func(client *store.Client) error { return setReady(c.Context(), env, client, ready) })
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(env.Out, "Datastore %sed.\n", verb)
			return err
		},
	}
}

// setReady sets the flag that all components heed. Where there is no ClusterInformation yet, it is made: an etcd is locked before
// anything is put into it.
func setReady(ctx context.Context, env cli.Env, c *store.Client, ready bool) error {
	_, err := store.Mutate(ctx, c, cli.ClusterKey(), func(v *api.ClusterInformation, exists bool) (bool, error) {
		if !exists {
			v.Metadata.Name = "default"
			api.Created(v, uuid.NewString(), env.Now())
			v.Spec.ClusterGUID = strings.ReplaceAll(uuid.NewString(), "-", "")
		}
		if v.Spec.DatastoreReady != nil && *v.Spec.DatastoreReady == ready {
			return false, nil
		}
		v.Spec.DatastoreReady = &ready
		return true, nil
	})
	return err
}
