package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/muslin-cni/muslin/internal/embedetcd"
	"github.com/muslin-cni/muslin/pkg/api"
)

// Sizes of the runs for the operator's command.
const (
	manyResources = 2000
	starts        = 20
)

// operatorBench measures the operator's command against etcd's own client. All are processes of their own, whose whole life counts: start,
// connection, work, end. etcd is in this process.
//
// The command applies manyResources NetworkPolicies from one YAML file, first where there are none and then, with other rules, over those.
// The floor is one writer too: it puts the same keys with the very bytes that the command stored, one after the other, and neither reads
// nor compares anything. The second comparison is the command's list of a pool with a get of that pool's key.
type operatorBench struct {
	bench
	dir    string // holds the programs and the files
	server *embedetcd.Server
	etcd   *clientv3.Client
}

// runOperator measures on an etcd of its own without fsync, as the lab's.
func runOperator(ctx context.Context, at bench) (out []row, err error) {
	dir, err := os.MkdirTemp("", "muslin-bench-operator-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := buildFloor(ctx, dir, "etcdfloor"); err != nil {
		return nil, err
	}
	b := &operatorBench{bench: at, dir: dir}
	if b.server, err = embedetcd.Start(ctx, embedetcd.Config{Dir: filepath.Join(dir, "etcd"), UnsafeNoFsync: true}); err != nil {
		return nil, err
	}
	defer b.server.Close()
	b.etcd, err = clientv3.New(clientv3.Config{Endpoints: []string{b.server.Endpoint()}, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.etcd.Close()) }()
	applies, err := b.apply(ctx)
	if err != nil {
		return nil, err
	}
	get, err := b.get(ctx)
	if err != nil {
		return nil, err
	}
	for _, c := range applies {
		out = append(out, c.row("3"))
	}
	return append(out, get.row("2")), nil
}

// apply measures the creation and the change of many resources. Times are of the whole file.
func (b *operatorBench) apply(ctx context.Context) ([]comparison, error) {
	files := []string{"create.yaml", "update.yaml"}
	values := []string{"create.txt", "update.txt"}
	for i, file := range files { // apply once, to learn the values
		if err := os.WriteFile(b.path(file), policies(80+i), 0o600); err != nil {
			return nil, err
		}
		if err := b.muslinctl(ctx, "apply", "-f", b.path(file)); err != nil {
			return nil, err
		}
		if err := b.keep(ctx, values[i]); err != nil {
			return nil, err
		}
	}
	if err := b.forget(ctx); err != nil {
		return nil, err
	}
	clean := func() error { return b.forget(ctx) }
	subject := func(file string) side {
		return func(int, int) error { return b.muslinctl(ctx, "apply", "-f", b.path(file)) }
	}
	floor := func(file string) side {
		return func(int, int) error { return b.run(ctx, b.path("etcdfloor"), "put", b.path(file)) }
	}
	create, update, err := alternate(
		trial{do: "apply of 2,000 new resources", undo: "apply of 2,000 changed resources", rounds: b.rounds, n: 1, parallel: 1},
		pair{do: floor(values[0]), undo: floor(values[1]), clean: clean},
		pair{do: subject(files[0]), undo: subject(files[1]), clean: clean},
	)
	return []comparison{create, update}, err
}

// get measures how long it takes to see one pool.
func (b *operatorBench) get(ctx context.Context) (comparison, error) {
	file := b.path("pool.yaml")
	err := os.WriteFile(file, []byte("kind: IPPool\napiVersion: projectcalico.org/v3\nmetadata: {name: bench}\nspec: {cidr: 10.244.0.0/16}\n"), 0o600)
	if err != nil {
		return comparison{}, err
	}
	if err := b.muslinctl(ctx, "apply", "-f", file); err != nil {
		return comparison{}, err
	}
	key := (*api.IPPool)(nil).KindOf().Key("", "bench")
	none := func(int, int) error { return nil }
	one, _, err := alternate(trial{do: "get ippool", undo: "nothing", rounds: b.rounds, n: starts, parallel: 1},
		pair{do: func(int, int) error { return b.run(ctx, b.path("etcdfloor"), "get", key) }, undo: none},
		pair{do: func(int, int) error { return b.muslinctl(ctx, "get", "ippool") }, undo: none},
	)
	return one, err
}

func (b *operatorBench) path(file string) string { return filepath.Join(b.dir, file) }

func policyPrefix() string { return (*api.NetworkPolicy)(nil).KindOf().Prefix() }

// policies are many NetworkPolicies of some twenty lines each, in forty namespaces.
func policies(port int) []byte {
	var out bytes.Buffer
	for i := range manyResources {
		fmt.Fprintf(&out, `---
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata:
  name: allow-web-%04d
  namespace: team-%02d
  labels: {owner: team-%02d}
spec:
  order: %d
  selector: app == 'web' && tier in {'front', 'middle'}
  types: [Ingress, Egress]
  ingress:
  - action: Allow
    protocol: TCP
    source:
      selector: app == 'proxy'
      nets: [10.%d.%d.0/24]
    destination:
      ports: [%d, "8080:8090"]
  egress:
  - action: Allow
`, i, i%40, i%40, 100+i%500, i/256, i%256, port)
	}
	return out.Bytes()
}

// keep writes what the command has stored into a file, for the floor to write the same.
func (b *operatorBench) keep(ctx context.Context, file string) error {
	got, err := b.etcd.Get(ctx, policyPrefix(), clientv3.WithPrefix())
	if err != nil {
		return err
	}
	if len(got.Kvs) != manyResources {
		return fmt.Errorf("%d resources are stored and not %d", len(got.Kvs), manyResources)
	}
	var out bytes.Buffer
	for _, kv := range got.Kvs {
		fmt.Fprintf(&out, "%s\t%s\n", kv.Key, kv.Value)
	}
	return os.WriteFile(b.path(file), out.Bytes(), 0o600)
}

// forget deletes the resources, all at once.
func (b *operatorBench) forget(ctx context.Context) error {
	_, err := b.etcd.Delete(ctx, policyPrefix(), clientv3.WithPrefix())
	return err
}

func (b *operatorBench) muslinctl(ctx context.Context, args ...string) error {
	return b.run(ctx, filepath.Join(b.bin, "muslinctl"), args...)
}

func (b *operatorBench) run(ctx context.Context, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), "DATASTORE_TYPE=etcdv3", "ETCD_ENDPOINTS="+b.server.Endpoint())
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(program), err, out)
	}
	return nil
}
