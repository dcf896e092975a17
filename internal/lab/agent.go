package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/attach"
)

// agentTimeout bounds how long an agent may take until its socket answers.
const agentTimeout = 60 * time.Second

// StartAgent starts a node's agent and returns when it is ready. One that runs is left alone.
func (l *Lab) StartAgent(ctx context.Context, node string) error {
	return l.update(ctx, func(s *state) error {
		n, err := s.node(node)
		if err != nil {
			return err
		}
		return l.startAgent(ctx, s, n)
	})
}

// StopAgent asks a node's agent to end, and returns when it has. An agent that does not within ten seconds is killed, which is an
// error. What the agent has put into the kernel stays. No agent is no error.
func (l *Lab) StopAgent(ctx context.Context, node string) error {
	return l.endAgent(ctx, node, unix.SIGTERM)
}

// KillAgent is kill -9 on a node's agent; it returns when that is gone.
func (l *Lab) KillAgent(ctx context.Context, node string) error {
	return l.endAgent(ctx, node, unix.SIGKILL)
}

func (l *Lab) endAgent(ctx context.Context, node string, sig unix.Signal) error {
	var late error
	err := l.update(ctx, func(s *state) error {
		n, err := s.node(node)
		if err != nil {
			return err
		}
		late, err = n.Agent.endWithin(ctx, stopTimeout, sig)
		if err != nil {
			return fmt.Errorf("stop agent of %s: %w", node, err)
		}
		n.Agent = process{}
		return nil
	})
	if late != nil {
		late = fmt.Errorf("stop agent of %s: %w", node, late)
	}
	return errors.Join(late, err)
}

// startAgent records the process in n, whose state the caller saves.
func (l *Lab) startAgent(ctx context.Context, s *state, n *Node) error {
	if s.Options.NoAgents {
		return errors.New("this lab was brought up without agents")
	}
	if n.Agent.alive() {
		return nil
	}
	pl, err := openPlace(n.Holder)
	if err != nil {
		return fmt.Errorf("enter %s: %w", n.Name, err)
	}
	defer pl.close()
	ctx, cancel := context.WithTimeout(ctx, agentTimeout)
	defer cancel()
	log := l.logPath(n.Name)
	c, err := daemon{args: []string{filepath.Join(s.Bin, "muslin-node")}, env: agentEnv(s, n), log: log, in: pl}.start(ctx)
	if err != nil {
		return err
	}
	n.Agent = c.process
	if err := c.waitSocket(ctx, n.path(attach.Socket)); err != nil {
		return errors.Join(fmt.Errorf("start agent of %s: %w%s", n.Name, err, tail(log)), c.signal(unix.SIGKILL))
	}
	return nil
}

func agentEnv(s *state, n *Node) []string {
	env := append(markedEnv(s, roleAgent),
		"NODENAME="+n.Name,
		"IP=autodetect",
		"CALICO_NETWORKING_BACKEND=vxlan",
		"CALICO_IPV4POOL_CIDR="+s.Options.Pool.String(),
		fmt.Sprintf("CALICO_IPV4POOL_BLOCK_SIZE=%d", s.Options.BlockSize),
		"CALICO_IPV4POOL_VXLAN="+s.Options.vxlan(),
		"CALICO_IPV4POOL_IPIP=Never",
		"CALICO_IPV4POOL_NAT_OUTGOING=true",
		"FELIX_IPV6SUPPORT=false",
		"CALICO_MANAGE_CNI=false",
	)
	return slices.Concat(env, s.Options.etcdEnv(), s.Options.AgentEnv)
}

// waitSocket returns when somebody accepts on the socket, or why nobody will.
func (c child) waitSocket(ctx context.Context, path string) error {
	ended := false
	err := poll(ctx, func() bool {
		select {
		case <-c.exited:
			ended = true
			return true
		default:
		}
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
		if err != nil {
			return false
		}
		_ = conn.Close()
		return true
	})
	if ended {
		return errors.New("it ended at once")
	}
	if err != nil {
		return fmt.Errorf("its socket does not answer: %w", err)
	}
	return nil
}
