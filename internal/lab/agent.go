package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
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

// Reimage makes the node another machine of the same name: its agent is killed, it gets a new machine id, and what programs keep
// on disk is gone. What the kernel holds stays. The agent is not started again.
func (l *Lab) Reimage(ctx context.Context, node string) error {
	if err := l.KillAgent(ctx, node); err != nil {
		return err
	}
	return l.update(ctx, func(s *state) error {
		n, err := s.node(node)
		if err != nil {
			return err
		}
		for _, file := range []string{"/run/muslin/machine-id", "/var/lib/calico/machine-id", "/var/lib/calico/nodename", "/var/lib/calico/mtu"} {
			if err := removeFile(n.path(file)); err != nil {
				return fmt.Errorf("reimage %s: %w", node, err)
			}
		}
		if err := os.WriteFile(n.path(machineIDFile), []byte(randomHex(16)+"\n"), 0o444); err != nil {
			return fmt.Errorf("reimage %s: %w", node, err)
		}
		return nil
	})
}

// SetAgentEnv replaces the NAME=value pairs that every agent gets over the lab's own settings, from its next start.
func (l *Lab) SetAgentEnv(ctx context.Context, env []string) error {
	return l.update(ctx, func(s *state) error {
		s.Options.AgentEnv = env
		return nil
	})
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
	ctx, cancel := context.WithTimeout(ctx, patient(agentTimeout))
	defer cancel()
	if err := removeFile(n.path(attach.Socket)); err != nil { // of one that was killed, which may still accept while its threads end
		return err
	}
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

// backend is who distributes routes, by Calico's name for it.
func (o Options) backend() string {
	if o.BGP {
		return "bird"
	}
	return "vxlan"
}

func agentEnv(s *state, n *Node) []string {
	env := append(markedEnv(s, roleAgent),
		"NODENAME="+n.Name,
		"IP=autodetect",
		"CALICO_NETWORKING_BACKEND="+s.Options.backend(),
		"CALICO_IPV4POOL_CIDR="+s.Options.Pool.String(),
		fmt.Sprintf("CALICO_IPV4POOL_BLOCK_SIZE=%d", s.Options.BlockSize),
		"CALICO_IPV4POOL_VXLAN="+modes()[s.Options.mode(false)].vxlan,
		"CALICO_IPV4POOL_IPIP="+modes()[s.Options.mode(false)].ipip,
		"CALICO_IPV4POOL_NAT_OUTGOING=true",
		fmt.Sprintf("FELIX_IPV6SUPPORT=%t", s.Options.DualStack),
		"CALICO_MANAGE_CNI=false",
	)
	if s.Options.DualStack {
		env = append(env,
			"IP6=autodetect",
			"CALICO_IPV6POOL_CIDR="+s.Options.Pool6.String(),
			fmt.Sprintf("CALICO_IPV6POOL_BLOCK_SIZE=%d", s.Options.BlockSize6),
			"CALICO_IPV6POOL_VXLAN="+modes()[s.Options.mode(true)].vxlan,
			"CALICO_IPV6POOL_NAT_OUTGOING=true",
		)
	}
	if s.Options.WireGuard {
		env = append(env, "FELIX_WIREGUARDENABLED=true", fmt.Sprintf("FELIX_WIREGUARDENABLEDV6=%t", s.Options.DualStack))
	}
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
