package ctl

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/muslin-cni/muslin/internal/ctl/apiconfig"
	"github.com/muslin-cni/muslin/internal/ctl/cli"
	"github.com/muslin-cni/muslin/internal/startup"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// clientVersion is the version of Calico whose client this is, for the comparison with the cluster's.
const clientVersion = startup.CalicoVersion

// etcd is what options, file and environment say of etcd.
func (s *session) etcd() (store.Config, error) { return apiconfig.Read(s.config, s.Config, s.Env) }

// open prepares the connection that options, file and environment name.
func (s *session) open(timeout time.Duration) (*store.Client, error) {
	cfg, err := s.etcd()
	if err != nil {
		return nil, err
	}
	cfg.Timeout = timeout
	if strings.EqualFold(s.logLevel, "debug") {
		cfg.Trace = s.trace
	}
	return store.New(cfg)
}

// levels are calicoctl's words. Failures are always told; only debug tells more.
func levels() []string { return []string{"panic", "fatal", "error", "warn", "info", "debug"} }

// trace tells a request to etcd.
func (s *session) trace(r store.Request) {
	outcome := "done"
	if r.Err != nil {
		outcome = r.Err.Error()
	}
	fmt.Fprintf(s.Err, "etcd: %s: %s (%v)\n", r.What, outcome, r.Took.Round(time.Microsecond))
}

// connect opens the datastore and refuses a cluster of another version. The caller closes the client.
func (s *session) connect(ctx context.Context) (*store.Client, error) {
	c, err := s.open(store.DefaultTimeout)
	if err != nil {
		return nil, err
	}
	if err := s.checkVersion(ctx, c); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (s *session) checkVersion(ctx context.Context, c *store.Client) error {
	if s.allowMismatch {
		return nil
	}
	cluster, err := store.Get[api.ClusterInformation](ctx, c, cli.ClusterKey())
	if _, unreadable := errors.AsType[*store.UnreadableError](err); unreadable || errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	theirs := cluster.Value.Spec.CalicoVersion
	if theirs == "" || release(theirs) == release(clientVersion) {
		return nil
	}
	return fmt.Errorf("version mismatch.\nClient Version:   %s\nCluster Version:  %s\nUse --allow-version-mismatch to override", clientVersion, theirs)
}

// release is a version without the leading v and what follows a dash.
func release(version string) string {
	version, _, _ = strings.Cut(strings.TrimPrefix(version, "v"), "-")
	return version
}
