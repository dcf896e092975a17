package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/embedetcd"
)

const (
	etcdTimeout = 35 * time.Second // embedetcd's own is 30
	dialTimeout = 5 * time.Second
	stopTimeout = 10 * time.Second
)

// StartEtcd starts the lab's etcd, or the relay to the one outside, where it does not run, and sets what SignalEtcd has stopped going again. It returns
// when all members serve.
func (l *Lab) StartEtcd(ctx context.Context) error {
	return l.update(ctx, func(s *state) error { return l.startEtcd(ctx, s) })
}

// StopEtcd takes etcd away with all its members, as kill -9 does; its data stay. An etcd outside goes on: only the lab's way to it ends.
func (l *Lab) StopEtcd(ctx context.Context) error {
	return l.update(ctx, func(s *state) error {
		ctx, cancel := context.WithTimeout(ctx, stopTimeout)
		defer cancel()
		for i, p := range s.Etcd {
			if err := p.end(ctx, unix.SIGKILL); err != nil {
				return fmt.Errorf("stop etcd: %w", err)
			}
			s.Etcd[i] = process{}
		}
		return nil
	})
}

// SignalEtcd sends a signal to one of etcd's members, which count from 0; to one that was killed, SIGKILL is no error. The other members go on. After SIGKILL
// it returns when the member is gone.
func (l *Lab) SignalEtcd(ctx context.Context, member int, sig unix.Signal) error {
	return l.update(ctx, func(s *state) error {
		if member < 0 || member >= len(s.Etcd) {
			return fmt.Errorf("etcd's member %d: it has %d", member, len(s.Etcd))
		}
		ctx, cancel := context.WithTimeout(ctx, stopTimeout)
		defer cancel()
		act := s.Etcd[member].signal
		if sig == unix.SIGKILL {
			act = func(sig unix.Signal) error { return s.Etcd[member].end(ctx, sig) }
		}
		if err := act(sig); err != nil {
			return fmt.Errorf("signal etcd's member %d: %w", member, err)
		}
		return nil
	})
}

// startEtcd records the processes in s, which the caller saves. Members start at the same time: none is ready before it knows of a leader.
func (l *Lab) startEtcd(ctx context.Context, s *state) error {
	fabric, err := openPlace(s.Fabric)
	if err != nil {
		return fmt.Errorf("enter fabric: %w", err)
	}
	defer fabric.close()
	ctx, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	daemons := l.etcdDaemons(s, &place{net: fabric.net}) // the state folder is the machine's
	s.Etcd = slices.Grow(s.Etcd, len(daemons))[:len(daemons)]
	var group errgroup.Group
	for i, d := range daemons {
		if s.Etcd[i].alive() {
			group.Go(func() error { return s.Etcd[i].signal(unix.SIGCONT) })
			continue
		}
		group.Go(func() error {
			c, err := d.start(ctx)
			s.Etcd[i] = c.process
			return err
		})
	}
	return group.Wait()
}

// etcdDaemons are etcd's members, or the relay to the one outside.
func (l *Lab) etcdDaemons(s *state, fabric *place) []daemon {
	d := daemon{env: markedEnv(s, roleEtcd), log: l.logPath("etcd"), ready: true}
	if s.Options.Etcd != "" {
		d.args = []string{self(s.Bin), "run-relay", "--fabric", fmt.Sprint(s.Fabric.PID), "--etcd", s.Options.Etcd}
		return []daemon{d}
	}
	var out []daemon
	for i := range s.Options.etcdAddrs() {
		dir := filepath.Join(l.dir, "etcd")
		if i > 0 {
			dir += fmt.Sprintf("-%d", i+1)
		}
		d := d
		d.in = fabric
		d.args = []string{self(s.Bin), "run-etcd", "--dir", dir, "--member", fmt.Sprint(i), "--members", fmt.Sprint(s.Options.Members), "--quota", fmt.Sprint(s.Options.EtcdQuota)}
		if s.Options.TLS {
			d.args = append(d.args, "--tls", l.serverDir())
		}
		out = append(out, d)
	}
	return out
}

// etcdMember is one of the lab's etcd, as the hidden command is told.
type etcdMember struct {
	dir, certificates string // no certificates: it serves without TLS
	self, members     int
	quota             int64
}

// run serves on the fabric, whose network namespace this process is in, until ctx ends.
func (m *etcdMember) run(ctx context.Context, log *slog.Logger) error {
	tls, scheme := serverTLS(m.certificates)
	addrs := Options{Members: m.members}.etcdAddrs()
	if m.self < 0 || m.self >= len(addrs) {
		return fmt.Errorf("member %d: there are %d", m.self, len(addrs))
	}
	// A lab's data need not outlive the machine, and fsync is most of what an ADD would wait for.
	cfg := embedetcd.Config{
		Dir: m.dir, ClientURL: scheme + net.JoinHostPort(addrs[m.self], etcdPort), TLS: tls, Self: m.self, Quota: m.quota, UnsafeNoFsync: true, Log: log,
	}
	if len(addrs) > 1 {
		for i, addr := range addrs {
			cfg.Members = append(cfg.Members, embedetcd.Member{Name: fmt.Sprintf("member-%d", i+1), PeerURL: "http://" + net.JoinHostPort(addr, peerPort)})
		}
	}
	server, err := embedetcd.Start(ctx, cfg)
	if err != nil {
		return err
	}
	defer server.Close()
	if err := sayReady(); err != nil {
		return fmt.Errorf("report readiness: %w", err)
	}
	select {
	case <-ctx.Done():
		return nil
	case <-server.Done():
		return errors.New("etcd stopped")
	}
}

// runRelay listens on the fabric, which the process with the number fabricPID holds, and passes every connection on to the etcd
// at target, which is reached from here. It returns when ctx ends and all connections are closed.
func runRelay(ctx context.Context, fabricPID int, target string) error {
	u, err := url.Parse(target)
	if err != nil {
		return fmt.Errorf("parse etcd URL: %w", err)
	}
	if err := reachable(ctx, u.Host); err != nil {
		return err
	}
	holder, err := findProcess(fabricPID)
	if err != nil {
		return err
	}
	fabric, err := openPlace(holder)
	if err != nil {
		return fmt.Errorf("enter fabric: %w", err)
	}
	defer fabric.close()
	var ln net.Listener
	err = (&place{net: fabric.net}).run(func() (err error) {
		ln, err = (&net.ListenConfig{}).Listen(ctx, "tcp4", net.JoinHostPort(etcdAddr, etcdPort))
		return err
	})
	if err != nil {
		return fmt.Errorf("listen on fabric: %w", err)
	}
	if err := sayReady(); err != nil {
		return fmt.Errorf("report readiness: %w", err)
	}
	return relay(ctx, ln, u.Host)
}

func reachable(ctx context.Context, host string) error {
	conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "tcp", host)
	if err != nil {
		return fmt.Errorf("reach etcd at %s from this machine: %w", host, err)
	}
	return conn.Close()
}

// relay serves ln until ctx ends.
func relay(ctx context.Context, ln net.Listener, target string) error {
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	var serving sync.WaitGroup
	defer serving.Wait()
	for {
		conn, err := ln.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		serving.Go(func() { pass(ctx, conn, target) })
	}
}

// pass copies both ways until either side ends or ctx does.
func pass(ctx context.Context, conn net.Conn, target string) {
	defer conn.Close()
	etcd, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "tcp", target)
	if err != nil {
		return // the client sees a closed connection, as with an etcd that is away
	}
	defer etcd.Close()
	shut := func() { _, _ = conn.Close(), etcd.Close() }
	stop := context.AfterFunc(ctx, shut)
	defer stop()
	var back sync.WaitGroup
	back.Go(func() {
		_, _ = io.Copy(conn, etcd) // either way it is over
		shut()
	})
	_, _ = io.Copy(etcd, conn)
	shut()
	back.Wait()
}
