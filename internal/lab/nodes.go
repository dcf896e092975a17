package lab

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// AddNode adds a node to a lab that is up, and returns it when its agent is ready. It has the number after the highest, and the subnet of its
// turn. Where it fails the lab has the nodes that it had.
func (l *Lab) AddNode(ctx context.Context) (Node, error) {
	var added Node
	err := l.update(ctx, func(s *state) error {
		highest := 0
		for _, n := range s.Nodes {
			highest = max(highest, n.number())
		}
		if highest >= maxNodes {
			return fmt.Errorf("add node: a lab has at most %d", maxNodes)
		}
		n := s.Options.plannedNode(highest + 1)
		if err := l.bringNode(ctx, s, &n); err != nil {
			return errors.Join(fmt.Errorf("add %s: %w", n.Name, err), endNode(context.WithoutCancel(ctx), &n))
		}
		s.Nodes, added = append(s.Nodes, n), n
		return l.configureRouters(ctx, s)
	})
	return added, err
}

// RemoveNode takes a node out of the lab, as a host whose power is cut: its pods go without a DEL, and what etcd says of them and of it stays
// for the operator.
func (l *Lab) RemoveNode(ctx context.Context, name string) error {
	return l.update(ctx, func(s *state) error {
		n, err := s.node(name)
		if err != nil {
			return err
		}
		if err := endNode(ctx, n); err != nil {
			return fmt.Errorf("remove %s: %w", name, err)
		}
		s.Pods = slices.DeleteFunc(s.Pods, func(p Pod) bool { return p.Node == name })
		s.Nodes = slices.DeleteFunc(s.Nodes, func(n Node) bool { return n.Name == name })
		return l.configureRouters(ctx, s)
	})
}

// number is what the node's name ends with.
func (n *Node) number() int {
	number, _ := strconv.Atoi(strings.TrimPrefix(n.Name, "node-")) // the lab has made the name
	return number
}

// bringNode makes what n says, from its namespaces to its agent, and records the processes there.
func (l *Lab) bringNode(ctx context.Context, s *state, n *Node) error {
	if err := l.holdNode(ctx, s, n); err != nil {
		return err
	}
	plugged := func(_ *place, h *netlink.Handle) error { return plugNode(h, s.Options, *n) }
	if err := inFabric(s, plugged); err != nil {
		return err
	}
	if s.Options.TLS {
		if err := l.certify(n.Name, n.Holder); err != nil {
			return err
		}
	}
	if s.Options.NoAgents {
		return nil
	}
	if err := writeConflist(s, n); err != nil {
		return err
	}
	return l.startAgent(ctx, s, n)
}

// holdNode starts the process that keeps the node's namespaces.
func (l *Lab) holdNode(ctx context.Context, s *state, n *Node) error {
	ctx, cancel := context.WithTimeout(ctx, patient(holderTimeout))
	defer cancel()
	c, err := l.holder(s, n.Name).start(ctx)
	n.Holder = c.process
	return err
}

// endNode ends the node's processes, and with them its namespaces.
func endNode(ctx context.Context, n *Node) error {
	ctx, cancel := context.WithTimeout(ctx, patient(stopTimeout))
	defer cancel()
	return errors.Join(n.Agent.end(ctx, unix.SIGKILL), n.Holder.end(ctx, unix.SIGKILL))
}
