package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/muslin-cni/muslin/internal/embedetcd"
)

// endTimeout is how long etcd may take to end.
const endTimeout = 10 * time.Second

// etcdProcess is an etcd without fsync, as the lab's, in a process of its own, so that what it takes of the processors can be told.
type etcdProcess struct {
	endpoint string
	pid      int
	stop     func() error
}

// startEtcd starts this very program as etcd, on a new folder, with so much of a processor. It ends with this process.
func startEtcd(ctx context.Context, share float64) (*etcdProcess, error) {
	dir, err := os.MkdirTemp("", "muslin-bench-etcd-")
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, "-inner", dir, "-what", fmt.Sprintf("etcd %g", share))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	cmd.Cancel, cmd.WaitDelay = in.Close, endTimeout // whoever is killed leaves its control group behind
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	stop := func() error { return errors.Join(in.Close(), cmd.Wait()) }
	endpoint, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start etcd: %w", err), stop())
	}
	return &etcdProcess{endpoint: strings.TrimSpace(endpoint), pid: cmd.Process.Pid, stop: stop}, nil
}

// client is one of etcd's own.
func (p *etcdProcess) client() (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: []string{p.endpoint}, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
}

// runEtcd is that process: it says where it listens, and ends with its standard input, also where who started it was killed. Its folder goes with it.
func runEtcd(ctx context.Context, dir string, share float64) (err error) {
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	lift, err := limitProcessors(share)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lift()) }()
	server, err := embedetcd.Start(ctx, embedetcd.Config{Dir: dir, UnsafeNoFsync: true})
	if err != nil {
		return err
	}
	defer server.Close()
	if _, err := fmt.Println(server.Endpoint()); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}
