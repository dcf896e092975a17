package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/attachlock"
	"github.com/muslin-cni/muslin/internal/fault"
	"github.com/muslin-cni/muslin/internal/hostside"
	"github.com/muslin-cni/muslin/internal/lab"
)

// faultyVar names the folder of the programs with their fault points, where they cannot be built: test/vm sets it in its machine.
const faultyVar = "MUSLIN_TEST_FAULTY"

// faultyPrograms builds every program with its fault points.
func faultyPrograms(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv(faultyVar); dir != "" {
		return dir
	}
	dir := t.TempDir()
	cmd := exec.Command("go", "build", "-buildvcs=false", "-tags", "faults", "-o", dir, "../../cmd/...")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the programs: %v\n%s", err, out)
	}
	return dir
}

// TestFaults shares what takes longest: programs that are built for it.
func TestFaults(t *testing.T) {
	bin := faultyPrograms(t)
	t.Run("are in no program that is installed", func(t *testing.T) { faultsAreNotInstalled(t, bin) })
	t.Run("leak nothing after DEL", func(t *testing.T) { killedAtAnyPointNothingLeaks(t, bin) })
	t.Run("are cleaned up after by the next agent", func(t *testing.T) { nextAgentCleansUp(t, bin) })
	t.Run("let no DEL overtake a module", func(t *testing.T) { delWaitsForTheModule(t, bin) })
	t.Run("in a flip lose nothing", func(t *testing.T) { killedAgentsLoseNothing(t, bin) })
	t.Run("in a flip leave what a fresh start makes right", func(t *testing.T) { agentsKilledInFlipsEndWhereAFreshStartEnds(t, bin) })
	t.Run("in an apply leave what a fresh start makes right", func(t *testing.T) { appliesEndWhereAFreshStartEnds(t, bin) })
	t.Run("of every part pass by while pods come and go", func(t *testing.T) { partsBreakWhilePodsComeAndGo(t, bin) })
	t.Run("open and close nothing that policy says", func(t *testing.T) { policyHoldsThroughFaults(t, bin) })
}

func faultsAreNotInstalled(t *testing.T, faulty string) {
	plain := programs(t)
	for _, name := range []string{"muslin", "muslin-ipam", "muslin-node"} {
		with, without := contents(t, faulty, name), contents(t, plain, name)
		if !bytes.Contains(with, []byte(fault.Variable)) {
			t.Errorf("%s built for faults does not know %s: this test finds nothing", name, fault.Variable)
		}
		for _, word := range append([]string{fault.Variable}, pointNames()...) {
			if bytes.Contains(without, []byte(word)) {
				t.Errorf("%s holds %q", name, word)
			}
		}
	}
}

func contents(t *testing.T, dir, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func pointNames() (out []string) {
	for _, p := range fault.Points() {
		out = append(out, fault.Name(p))
	}
	return out
}

// agentOrders is the file, on a node, that tells its agent where to be cut off.
const agentOrders = "/run/fault-orders"

// cut is one command that is killed at one point.
type cut struct {
	point   fault.Point
	command string // add, del or gc
	agents  bool   // it is the agent that is killed
}

// cuts lists every command with every point that it passes, by the agent's door or by the module's.
func cuts(module bool) (out []cut) {
	for _, p := range fault.Points() {
		who, what, _ := strings.Cut(fault.Name(p), ".")
		if who == "agent" && module || who == "module" && !module || who == "apply" {
			continue
		}
		agents := !module && (who == "agent" || who == "handler")
		commands := []string{strings.Split(what, ".")[0]}
		switch {
		case who == "handler":
			commands = []string{"add", "del", "gc"}
		case p == fault.PluginUndoUnlinked || p == fault.AgentReplied:
			commands = []string{"add"}
		}
		for _, c := range commands {
			out = append(out, cut{p, c, agents})
		}
	}
	return out
}

// killedAtAnyPointNothingLeaks is the promise to users: whatever dies when, the DEL that follows leaves nothing, and
// the pod can be added again.
func killedAtAnyPointNothingLeaks(t *testing.T, bin string) {
	l := upWith(t, bin, func(o *lab.Options) {
		o.Nodes, o.Mode, o.AgentEnv = 1, lab.Direct, []string{fault.Variable + "=@" + agentOrders}
	})
	r := newRuntime(t, l, "node-1", bin, "faults")
	warmUp(t, r)
	for _, door := range []string{"agent", "module"} {
		if door == "module" {
			if err := l.StopAgent(t.Context(), "node-1"); err != nil {
				t.Fatal(err)
			}
		}
		before := traceOf(t, l)
		for i, c := range cuts(door == "module") {
			t.Run(fmt.Sprintf("%s door, %s killed at %s", door, c.command, fault.Name(c.point)), func(t *testing.T) {
				r := *r
				r.t = t
				first := r.container(fmt.Sprintf("%s%d", door, i), fmt.Sprintf("%s-%d", door, i))
				r.cutOff(c, first)
				for id, o := range leftOf(t, l, "faults") {
					if !o.whole() {
						t.Errorf("%s is left in parts: %+v", id, o)
					}
				}
				r.revive(c)
				r.succeeds("DEL", r.del(first))
				if d := cmp.Diff(map[string]orphan{}, leftOf(t, l, "faults")); d != "" {
					t.Errorf("left in etcd after DEL (-want +got):\n%s", d)
				}
				r.remove(first)
				again := r.container(first.id+"x", first.pod)
				_, err := r.add(again)
				r.succeeds("ADD of the same pod", err)
				r.succeeds("CHECK", r.check(again))
				r.succeeds("DEL of the same pod", r.del(again))
				r.remove(again)
				settles(t, l, before)
			})
		}
	}
}

// nextAgentCleansUp where nobody calls DEL: the container's namespace is gone, as after a crash of the runtime, and the next agent that starts
// finds what is left.
func nextAgentCleansUp(t *testing.T, bin string) {
	l := upWith(t, bin, func(o *lab.Options) {
		o.Nodes, o.Mode, o.AgentEnv = 1, lab.Direct, []string{fault.Variable + "=@" + agentOrders}
	})
	r := newRuntime(t, l, "node-1", bin, "faults")
	warmUp(t, r)
	before := traceOf(t, l)
	for _, door := range []string{"agent", "module"} {
		for i, c := range cuts(door == "module") {
			t.Run(fmt.Sprintf("%s door, %s killed at %s", door, c.command, fault.Name(c.point)), func(t *testing.T) {
				r := *r
				r.t = t
				if door == "module" {
					r.succeeds("stop the agent", l.StopAgent(t.Context(), "node-1"))
				}
				gone := r.container(fmt.Sprintf("%s%d", door, i), fmt.Sprintf("%s-%d", door, i))
				r.cutOff(c, gone)
				r.remove(gone)
				r.unplugged(gone)
				r.succeeds("end the agent", l.KillAgent(t.Context(), "node-1"))
				r.revive(cut{agents: true})
				settles(t, l, before)
				if d := cmp.Diff(map[string]orphan{}, leftOf(t, l, "faults")); d != "" {
					t.Errorf("left in etcd (-want +got):\n%s", d)
				}
			})
		}
	}
}

// delWaitsForTheModule that outlives its plugin: it would commit after the DEL, and nobody would call another one.
func delWaitsForTheModule(t *testing.T, bin string) {
	l := upWith(t, bin, func(o *lab.Options) { o.Nodes, o.Mode = 1, lab.Direct })
	r := newRuntime(t, l, "node-1", bin, "faults")
	if err := l.StopAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	c := r.container("c1", "nginx")
	gate := filepath.Join(t.TempDir(), "gate")
	reached := gate + ".reached" // the plugin is killed once its module is at work
	if _, err := r.add(c, fmt.Sprintf("%s=%s=pause:%s,%s=kill,%s=pause:%s", fault.Variable, fault.Name(fault.PluginAddLinked), reached, fault.Name(fault.PluginAddLinked), fault.Name(fault.HandlerPlanned), gate)); err == nil {
		t.Fatal("ADD went through")
	}
	if _, err := os.Stat(reached); err != nil {
		t.Fatal(err)
	}
	var held bool
	err := l.Within("node-1", func() (err error) {
		held, err = attachlock.Held(attach.LockDir, hostside.InterfaceName("default", "nginx", "c1"))
		return err
	})
	if err != nil || !held {
		t.Errorf("the lock is free (%v) while the module is at work", err)
	}
	deleted := make(chan error)
	go func() { deleted <- r.del(c) }()
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r.succeeds("DEL", <-deleted)
	if d := cmp.Diff(map[string]orphan{}, leftOf(t, l, "faults")); d != "" {
		t.Errorf("left in etcd after DEL (-want +got):\n%s", d)
	}
}

// warmUp makes what the network's first pod makes and no DEL takes away.
func warmUp(t *testing.T, r *runtime) {
	t.Helper()
	c := r.container("warm", "warm")
	_, err := r.add(c)
	if err := errors.Join(err, r.del(c)); err != nil {
		t.Fatal(err)
	}
	r.remove(c)
}

func (r *runtime) succeeds(what string, err error) {
	r.t.Helper()
	if err != nil {
		r.t.Errorf("%s: %v", what, err)
	}
}

// cutOff runs the command until it is killed.
func (r *runtime) cutOff(c cut, at container) {
	r.t.Helper()
	if c.command != "add" {
		if _, err := r.add(at); err != nil {
			r.t.Fatalf("ADD: %v", err)
		}
	}
	orders := fault.Name(c.point) + "=kill"
	if c.point == fault.PluginUndoUnlinked {
		orders = fault.Name(fault.PluginAddConfigured) + "=error," + orders
	}
	var env []string
	if c.agents {
		r.order(orders)
	} else {
		env = append(env, fault.Variable+"="+orders)
	}
	var err error
	switch c.command {
	case "add":
		_, err = r.add(at, env...)
	case "del":
		err = r.del(at, env...)
	case "gc":
		err = r.gc(nil, env...)
	}
	if err == nil {
		r.t.Errorf("%s went through: it does not pass %s", c.command, fault.Name(c.point))
	}
}

// order writes the agent's orders; "" takes them away.
func (r *runtime) order(text string) {
	r.t.Helper()
	order(r.t, r.lab, r.node, text)
}

// order tells a node's agent where to be cut off; "" is nowhere.
func order(t *testing.T, l *lab.Lab, node, text string) {
	t.Helper()
	err := l.Within(node, func() error {
		if text == "" {
			return os.RemoveAll(agentOrders)
		}
		return os.WriteFile(agentOrders, []byte(text), 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// revive starts the agent again if it was killed.
func (r *runtime) revive(c cut) {
	r.t.Helper()
	if !c.agents {
		return
	}
	r.order("")
	if err := r.lab.StartAgent(r.t.Context(), r.node); err != nil {
		r.t.Fatal(err)
	}
}
