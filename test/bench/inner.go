package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// Sizes of a run.
const (
	rounds       = 10
	serialOps    = 20
	parallelOps  = 64
	parallelWays = 16
)

// inner measures from inside a node's namespaces: floor and plugin are both processes of their own, started by this one.
type inner struct {
	bin   string // folder of muslin and floor
	etcd  *clientv3.Client
	conf  []byte // netconf
	block string // values as large as those of an ADD
	hndl  string
	wep   string
}

func runInner(ctx context.Context, bin string) error {
	c, err := clientv3.New(clientv3.Config{Endpoints: strings.Split(os.Getenv("ETCD_ENDPOINTS"), ","), DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	b := &inner{bin: bin, etcd: c, conf: fmt.Appendf(nil,
		`{"cniVersion":"1.0.0","name":"bench","type":"muslin","etcd_endpoints":%q,"nodename":%q,"ipam":{"type":"muslin-ipam"}}`,
		os.Getenv("ETCD_ENDPOINTS"), os.Getenv("NODENAME"))}
	for i := range parallelOps {
		if out, err := exec.CommandContext(ctx, "ip", "netns", "add", name(i)).CombinedOutput(); err != nil {
			return fmt.Errorf("make namespace %s: %w: %s", name(i), err, out)
		}
	}
	if err := b.values(ctx); err != nil {
		return err
	}
	floor, subject := pair{do: b.floorAdd, undo: b.floorDel}, pair{do: b.muslinAdd, undo: b.muslinDel}
	add1, del1, err := alternate(attachTrial("one by one", serialOps, 1), floor, subject)
	if err != nil {
		return err
	}
	add16, del16, err := alternate(attachTrial("16 in parallel", parallelOps, parallelWays), floor, subject)
	if err != nil {
		return err
	}
	start, err := b.startUp(ctx)
	if err != nil {
		return err
	}
	if err := printTable(os.Stdout, []comparison{add1, del1, add16, del16, start}); err != nil {
		return err
	}
	return b.size()
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

func (b *inner) floorAdd(round, i int) error {
	addr := net.IPv4(10, 99, byte(i/250), byte(i%250+1)).String()
	if err := b.exec(nil, nil, "floor", "add", netnsPath(i), fmt.Sprintf("floor%d", i), addr); err != nil {
		return err
	}
	k := keys(round, i)
	return commit(b.etcd, k, clientv3.OpPut(k[0], b.block), clientv3.OpPut(k[1], b.hndl), clientv3.OpPut(k[2], b.wep))
}

func (b *inner) floorDel(round, i int) error {
	if err := b.exec(nil, nil, "floor", "del", netnsPath(i)); err != nil {
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
	env := []string{
		"CNI_COMMAND=" + verb, fmt.Sprintf("CNI_CONTAINERID=b%02d%03d", round, i), "CNI_NETNS=" + netnsPath(i), "CNI_IFNAME=eth0", "CNI_PATH=" + b.bin,
	}
	return b.exec(env, b.conf, "muslin")
}

func (b *inner) exec(env []string, stdin []byte, program string, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(b.bin, program), args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin = bytes.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", program, strings.Join(append(args, env...), " "), err, out)
	}
	return nil
}

// startUp compares the plugin's VERSION with a Go process that does nothing.
func (b *inner) startUp(context.Context) (comparison, error) {
	c := comparison{name: "start of a process"}
	for r := range rounds {
		f, err := timed(r, serialOps, 1, func(int, int) error { return b.exec(nil, nil, "floor", "noop") })
		if err != nil {
			return c, err
		}
		s, err := timed(r, serialOps, 1, func(int, int) error {
			return b.exec([]string{"CNI_COMMAND=VERSION"}, []byte(`{"cniVersion":"1.0.0"}`), "muslin")
		})
		if err != nil {
			return c, err
		}
		c.floor, c.subject = append(c.floor, f), append(c.subject, s)
	}
	return c, nil
}

func (b *inner) size() error {
	for _, p := range []string{"muslin", "muslin-ipam", "muslin-node"} {
		st, err := os.Stat(filepath.Join(b.bin, p))
		if err != nil {
			return err
		}
		if _, err := fmt.Printf("%s: %.1f MB\n", p, float64(st.Size())/1e6); err != nil {
			return err
		}
	}
	return nil
}
