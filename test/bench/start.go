package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/lab"
)

const (
	startWait  = 30 * time.Second
	startLook  = 250 * time.Microsecond // between two looks whether the agent is ready
	startNodes = 1000
)

// runStart measures how long an agent takes from the start of its process until plugins can connect: everything is in the kernel then. The backend
// is VXLAN. The floor is a process with etcd's client that reads all that etcd holds, in pages as the agent does, and nothing else.
func runStart(ctx context.Context, b bench) (rows []row, err error) {
	err = withLab(ctx, b.bin, crowded(lab.VXLAN), func(l *lab.Lab, work string) error {
		nodes, err := l.Nodes()
		if err != nil {
			return err
		}
		environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", nodes[0].Agent.PID))
		if err != nil {
			return err
		}
		env := strings.Split(strings.TrimRight(string(environ), "\x00"), "\x00")
		for _, n := range []int{0, startNodes} {
			if n > 0 {
				if err := b.fill(ctx, l, work, filling{nodes: n}); err != nil {
					return err
				}
			}
			if err := l.StopAgent(ctx, "node-1"); err != nil {
				return err
			}
			more, err := b.inside(ctx, l, work, fmt.Sprintf("start %d", n), env...)
			if err != nil {
				return err
			}
			rows = append(rows, more...)
			if err := l.StartAgent(ctx, "node-1"); err != nil {
				return err
			}
		}
		return nil
	})
	return rows, err
}

// startInside measures on the node, whose agent is stopped, with the agent's environment.
func startInside(ctx context.Context, b bench, nodes int) (out []row, err error) {
	for _, k := range []struct {
		what, aim string
		fresh     bool // the kernel holds nothing of an agent before
	}{
		{"nothing in the kernel", map[bool]string{true: "300 ms", false: "150 ms"}[nodes > 0], true},
		{"the kernel as the last agent left it", "", false},
	} {
		name := fmt.Sprintf("start to ready, %d remote nodes, %s", nodes, k.what)
		cs, err := byTurns(b.rounds, []string{name},
			func(int) ([]time.Duration, error) { return b.readAll(ctx) },
			func(int) ([]time.Duration, error) { return b.startAgent(ctx, k.fresh) })
		if err != nil {
			return nil, err
		}
		out = append(out, cs[0].row(k.aim))
	}
	return out, nil
}

func (b bench) readAll(ctx context.Context) ([]time.Duration, error) {
	began := time.Now()
	text, err := exec.CommandContext(ctx, filepath.Join(b.bin, "etcdfloor"), "list", "/calico/").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("etcdfloor: %w: %s", err, text)
	}
	return []time.Duration{time.Since(began)}, nil
}

// startAgent starts an agent and ends it again.
func (b bench) startAgent(ctx context.Context, fresh bool) (took []time.Duration, err error) {
	if fresh {
		if err := forgetAgent(ctx); err != nil {
			return nil, err
		}
	}
	cmd := exec.Command(filepath.Join(b.bin, "muslin-node"))
	var log strings.Builder
	cmd.Stdout, cmd.Stderr = &log, &log
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	err = awaitAgent(ctx)
	took = []time.Duration{time.Since(began)}
	err = errors.Join(err, cmd.Process.Signal(unix.SIGTERM), cmd.Wait())
	if err != nil {
		return nil, fmt.Errorf("start the agent: %w\n%s", err, log.String())
	}
	return took, nil
}

// awaitAgent returns when the agent's socket can be connected to.
func awaitAgent(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startWait)
	defer cancel()
	tick := time.NewTicker(startLook)
	defer tick.Stop()
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", attach.Socket)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}

// forgetAgent takes away what agents have made: the tunnel with all that hangs on it, routes, and the table of policy.
func forgetAgent(ctx context.Context) error {
	have, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, dev := range have {
		if dev.Name != "vxlan.calico" {
			continue
		}
		if err := ip(ctx, "link", "del", dev.Name); err != nil {
			return err
		}
	}
	if err := exec.CommandContext(ctx, "nft", "list", "table", "inet", "muslin").Run(); err == nil {
		if out, err := exec.CommandContext(ctx, "nft", "delete", "table", "inet", "muslin").CombinedOutput(); err != nil {
			return fmt.Errorf("remove the table of policy: %w: %s", err, out)
		}
	}
	return ip(ctx, "route", "flush", "proto", "80")
}
