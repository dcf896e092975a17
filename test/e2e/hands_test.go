package e2e

import (
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

const poolKey = api.ResourcesRoot + "ippools/default-ipv4-ippool"

// allWell fails the test unless every pod reaches every other.
func allWell(t *testing.T, l *lab.Lab) {
	t.Helper()
	nettest.Eventually(t, func() error {
		if r := check(t, l); !r.OK {
			return fmt.Errorf("these ways fail:\n%s", strings.Join(failing(r), "\n"))
		}
		return nil
	})
}

// An agent whose Node an operator deletes keeps its pods connected, adds none, and is a node again once it is restarted.
func TestNodeThatIsDeletedUnderItsAgentComesBackWithIt(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 2, lab.VXLAN })
	s := startStream(t, l, "a1", "b1")
	put(t, l, api.ResourcesRoot+"nodes/node-1", gone)
	nettest.Eventually(t, func() error {
		_, err := l.AddPod(t.Context(), lab.PodSpec{Name: "late", Node: "node-1"})
		if codeOf(err) != attach.CodeTryAgain || !strings.Contains(err.Error(), "node node-1 is not in the datastore") {
			return fmt.Errorf("ADD without a Node: %w", err)
		}
		return nil
	})
	if got := s.stop(t); got.lost != 0 {
		t.Errorf("%d of %d packets between the node's pods were lost", got.lost, got.sent)
	}
	if err := l.RemovePod(t.Context(), "b1"); err != nil {
		t.Errorf("DEL without a Node: %v", err)
	}
	if err := l.StopAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	if err := l.StartAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	addPod(t, l, "late", "node-1")
	allWell(t, l)
}

// Block sizes are changed by deleting the pool and making it anew: what is in use stays as it is.
func TestPoolMadeAnewWithOtherBlocksLeavesWhatIsInUse(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 2, lab.VXLAN })
	allWell(t, l)
	tunnels := func() map[string]string {
		out := map[string]string{}
		for key, raw := range values(t, l, api.ResourcesRoot+"nodes/") {
			var n api.Node
			decode(t, key, raw, &n)
			out[n.Metadata.Name] = n.Spec.IPv4VXLANTunnelAddr.String()
		}
		return out
	}
	before := tunnels()
	old := values(t, l, poolKey)[poolKey]
	next := strings.Replace(old, `"blockSize":26`, `"blockSize":29`, 1)
	if next == old {
		t.Fatalf("the pool is %s", old)
	}
	put(t, l, poolKey, next)
	for n := range 70 { // more than the blocks that there are have
		addPod(t, l, fmt.Sprint("more", n), "node-1")
	}
	distinct(t, l)
	if d := cmp.Diff(before, tunnels()); d != "" {
		t.Errorf("tunnel addresses (-before +after):\n%s", d)
	}
	sizes := map[int]int{}
	for key := range values(t, l, api.BlocksRoot) {
		cidr, err := api.ParseBlockKey(key)
		if err != nil {
			t.Fatal(err)
		}
		sizes[cidr.Bits()]++
	}
	if sizes[26] != 2 || sizes[29] == 0 {
		t.Errorf("blocks by their sizes: %v", sizes)
	}
	one, other := pod(t, l, "more69"), pod(t, l, "a2")
	answers(t, l, "node-2", one)
	answers(t, l, "node-1", other)
}

// answers is a ping without the program, which a bare Debian lacks: a pod that refuses a connection has been reached, and its answer came back.
func answers(t *testing.T, l *lab.Lab, from string, p lab.Pod) {
	t.Helper()
	got := run(t, l, from, "sh", "-c", "LC_ALL=C timeout 3 bash -c 'exec 3<>/dev/tcp/"+p.Addr.String()+"/7777' 2>&1 || true")
	if !strings.Contains(got, "Connection refused") {
		t.Errorf("connect from %s to a closed port of %s at %s: got %q, want it refused", from, p.Name, p.Addr, got)
	}
}

// An etcd that takes no connection and answers nothing, as one that is paused, is worse than one that refuses.
func TestSilentEtcdHoldsUpNoCommandForLong(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 1, lab.Direct })
	r := newRuntime(t, l, "node-1", programs(t), "silent")
	warmUp(t, r)
	for _, door := range []string{"agent", "module"} {
		if door == "module" {
			if err := l.StopAgent(t.Context(), "node-1"); err != nil {
				t.Fatal(err)
			}
		}
		lives := r.container(door+"-lives", door+"-lives")
		if _, err := r.add(lives); err != nil {
			t.Fatal(err)
		}
		comes := r.container(door+"-comes", door+"-comes")
		rule := func(verb string) {
			t.Helper()
			run(t, l, "node-1", "iptables", verb, "OUTPUT", "-p", "tcp", "--dport", "2379", "-j", "DROP")
		}
		rule("-I")
		within := func(what string, limit time.Duration, do func() error) {
			t.Helper()
			began := time.Now()
			err := do()
			if took := time.Since(began); err == nil || took > limit {
				t.Errorf("%s door, %s: error %v after %v, want one within %v", door, what, err, took, limit)
			}
		}
		within("ADD", 20*time.Second, func() error { _, err := r.add(comes); return err })
		within("DEL", 6*time.Second, func() error { return r.del(lives) })
		rule("-D")
		nettest.Eventually(t, func() error { return r.del(lives) })
		nettest.Eventually(t, func() error { return r.del(comes) })
		if d := cmp.Diff(map[string]orphan{}, leftOf(t, l, "silent")); d != "" {
			t.Errorf("%s door: left in etcd (-want +got):\n%s", door, d)
		}
		r.remove(lives)
		r.remove(comes)
	}
}
