package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/pkg/api"
)

// books is what a cluster is held to after each fault: what pods leave, as a sum of what each leaves.
type books struct {
	empty trace // without any but the lab's own
	each  trace // what a pod adds, OnNode under ""
}

// openBooks measures what one pod leaves.
func openBooks(t *testing.T, l *lab.Lab) books {
	t.Helper()
	b := books{empty: traceOf(t, l)}
	addPod(t, l, "measure", "node-1")
	now := traceOf(t, l)
	b.each = trace{
		Handles: now.Handles - b.empty.Handles, Endpoints: now.Endpoints - b.empty.Endpoints,
		Allocated: now.Allocated - b.empty.Allocated, Counted: now.Counted - b.empty.Counted,
		OnNode: map[string]int{"": now.OnNode["node-1"] - b.empty.OnNode["node-1"]},
	}
	if b.each.Endpoints != 1 || b.each.Handles != 1 || b.each.Allocated == 0 || b.each.OnNode[""] < 3 {
		t.Fatalf("one pod leaves %+v: these books see nothing", b.each)
	}
	if err := l.RemovePod(t.Context(), "measure"); err != nil {
		t.Fatal(err)
	}
	settles(t, l, b.empty)
	return b
}

// balance fails the test unless no address is double, none leaked, and every route leads to what is there. more is how many pods each node has beside
// the lab's own.
func (b books) balance(t *testing.T, l *lab.Lab, more map[string]int) {
	t.Helper()
	distinct(t, l)
	want := b.empty
	want.OnNode = maps.Clone(b.empty.OnNode)
	for node, n := range more {
		want.Handles += n * b.each.Handles
		want.Endpoints += n * b.each.Endpoints
		want.Allocated += n * b.each.Allocated
		want.Counted += n * b.each.Counted
		want.OnNode[node] += n * b.each.OnNode[""]
	}
	patiently(t, func() error {
		if d := cmp.Diff(want, traceOf(t, l)); d != "" {
			return fmt.Errorf("what pods leave differs (-want +got):\n%s", d)
		}
		return routesAgree(t, l)
	})
	if out, err := try(t, l, "node-1", "muslinctl", "ipam", "check", "--show-problem-ips"); err != nil {
		t.Errorf("muslinctl ipam check: %v\n%s", err, out)
	}
}

// routesAgree holds every node's IPv4 routes to pods and blocks against the pods and the blocks that there are.
func routesAgree(t *testing.T, l *lab.Lab) error {
	t.Helper()
	pods, err := l.Pods()
	if err != nil {
		return err
	}
	blocks := map[netip.Prefix]string{}
	for key, value := range values(t, l, api.BlocksRoot) {
		var b api.Block
		decode(t, key, value, &b)
		if host, ok := b.Host(); ok && b.CIDR.Addr().Is4() {
			blocks[b.CIDR] = host
		}
	}
	var errs []error
	for _, n := range nodesOf(t, l) {
		want := map[string]string{}
		for cidr, host := range blocks {
			want[cidr.String()] = "remote"
			if host == n.Name {
				want[cidr.String()] = "blackhole"
			}
		}
		for _, p := range pods {
			if p.Node == n.Name {
				want[p.Addr.String()] = "pod"
			} else if host := ownerOf(blocks, p.Addr); host != p.Node { // it borrowed its address
				want[p.Addr.String()] = "remote"
			}
		}
		if d := cmp.Diff(want, routesOf(t, l, n.Name)); d != "" {
			errs = append(errs, fmt.Errorf("%s has other routes (-want +got):\n%s", n.Name, d))
		}
	}
	return errors.Join(errs...)
}

func ownerOf(blocks map[netip.Prefix]string, addr netip.Addr) (host string) {
	for cidr, host := range blocks {
		if cidr.Contains(addr) {
			return host
		}
	}
	return ""
}

// routesOf are a node's routes of ours, by where they lead. A route to ourselves as another node's address of a tunnel is none of them.
func routesOf(t *testing.T, l *lab.Lab, node string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for line := range strings.Lines(run(t, l, node, "ip", "-4", "route", "show", "proto", "80")) {
		words := strings.Fields(line)
		switch {
		case words[0] == "blackhole":
			out[words[1]] = "blackhole"
		case slices.Contains(words, "via"):
			out[words[0]] = "remote"
		default:
			out[words[0]] = "pod"
		}
	}
	return out
}

// getsThrough returns nil if a host gets an answer from a pod: a refused connection is one.
func getsThrough(l *lab.Lab, from string, to netip.Addr) error {
	return l.Within(from, func() error {
		conn, err := net.DialTimeout("tcp", net.JoinHostPort(to.String(), "7777"), time.Second)
		if err == nil {
			return conn.Close()
		}
		if errors.Is(err, unix.ECONNREFUSED) {
			return nil
		}
		return err
	})
}

// serves waits until every node takes a pod and every other one reaches it.
func serves(t *testing.T, l *lab.Lab) {
	t.Helper()
	nodes := nodesOf(t, l)
	var group errgroup.Group
	for _, n := range nodes {
		group.Go(func() error { return takes(t.Context(), l, n.Name, nodes) })
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
}

// takes adds a pod to a node, reaches it from every one, and removes it, each as soon as that succeeds.
func takes(ctx context.Context, l *lab.Lab, node string, from []lab.Node) error {
	var pod lab.Pod
	name := "serves-" + node
	err := insist(func() (err error) {
		pod, err = l.AddPod(ctx, lab.PodSpec{Name: name, Node: node})
		if err != nil {
			err = errors.Join(err, forget(l, name))
		}
		return err
	})
	for _, n := range from {
		if err == nil {
			err = insist(func() error { return getsThrough(l, n.Name, pod.Addr) })
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", node, err)
	}
	return insist(func() error { return l.RemovePod(ctx, name) })
}
