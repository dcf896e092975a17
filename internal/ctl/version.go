package ctl

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/muslin-cni/muslin/internal/ctl/cli"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

func (s *session) versionCommand() *cobra.Command {
	var client bool
	var poll time.Duration
	cmd := &cobra.Command{
		Use:   "version [--client] [--poll=DURATION]",
		Short: "Print the versions of this program and of the cluster",
		Long: `Print the versions of this program and of the cluster.

The client version is that of the Calico whose resources this program reads and writes, and must be the cluster's.`,
		Example: s.examples("version", "version --client"),
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			fmt.Fprintf(s.Out, "Client Version:    %s\nMuslin Version:    %s\n", clientVersion, s.Version)
			if client {
				return nil
			}
			for {
				err := s.clusterVersion(cmd.Context())
				if poll <= 0 {
					return err
				}
				if err != nil {
					fmt.Fprintln(s.Err, err)
				}
				wait := time.NewTimer(poll)
				select {
				case <-cmd.Context().Done():
					wait.Stop()
					return nil
				case <-wait.C:
				}
			}
		},
	}
	f := cmd.Flags()
	f.BoolVar(&client, "client", false, "only this program's; needs no etcd")
	f.DurationVar(&poll, "poll", 0, "print the cluster's again and again, at this interval (for example 5s)")
	return cmd
}

func (s *session) clusterVersion(ctx context.Context) error {
	err := s.printClusterVersion(ctx)
	if err != nil {
		return fmt.Errorf("unable to retrieve Cluster Version or Type: %w", err)
	}
	return nil
}

func (s *session) printClusterVersion(ctx context.Context) error {
	c, err := s.open(store.DefaultTimeout)
	if err != nil {
		return err
	}
	cluster, err := store.Get[api.ClusterInformation](ctx, c, cli.ClusterKey())
	if err = errors.Join(err, c.Close()); err != nil {
		return err
	}
	known := func(text string) string {
		if text == "" {
			return "unknown"
		}
		return text
	}
	fmt.Fprintf(s.Out, "Cluster Version:   %s\nCluster Type:      %s\n", known(cluster.Value.Spec.CalicoVersion), known(cluster.Value.Spec.ClusterType))
	return nil
}
