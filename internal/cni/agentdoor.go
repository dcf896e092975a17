package cni

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/hostside"
	"github.com/muslin-cni/muslin/internal/members"
)

// agentDoor is the agent's socket. One connection serves one command.
type agentDoor struct {
	turn time.Duration // for each answer
	wait time.Duration // for the host's side, if the configuration says; 0: the agent knows
	conn conn
	msgs *attach.Conn
	used bool // the connection has had its command
}

// conn is a connection, apart from what goes over it.
type conn interface {
	SetDeadline(time.Time) error
	Close() error
}

// dialAgent connects to the agent.
func dialAgent(turn time.Duration) (*agentDoor, error) {
	d := &agentDoor{turn: turn}
	return d, d.dial()
}

func (d *agentDoor) dial() error {
	conn, err := connect(attach.Socket)
	if err != nil {
		return fmt.Errorf("connect to the agent at %s: %w", attach.Socket, err)
	}
	d.conn, d.msgs, d.used = conn, attach.NewConn(conn), false
	return nil
}

// connect connects to a unix socket, at once or not at all: package net has more to find out about connections than there is to do for this one.
func connect(path string) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), path), nil // that it does not block says that it has deadlines
}

// noAgent reports whether a failed dial means that nobody listens.
func noAgent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED)
}

func (d *agentDoor) register(ctx context.Context, req attach.Request) answer {
	turn := d.turn
	if len(req.ReadinessGates) > 0 {
		turn += attach.ReadinessTimeout
	}
	return d.send(ctx, turn, "register pod with the agent", &req)
}

func (d *agentDoor) finish(ctx context.Context, w hostside.Workload) error {
	turn := d.turn
	if d.wait > 0 {
		turn = d.wait + agentGrace
	}
	linked := &attach.Linked{HostIf: w.Dev.Name, Index: w.Dev.Index, Wait: int(d.wait / time.Second)}
	_, err := d.ask(ctx, turn, "wait for the agent to program the pod's routes and policy", linked)
	return err
}

func (d *agentDoor) release(ctx context.Context, req attach.Request) error {
	_, err := d.anew(ctx, "release pod with the agent", req)
	return err
}

func (d *agentDoor) query(ctx context.Context, req attach.Request) (attach.Reply, error) {
	return d.anew(ctx, fmt.Sprintf("ask the agent to %s", req.Verb), req)
}

func (d *agentDoor) confirm(ctx context.Context, w hostside.Workload) error {
	_, err := d.ask(ctx, d.turn, "ask the agent for the pod's routes and policy", &attach.Linked{HostIf: w.Dev.Name, Index: w.Dev.Index})
	return err
}

// anew asks on a connection of its own when this one has been used, and hangs that one up first: whatever the agent still does
// for it, it stops.
func (d *agentDoor) anew(ctx context.Context, stage string, req attach.Request) (attach.Reply, error) {
	if d.used {
		d.close()
		if err := d.dial(); err != nil {
			return attach.Reply{}, failure(attach.CodeTryAgain, err, "start the agent on this node, or call again")
		}
	}
	return d.ask(ctx, d.turn, stage, &req)
}

func (d *agentDoor) close() { _ = d.conn.Close() } // it was read to its end, or given up

// agentGrace is for the agent to say that its time is up.
const agentGrace = 2 * time.Second

// ask sends one message and waits for the answer until the turn or ctx ends.
func (d *agentDoor) ask(ctx context.Context, turn time.Duration, stage string, msg members.Object) (attach.Reply, error) {
	return d.send(ctx, turn, stage, msg)()
}

// send sends one message. The answer is waited for until the turn, which begins now, or ctx ends.
func (d *agentDoor) send(ctx context.Context, turn time.Duration, stage string, msg members.Object) answer {
	d.used = true
	begun := time.Now()
	until := begun.Add(turn)
	if end, ok := ctx.Deadline(); ok && end.Before(until) {
		until = end
	}
	if err := d.conn.SetDeadline(until); err != nil {
		return func() (attach.Reply, error) {
			return attach.Reply{}, failure(attach.CodeIO, fmt.Errorf("%s: %w", stage, err), "")
		}
	}
	sent := d.msgs.Send(msg)
	return func() (attach.Reply, error) {
		reply, err := attach.Reply{}, sent
		if err == nil && time.Now().After(until) { // what the caller did meanwhile has taken long: what came in time still counts
			err = d.conn.SetDeadline(time.Now().Add(agentGrace))
		}
		if err == nil {
			reply, err = d.msgs.Answer()
		}
		return reply, d.explain(err, stage, begun)
	}
}

// explain names the stage of an error, and what to do. begun is when the message was sent.
func (d *agentDoor) explain(err error, stage string, begun time.Time) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, attach.ErrTooLong) {
		return failure(attach.CodeBadConfig, fmt.Errorf("%s: %w", stage, err), "make labels and annotations shorter")
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("no answer within %v", time.Since(begun).Round(time.Second))
	}
	return failure(attach.CodeTryAgain, fmt.Errorf("%s: %w", stage, err), "look at the agent's log on this node")
}
