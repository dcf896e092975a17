package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/muslin-cni/muslin/internal/lab"
)

// The test binary runs itself inside pods; these variables tell it what to be there.
const (
	roleVar   = "MUSLIN_E2E_ROLE"   // echo, probe or keys
	targetVar = "MUSLIN_E2E_TARGET" // address to answer on or to send to, or a key prefix
)

const streamPort = "7007"

// play is what the test binary does inside a pod.
func play(role string) int {
	var err error
	switch target := os.Getenv(targetVar); role {
	case "echo":
		err = echo(target)
	case "probe":
		err = probe(target)
	case "keys":
		err = listKeys(target)
	default:
		err = fmt.Errorf("no such role %q", role)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// echo sends every datagram back until its standard input ends.
func echo(addr string) error {
	c, err := net.ListenPacket("udp4", addr)
	if err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		_ = c.Close()
	}()
	fmt.Println("ready")
	buf := make([]byte, 2048)
	for {
		n, from, err := c.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := c.WriteTo(buf[:n], from); err != nil {
			return err
		}
	}
}

// probe sends a numbered datagram every two milliseconds until its standard input ends, then says how many were sent and how many
// did not come back within a second.
func probe(addr string) error {
	c, err := net.Dial("udp4", addr)
	if err != nil {
		return err
	}
	done := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(done)
	}()
	back := make(chan int)
	go func() { back <- count(c) }()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	var sent uint64
	for more := true; more; {
		select {
		case <-done:
			more = false
		case <-tick.C:
			if _, err := c.Write(binary.BigEndian.AppendUint64(nil, sent)); err != nil {
				fmt.Fprintln(os.Stderr, "send:", err) // counts as lost
			}
			sent++
		}
	}
	if err := c.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	fmt.Println(sent, int(sent)-<-back)
	return nil
}

// count counts the different datagrams that arrive until the connection's deadline.
func count(c net.Conn) int {
	seen := map[uint64]bool{}
	buf := make([]byte, 2048)
	for {
		n, err := c.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return len(seen)
		}
		if err == nil && n == 8 {
			seen[binary.BigEndian.Uint64(buf)] = true
		}
	}
}

func listKeys(prefix string) error {
	c, err := clientv3.New(clientv3.Config{Endpoints: strings.Split(os.Getenv("ETCD_ENDPOINTS"), ","), Logger: zap.NewNop()})
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	got, err := c.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return err
	}
	for _, kv := range got.Kvs {
		fmt.Println(string(kv.Key))
	}
	return nil
}

// player is the test binary at work inside a pod. Closing its input ends it.
type player struct {
	in   *io.PipeWriter
	out  *output
	done chan error
}

func startPlayer(t *testing.T, l *lab.Lab, pod, role, target string) *player {
	t.Helper()
	r, w := io.Pipe()
	p := &player{in: w, out: &output{first: make(chan struct{})}, done: make(chan error, 1)}
	c := lab.Command{Args: []string{self(t)}, Env: []string{roleVar + "=" + role, targetVar + "=" + target}, Stdin: r, Stdout: p.out, Stderr: p.out}
	ctx := t.Context()
	go func() { p.done <- l.PodExec(ctx, pod, c) }()
	t.Cleanup(func() { _ = w.Close() })
	return p
}

func (p *player) end(t *testing.T) string {
	t.Helper()
	if err := p.in.Close(); err != nil {
		t.Error(err)
	}
	select {
	case err := <-p.done:
		if err != nil {
			t.Errorf("%v: %s", err, p.out.String())
		}
	case <-time.After(20 * time.Second):
		t.Fatal("a player does not end")
	}
	return p.out.String()
}

// output collects what a player says. Its content is read when the player has ended.
type output struct {
	bytes.Buffer
	first chan struct{} // closed at the first write
	said  bool
}

// Write implements io.Writer.
func (o *output) Write(b []byte) (int, error) {
	n, err := o.Buffer.Write(b)
	if !o.said {
		o.said = true
		close(o.first)
	}
	return n, err
}

// stream is a running exchange of numbered datagrams between two pods.
type stream struct{ echo, probe *player }

type outcome struct{ sent, lost int }

func startStream(t *testing.T, l *lab.Lab, from, to string) *stream {
	t.Helper()
	pods, err := l.Pods()
	if err != nil {
		t.Fatal(err)
	}
	var target string
	for _, p := range pods {
		if p.Name == to {
			target = net.JoinHostPort(p.Addr.String(), streamPort)
		}
	}
	s := &stream{echo: startPlayer(t, l, to, "echo", target)}
	select {
	case <-s.echo.out.first:
	case <-time.After(10 * time.Second):
		t.Fatal("the echo does not start")
	}
	s.probe = startPlayer(t, l, from, "probe", target)
	return s
}

func (s *stream) stop(t *testing.T) outcome {
	t.Helper()
	text := s.probe.end(t)
	var o outcome
	if _, err := fmt.Sscan(text, &o.sent, &o.lost); err != nil {
		t.Fatalf("the probe said %q: %v", text, err)
	}
	s.echo.end(t)
	return o
}

// counters match what changes by itself in the output of iptables-save and ipset.
var counters = regexp.MustCompile(`\[\d+:\d+\]|hashsize \d+ |initval 0x[0-9a-f]+|(?m)^(Size in memory|References): \d+$`)

// volatile matches what differs between a device and the one that took its place.
var volatile = regexp.MustCompile(`(?m)^\d+: `)

func normal(state string) string { return volatile.ReplaceAllString(state, "") }
