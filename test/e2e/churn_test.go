package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/pkg/api"
)

const callersAtOnce = 20

// trace is what pods leave in etcd and on their nodes while they exist.
type trace struct {
	Handles, Endpoints int
	Allocated          int            // addresses that blocks give to somebody
	Counted            int            // addresses that handles claim to hold
	OnNode             map[string]int // by node: devices, routes, neighbours, lock files and namespaces
}

// podDevice matches the host's side of a pod's interface, and not vxlan.calico.
var podDevice = regexp.MustCompile(`\bcali[0-9a-f]{11}\b`)

func traceOf(t *testing.T, l *lab.Lab) trace {
	t.Helper()
	out := trace{OnNode: map[string]int{}}
	out.Endpoints = len(keys(t, l, "/calico/resources/v3/projectcalico.org/workloadendpoints/"))
	for key, value := range values(t, l, "/calico/ipam/v2/handle/") {
		var h api.Handle
		decode(t, key, value, &h)
		out.Handles++
		for _, n := range h.Block {
			out.Counted += n
		}
	}
	for key, value := range values(t, l, "/calico/ipam/v2/assignment/") {
		var b api.Block
		decode(t, key, value, &b)
		for _, at := range b.Allocation {
			if at != nil {
				out.Allocated++
			}
		}
	}
	nodes, err := l.Nodes()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		for _, cmd := range []string{"ip -o link", "ip -o -4 route", "ip neigh show nud permanent"} {
			out.OnNode[n.Name] += len(podDevice.FindAllString(run(t, l, n.Name, strings.Fields(cmd)...), -1))
		}
		out.OnNode[n.Name] += len(strings.Fields(run(t, l, n.Name, "find", attach.LockDir, "/run/netns", "-type", "f")))
	}
	return out
}

func decode(t *testing.T, key, value string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(value), into); err != nil {
		t.Fatalf("%s holds %s: %v", key, value, err)
	}
}

// each calls do for every name, many at a time, and waits for all.
func each(t *testing.T, names []string, do func(name string) error) {
	t.Helper()
	var g errgroup.Group
	g.SetLimit(callersAtOnce)
	for _, name := range names {
		g.Go(func() error { return do(name) })
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}

func podNames(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("churn-%d", i)
	}
	return names
}

// distinct fails the test for an address that two pods have.
func distinct(t *testing.T, l *lab.Lab) {
	t.Helper()
	pods, err := l.Pods()
	if err != nil {
		t.Fatal(err)
	}
	holder := map[netip.Addr]string{}
	for _, p := range pods {
		if first, taken := holder[p.Addr]; taken {
			t.Errorf("%v belongs to %s and to %s", p.Addr, first, p.Name)
		}
		holder[p.Addr] = p.Name
	}
}

// settles waits until the traces are as they were: neighbours and routes of a removed device go a moment later.
func settles(t *testing.T, l *lab.Lab, want trace) {
	t.Helper()
	nettest.Eventually(t, func() error {
		if d := cmp.Diff(want, traceOf(t, l)); d != "" {
			return fmt.Errorf("what pods leave differs (-before +after):\n%s", d)
		}
		return nil
	})
}

func TestManyPodsAtOnceShareNoAddressAndLeaveNothing(t *testing.T) {
	const pods = 200
	l := up(t, func(o *lab.Options) { o.Mode = lab.VXLAN })
	before := traceOf(t, l)
	names := podNames(pods)
	each(t, names, func(name string) error {
		_, err := l.AddPod(t.Context(), lab.PodSpec{Name: name, Node: nodeOf(name)})
		return err
	})
	distinct(t, l)
	if now := traceOf(t, l); now.Endpoints != before.Endpoints+pods || now.Handles != before.Handles+pods || now.Allocated != before.Allocated+pods {
		t.Errorf("after %d ADDs: %+v, before them: %+v", pods, now, before)
	}
	each(t, names, func(name string) error { return l.RemovePod(t.Context(), name) })
	settles(t, l, before)
}

// nodeOf spreads pods over three nodes.
func nodeOf(name string) string { return fmt.Sprintf("node-%d", int(name[len(name)-1])%3+1) }

// A runtime tries again what fails with code 11, which is what an ADD says while its node has no agent, or when the agent dies
// under it. Every other failure is an error, and so is a pod that does not get through within a minute.
func TestPodsComeAndGoWhileTheAgentIsKilled(t *testing.T) {
	const pods = 200
	l := up(t, func(o *lab.Options) { o.Mode = lab.VXLAN })
	before := traceOf(t, l)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var killer errgroup.Group
	kills := 0
	killer.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(150 * time.Millisecond): // long enough for some ADDs
			}
			if err := errors.Join(l.KillAgent(t.Context(), "node-1"), l.StartAgent(t.Context(), "node-1")); err != nil {
				return err
			}
			kills++
		}
	})
	names := podNames(pods)
	each(t, names, func(name string) error {
		return again(t.Context(), func() error {
			_, err := l.AddPod(t.Context(), lab.PodSpec{Name: name, Node: nodeOf(name)})
			return err
		})
	})
	distinct(t, l)
	if now := traceOf(t, l); now.Endpoints != before.Endpoints+pods || now.Handles != before.Handles+pods || now.Allocated != before.Allocated+pods {
		t.Errorf("after %d ADDs: %+v, before them: %+v", pods, now, before)
	}
	each(t, names, func(name string) error {
		return again(t.Context(), func() error { return l.RemovePod(t.Context(), name) })
	})
	stop()
	if err := killer.Wait(); err != nil {
		t.Fatal(err)
	}
	if kills == 0 {
		t.Error("the agent was never killed")
	}
	t.Logf("the agent was killed %d times", kills)
	settles(t, l, before)
}

// again repeats what failed with "try again", after a pause, as container runtimes do.
func again(ctx context.Context, do func() error) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		err := do()
		var told *types.Error
		if err == nil || !errors.As(err, &told) || told.Code != attach.CodeTryAgain {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}
