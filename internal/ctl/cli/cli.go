// Package cli carries what the operator's verbs have in common: the way to the datastore, the streams, the clock and the rules of failing.
//
// A verb is a cobra command that one package makes from an Env. It prints its result on Out and returns its failure: whoever runs the
// command prints the error on Err and exits with 1. ErrReported is the exception.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// Env is what a verb works with. All fields that it uses are set; verbs do not modify them.
type Env struct {
	Program string // how the command calls itself in messages: muslinctl, calicoctl
	In      io.Reader
	Out     io.Writer // results
	Err     io.Writer // what is said beside results; failures are returned instead
	Now     func() time.Time
	// Connect opens the datastore that flags, configuration file and environment name, and checks the cluster's version. The caller
	// closes the client. It must be called only while the command runs, when the flags are parsed.
	Connect func(ctx context.Context) (*store.Client, error)
	// Etcd is what flags, configuration file and environment say of etcd, for whoever wants to know why it cannot be reached. To be called as Connect.
	Etcd   func() (store.Config, error)
	Getenv func(name string) string // the environment; "" is not set
}

// ErrReported is a failure that the command's output has told already: exit with 1 and print nothing more.
var ErrReported = errors.New("reported above")

// With runs f on the datastore and closes the connection after it.
func (e Env) With(ctx context.Context, f func(*store.Client) error) error {
	c, err := e.Connect(ctx)
	if err != nil {
		return err
	}
	return errors.Join(f(c), c.Close())
}

// ClusterKey is the key of the ClusterInformation.
func ClusterKey() string { return (*api.ClusterInformation)(nil).KindOf().Key("", "default") }

// Locked returns the ClusterInformation of a locked datastore, for transactions to depend on. The error says how to lock it in order to do
// what purpose names.
func (e Env) Locked(ctx context.Context, c *store.Client, purpose string) (store.Entry[api.ClusterInformation], error) {
	cluster, err := store.Get[api.ClusterInformation](ctx, c, ClusterKey())
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return cluster, err
	}
	if !cluster.Exists() || cluster.Value.Spec.DatastoreReady == nil || *cluster.Value.Spec.DatastoreReady {
		return cluster, fmt.Errorf("datastore is not locked. Run the `%s datastore migrate lock` command in order to %s", e.Program, purpose)
	}
	return cluster, nil
}
