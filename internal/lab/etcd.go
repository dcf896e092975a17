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
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/embedetcd"
)

const (
	etcdTimeout = 35 * time.Second // embedetcd's own is 30
	dialTimeout = 5 * time.Second
	stopTimeout = 10 * time.Second
)

// StartEtcd starts the lab's etcd, or the relay to the one outside, where it does not run. It returns when that serves.
func (l *Lab) StartEtcd(ctx context.Context) error {
	return l.update(ctx, func(s *state) error { return l.startEtcd(ctx, s) })
}

// StopEtcd takes etcd away, as kill -9 does; its data stay. An etcd outside goes on: only the lab's way to it ends.
func (l *Lab) StopEtcd(ctx context.Context) error {
	return l.update(ctx, func(s *state) error {
		ctx, cancel := context.WithTimeout(ctx, stopTimeout)
		defer cancel()
		if err := s.Etcd.end(ctx, unix.SIGKILL); err != nil {
			return fmt.Errorf("stop etcd: %w", err)
		}
		s.Etcd = process{}
		return nil
	})
}

// startEtcd records the process in s, which the caller saves.
func (l *Lab) startEtcd(ctx context.Context, s *state) error {
	if s.Etcd.alive() {
		return nil
	}
	fabric, err := openPlace(s.Fabric)
	if err != nil {
		return fmt.Errorf("enter fabric: %w", err)
	}
	defer fabric.close()
	d := daemon{
		args:  []string{self(s.Bin), "run-etcd", "--dir", filepath.Join(l.dir, "etcd")},
		env:   markedEnv(s, roleEtcd),
		log:   l.logPath("etcd"),
		in:    &place{net: fabric.net}, // the state folder is the machine's
		ready: true,
	}
	if s.Options.TLS {
		d.args = append(d.args, "--tls", l.serverDir())
	}
	if s.Options.Etcd != "" {
		d.args = []string{self(s.Bin), "run-relay", "--fabric", fmt.Sprint(s.Fabric.PID), "--etcd", s.Options.Etcd}
		d.in = nil
	}
	ctx, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	c, err := d.start(ctx)
	if err != nil {
		return err
	}
	s.Etcd = c.process
	return nil
}

// runEtcd serves etcd on the fabric, whose network namespace this process is in, until ctx ends; with TLS if there is a folder of
// certificates.
func runEtcd(ctx context.Context, dir, certificates string, log *slog.Logger) error {
	tls, scheme := serverTLS(certificates)
	// A lab's data need not outlive the machine, and fsync is most of what an ADD would wait for.
	server, err := embedetcd.Start(ctx, embedetcd.Config{
		Dir: dir, ClientURL: scheme + net.JoinHostPort(etcdAddr, etcdPort), TLS: tls, UnsafeNoFsync: true, Log: log,
	})
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
