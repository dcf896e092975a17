package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/pkg/api"
)

func TestSecondHostOfOneNameIsRefused(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 2, lab.Direct })
	if err := l.StopAgent(t.Context(), "node-2"); err != nil {
		t.Fatal(err)
	}
	before, record := kernelState(t, l, "node-2"), values(t, l, api.IdentityKey("node-1"))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var out bytes.Buffer
	err := l.Exec(ctx, "node-2", lab.Command{Args: []string{"muslin-node"}, Env: []string{"NODENAME=node-1", "IP=autodetect"}, Stdout: &out, Stderr: &out})
	if err == nil || ctx.Err() != nil {
		t.Fatalf("a second node-1 ended with %v: %s", err, out.String())
	}
	for _, part := range []string{"belongs to machine", strings.TrimSpace(run(t, l, "node-1", "cat", "/etc/machine-id")), strings.TrimSpace(run(t, l, "node-2", "cat", "/etc/machine-id")), "NODENAME"} {
		if !strings.Contains(out.String(), part) {
			t.Errorf("it does not name %q: %s", part, out.String())
		}
	}
	if d := cmp.Diff(before, kernelState(t, l, "node-2")); d != "" {
		t.Errorf("it changed its host's kernel (-before +after):\n%s", d)
	}
	if d := cmp.Diff(record, values(t, l, api.IdentityKey("node-1"))); d != "" {
		t.Errorf("it changed the record (-before +after):\n%s", d)
	}
	if err := l.StartAgent(t.Context(), "node-2"); err != nil {
		t.Fatal(err)
	}
	addPod(t, l, "later", "node-1")
	if r := check(t, l); !r.OK {
		t.Errorf("these ways fail:\n%s", strings.Join(failing(r), "\n"))
	}
}

func TestReimagedNodeTakesItsNameOnceItsNodeIsDeleted(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 1, lab.VXLAN })
	if err := l.Reimage(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	err := l.StartAgent(t.Context(), "node-1")
	if err == nil || !strings.Contains(err.Error(), "belongs to machine") {
		t.Fatalf("the new machine's agent: %v", err)
	}
	put(t, l, api.ResourcesRoot+"nodes/node-1", gone)
	if err := l.StartAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	if log := agentLog(t, l, "node-1"); !strings.Contains(log, "took over the node's name") {
		t.Error("that the name was taken over is not in the log")
	}
	addPod(t, l, "new", "node-1")
	if r := check(t, l); !r.OK {
		t.Errorf("these ways fail:\n%s", strings.Join(failing(r), "\n"))
	}
}

// adopt gives node-1's name to a machine, as its operator does.
func adopt(t *testing.T, l *lab.Lab, machine string) {
	t.Helper()
	key := api.IdentityKey("node-1")
	var id api.NodeIdentity
	if err := json.Unmarshal([]byte(values(t, l, key)[key]), &id); err != nil {
		t.Fatal(err)
	}
	id.MachineID = machine
	raw, err := json.Marshal(id)
	if err != nil {
		t.Fatal(err)
	}
	put(t, l, key, string(raw))
}

func TestAgentThatLosesItsNameKeepsForwardingAndAddsNothing(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 2, lab.VXLAN })
	if r := check(t, l); !r.OK {
		t.Fatalf("these ways fail:\n%s", strings.Join(failing(r), "\n"))
	}
	before := kernelState(t, l, "node-1")
	adopt(t, l, "stranger")
	nettest.Eventually(t, func() error {
		if !strings.Contains(agentLog(t, l, "node-1"), "belongs to machine stranger") {
			return errors.New("the agent does not say that it lost its name")
		}
		return nil
	})
	put(t, l, api.ResourcesRoot+"workloadendpoints/", gone) // as if the new holder had freed what it does not have
	put(t, l, api.ResourcesRoot+"tiers/the-end", "nonsense")
	nettest.Eventually(t, func() error {
		if !strings.Contains(agentLog(t, l, "node-1"), "tiers/the-end") {
			return errors.New("the agent has not seen the last of it")
		}
		return nil
	})
	if d := cmp.Diff(before, kernelState(t, l, "node-1")); d != "" {
		t.Errorf("the kernel changed (-before +after):\n%s", d)
	}
	if _, err := l.AddPod(t.Context(), lab.PodSpec{Name: "late", Node: "node-1"}); err == nil || !strings.Contains(err.Error(), "belongs to machine stranger") {
		t.Errorf("an ADD: %v", err)
	}
	r := newRuntime(t, l, "node-1", programs(t), "names")
	if err := r.status(); codeOf(err) != attach.CodeNotAvailable || !strings.Contains(err.Error(), "belongs to machine stranger") {
		t.Errorf("STATUS: %v, want code 50 and why", err)
	}
	adopt(t, l, strings.TrimSpace(run(t, l, "node-1", "cat", "/etc/machine-id")))
	nettest.Eventually(t, func() error {
		_, err := l.AddPod(t.Context(), lab.PodSpec{Name: "late", Node: "node-1"})
		return err
	})
	r.succeeds("STATUS", r.status())
}

// lose ends a pod's network namespace, and its interface with it, as a crash or a reboot does.
func lose(t *testing.T, l *lab.Lab, node string, pods ...string) {
	t.Helper()
	links := func() int { return strings.Count(run(t, l, node, "ip", "-o", "link"), ": cali") }
	had := links()
	for _, p := range pods {
		run(t, l, node, "ip", "netns", "del", p)
	}
	nettest.Eventually(t, func() error { // the kernel takes its time
		if n := links(); n != had-len(pods) {
			return fmt.Errorf("%d interfaces of pods, had %d", n, had)
		}
		return nil
	})
}

// wantEndpoints waits until exactly these pods have endpoints and handles.
func wantEndpoints(t *testing.T, l *lab.Lab, pods ...string) {
	t.Helper()
	nettest.Eventually(t, func() error {
		var got []string
		for _, raw := range values(t, l, api.ResourcesRoot+"workloadendpoints/") {
			var w api.WorkloadEndpoint
			if err := json.Unmarshal([]byte(raw), &w); err != nil {
				return err
			}
			got = append(got, w.Spec.Pod)
		}
		handles := keys(t, l, api.HandlesRoot+"k8s-pod-network.")
		for _, p := range pods {
			if !strings.Contains(strings.Join(got, " "), p) {
				return fmt.Errorf("%s has no endpoint, %v have", p, got)
			}
		}
		if len(got) != len(pods) || len(handles) != len(pods) {
			return fmt.Errorf("endpoints of %v and %d handles, want %v", got, len(handles), pods)
		}
		return nil
	})
}

func TestNextAgentFreesPodsThatWentWithoutDel(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 1, lab.Direct })
	wantEndpoints(t, l, "a1", "b1")
	if err := l.KillAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	lose(t, l, "node-1", "a1")
	if err := l.StartAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	wantEndpoints(t, l, "b1")
	if log := agentLog(t, l, "node-1"); strings.Count(log, "freed what a pod left behind") != 1 || !strings.Contains(log, "pod=a1") {
		t.Error("the correction is not in the log, or not once")
	}
	if err := l.RemovePod(t.Context(), "a1"); err != nil {
		t.Errorf("a DEL that comes late: %v", err)
	}
	addPod(t, l, "c1", "node-1")
	if r := check(t, l); !r.OK {
		t.Errorf("these ways fail:\n%s", strings.Join(failing(r), "\n"))
	}
}

func TestRebootFreesEveryPodOfTheNodeAndNoOther(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 2, lab.VXLAN })
	wantEndpoints(t, l, "a1", "b1", "a2", "b2")
	if err := l.KillAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	lose(t, l, "node-1", "a1", "b1")
	if err := l.StartAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	wantEndpoints(t, l, "a2", "b2")
}
