package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Sizes of a round.
const (
	serialOps    = 20
	parallelOps  = 64
	parallelWays = 16
)

// inner measures from inside a node's namespaces: floor and plugin are both processes of their own, started by this one.
type inner struct {
	bench
	etcd  *clientv3.Client
	conf  []byte // netconf
	block string // values as large as those of an ADD
	hndl  string
	wep   string
}

func runInner(ctx context.Context, at bench, what string) (rows []row, err error) {
	c, err := dialEtcd()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	b := &inner{bench: at, etcd: c, conf: netconf("")}
	for i := range parallelOps {
		if err := ip(ctx, "netns", "add", name(i)); err != nil {
			return nil, err
		}
	}
	if err := b.values(ctx); err != nil {
		return nil, err
	}
	switch what {
	case "serial":
		return b.attaches(b.attachTrial("one by one", serialOps, 1), "1.3", "1.2")
	case "parallel":
		return b.parallel()
	case "requests":
		return b.requests()
	case "cpu":
		return b.processors()
	case "profile":
		return b.profile(ctx)
	}
	return b.processes(ctx)
}

// netconf is the network's configuration, with more of it as JSON members.
func netconf(more string) []byte {
	return fmt.Appendf(nil, `{"cniVersion":"1.0.0","name":"bench","type":"muslin","etcd_endpoints":%q,"nodename":%q,%s"ipam":{"type":"muslin-ipam"}}`,
		os.Getenv("ETCD_ENDPOINTS"), os.Getenv("NODENAME"), more)
}

// floor is a raw attach and a transaction of three keys; subject is the plugin.
func (b *inner) floor() pair   { return pair{do: b.floorAdd, undo: b.floorDel} }
func (b *inner) subject() pair { return pair{do: b.muslinAdd, undo: b.muslinDel} }

// attaches compares ADD and DEL, with ratios to aim for.
func (b *inner) attaches(t trial, addAim, delAim string) ([]row, error) {
	add, del, err := alternate(t, b.floor(), b.subject())
	if err != nil {
		return nil, err
	}
	return []row{add.row(addAim), del.row(delAim)}, nil
}

// parallel compares how many pods are attached in a second: there the floor is the raw attach alone.
func (b *inner) parallel() ([]row, error) {
	t := b.attachTrial(fmt.Sprintf("%d in parallel", parallelWays), parallelOps, parallelWays)
	out, err := b.attaches(t, "", "")
	if err != nil {
		return nil, err
	}
	raw, _, err := alternate(t, pair{do: b.rawAdd, undo: b.rawDel}, b.subject())
	if err != nil {
		return nil, err
	}
	raw.name += ", by the raw attach without etcd"
	return append(out, raw.rate("≥ 0.8")), nil
}

func name(i int) string      { return fmt.Sprintf("bench-%d", i) }
func netnsPath(i int) string { return "/run/netns/" + name(i) }

// values learns the sizes from what an ADD has written.
func (b *inner) values(ctx context.Context) error {
	if err := b.muslinAdd(0, 0); err != nil {
		return err
	}
	for prefix, into := range map[string]*string{
		"/calico/ipam/v2/assignment/":                               &b.block,
		"/calico/ipam/v2/handle/bench.":                             &b.hndl,
		"/calico/resources/v3/projectcalico.org/workloadendpoints/": &b.wep,
	} {
		got, err := b.etcd.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithLimit(1))
		if err != nil {
			return err
		}
		if len(got.Kvs) == 0 {
			return fmt.Errorf("an ADD wrote nothing below %s", prefix)
		}
		*into = string(got.Kvs[0].Value)
	}
	return b.muslinDel(0, 0)
}

// rawAdd and rawDel are the floor's netlink messages alone.
func (b *inner) rawAdd(_, i int) error {
	addr := net.IPv4(10, 99, byte(i/250), byte(i%250+1)).String()
	return b.exec(nil, nil, "floor", "add", netnsPath(i), fmt.Sprintf("floor%d", i), addr)
}

func (b *inner) rawDel(_, i int) error { return b.exec(nil, nil, "floor", "del", netnsPath(i)) }

func (b *inner) floorAdd(round, i int) error {
	if err := b.rawAdd(round, i); err != nil {
		return err
	}
	k := keys(round, i)
	return commit(b.etcd, k, clientv3.OpPut(k[0], b.block), clientv3.OpPut(k[1], b.hndl), clientv3.OpPut(k[2], b.wep))
}

func (b *inner) floorDel(round, i int) error {
	if err := b.rawDel(round, i); err != nil {
		return err
	}
	k := keys(round, i)
	return commit(b.etcd, k, clientv3.OpPut(k[0], b.block), clientv3.OpDelete(k[1]), clientv3.OpDelete(k[2]))
}

// keys are the floor's three: the block of the worker's own, so that no two wait for each other.
func keys(round, i int) [3]string {
	id := fmt.Sprintf("%d.%d", round, i)
	return [3]string{"/bench/block/" + id, "/bench/handle/" + id, "/bench/endpoint/" + id}
}

// commit carries out one transaction that compares and writes three keys.
func commit(etcd *clientv3.Client, keys [3]string, ops ...clientv3.Op) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	var cmps []clientv3.Cmp
	for _, k := range keys {
		cmps = append(cmps, clientv3.Compare(clientv3.ModRevision(k), ">", -1))
	}
	_, err := etcd.Txn(ctx).If(cmps...).Then(ops...).Commit()
	return err
}

func (b *inner) muslinAdd(round, i int) error { return b.cni("ADD", round, i) }
func (b *inner) muslinDel(round, i int) error { return b.cni("DEL", round, i) }

func (b *inner) cni(verb string, round, i int) error {
	return b.exec(b.cniEnv(verb, round, i), b.conf, "muslin")
}

func (b *inner) cniEnv(verb string, round, i int) []string {
	return []string{
		"CNI_COMMAND=" + verb, fmt.Sprintf("CNI_CONTAINERID=b%02d%03d", round, i), "CNI_NETNS=" + netnsPath(i), "CNI_IFNAME=eth0", "CNI_PATH=" + b.bin,
	}
}

func (b *inner) exec(env []string, stdin []byte, program string, args ...string) error {
	_, err := b.execute(env, stdin, program, args...)
	return err
}

// execute runs a program to its end and returns what it used of the processors.
func (b *inner) execute(env []string, stdin []byte, program string, args ...string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(b.bin, program), args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin = bytes.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("%s %s: %w: %s", program, strings.Join(append(args, env...), " "), err, out)
	}
	return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), nil
}

// processes compares the plugin's VERSION with a Go process that does nothing, and says how large the programs are.
func (b *inner) processes(context.Context) ([]row, error) {
	version := func(int, int) error {
		return b.exec([]string{"CNI_COMMAND=VERSION"}, []byte(`{"cniVersion":"1.0.0"}`), "muslin")
	}
	nothing := func(int, int) error { return b.exec(nil, nil, "floor", "noop") }
	none := func(int, int) error { return nil }
	start, _, err := alternate(trial{do: "start of a process: VERSION", undo: "nothing", rounds: b.rounds, n: serialOps, parallel: 1},
		pair{do: nothing, undo: none}, pair{do: version, undo: none})
	if err != nil {
		return nil, err
	}
	out := []row{start.row("")}
	for _, p := range []string{"muslin", "muslin-ipam", "muslin-node"} {
		st, err := os.Stat(filepath.Join(b.bin, p))
		if err != nil {
			return nil, err
		}
		size := row{What: "size of " + p + ", stripped", Subject: fmt.Sprintf("%.1f MB", float64(st.Size())/1e6)}
		if p == "muslin" {
			size.Aim = "6 MB"
		}
		out = append(out, size)
	}
	return out, nil
}
