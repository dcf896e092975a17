package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/fault"
	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/internal/nft"
	"github.com/muslin-cni/muslin/internal/nftable"
	"github.com/muslin-cni/muslin/internal/ruleset"
)

// waitSeconds is how long an ADD waits at most for the pod's policy, in these tests.
const waitSeconds = 3

// waiting is a runtime whose ADDs wait so long for policy.
func waiting(t *testing.T, l *lab.Lab, bin string) *runtime {
	t.Helper()
	r := newRuntime(t, l, "node-1", bin, "waits")
	list, err := libcni.NetworkConfFromBytes(fmt.Appendf(nil, `{"cniVersion":"1.1.0","name":"waits","plugins":[{"type":"muslin","etcd_endpoints":%q,
		"policy_setup_timeout_seconds":%d,"ipam":{"type":"muslin-ipam"}}]}`, labEtcd, waitSeconds))
	if err != nil {
		t.Fatal(err)
	}
	r.list = list
	return r
}

// isRefused holds that an ADD fails with "try again later", within the time that it may wait and some more, and says why.
func (r *runtime) isRefused(c container, why string) {
	r.t.Helper()
	began := time.Now()
	_, err := r.add(c)
	var e *types.Error
	if !errors.As(err, &e) || e.Code != attach.CodeTryAgain || !strings.Contains(e.Msg+e.Details, why) {
		r.t.Errorf("ADD ends with %v; want code %d, and it says %q", err, attach.CodeTryAgain, why)
	}
	if took := time.Since(began); took > nettest.Patience(10*waitSeconds*time.Second) {
		r.t.Errorf("ADD took %v", took)
	}
	r.succeeds("DEL", r.del(c))
}

// policyHoldsThroughFaults has a transaction of policy fail, one that takes long, and the agent killed before and behind others, while flows go both ways.
func policyHoldsThroughFaults(t *testing.T, bin string) {
	l := upWith(t, bin, func(o *lab.Options) {
		o.Nodes, o.Mode, o.DualStack, o.AgentEnv = 2, lab.VXLAN, true, []string{fault.Variable + "=@" + agentOrders}
	})
	p, r := probed(t, l), waiting(t, l, bin)
	warmUp(t, r)

	const others = `"selector": "!has(app) && !has(role)", "order": 100, "types": ["Ingress"], "ingress": [{"action": "Allow"}]`
	r.order(fault.Name(fault.ApplyPolicyBegun) + "=error")
	policy(t, l, "others", others)
	nettest.Eventually(t, func() error {
		text := agentLog(t, l, "node-1")
		return errors.Join(has("round failed; it is tried again")(text), has("enforce policy")(text), has("rounds succeed again")(text))
	})

	gate := "/run/fault-gate"
	r.order(fault.Name(fault.ApplyPolicyBegun) + "=pause:" + gate)
	remove(t, l, "networkpolicies/default/default.others")
	c := r.container("c1", "late")
	r.isRefused(c, "on the host are missing the routes")
	r.order("")
	run(t, l, "node-1", "touch", gate)
	_, err := r.add(c)
	r.succeeds("ADD, once policy is in the kernel", err)
	r.succeeds("DEL", r.del(c))

	for i, point := range []fault.Point{fault.ApplyPolicyBegun, fault.ApplyPolicyPut, fault.ApplyPolicyBegun, fault.ApplyPolicyPut} {
		r.order(fault.Name(point) + "=kill")
		policy(t, l, "web", bothWays(5+i, fmt.Sprintf(`{"action": "Deny", "source": {"nets": ["198.51.%d.0/24"]}},`, i)))
		soon(t, "the agent is not killed at "+fault.Name(point), func() bool { return isDead(t, l, "node-1") })
		r.order("")
		if err := l.StartAgent(t.Context(), "node-1"); err != nil {
			t.Fatal(err)
		}
		eventually(t, l, has(fmt.Sprintf("198.51.%d.0/24", i)), "nft", "list", "table", "inet", "muslin")
	}
	p.end()
}

// TestPodsWaitWhileSomebodyElseHasTheTable has another process own the table of policy, as one of another release that does not end would. The agent cannot write
// then, and says so; no pod starts; and once the other is gone all goes on.
func TestPodsWaitWhileSomebodyElseHasTheTable(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 1, lab.VXLAN })
	r := waiting(t, l, programs(t))
	warmUp(t, r)
	s := startStream(t, l, "a1", "b1")
	if err := l.KillAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	var other *nft.Conn
	if err := l.Within("node-1", func() (err error) { other, err = nft.Open(); return err }); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	if !other.Owns() {
		t.Skip("this kernel has no tables that belong to somebody")
	}
	if err := other.Adopt(t.Context(), ruleset.Table); err != nil {
		t.Fatal(err)
	}
	started := make(chan error, 1)
	go func() { started <- l.StartAgent(t.Context(), "node-1") }()
	nettest.Eventually(t, func() error { return has("operation not permitted")(agentLog(t, l, "node-1")) })
	c := r.container("c1", "early")
	r.isRefused(c, "the agent is not running")
	if err := errors.Join(other.Close(), <-started); err != nil {
		t.Fatal(err)
	}
	_, err := r.add(c)
	r.succeeds("ADD, once the table is free", err)
	r.succeeds("DEL", r.del(c))
	if got := s.stop(t); got.lost != 0 {
		t.Errorf("%d of %d packets were lost", got.lost, got.sent)
	}
}

// TestBusyNftablesHoldNothingUpForLong has another program commit transactions of its own all the time, and large ones, as kube-proxy's nft does.
func TestBusyNftablesHoldNothingUpForLong(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode, o.DualStack = 2, lab.VXLAN, true })
	p := probed(t, l)
	listenTCP(t, l, "b1", 80)
	busy := nftable.NewTable("busy")
	rules := make([]nftable.Rule, 20_000)
	for i := range rules {
		rules[i].Stmts = []nftable.Stmt{nftable.Mark{Mask: 0xffff, Value: uint32(i)}, nftable.Verdict{Kind: nftable.Drop}}
	}
	busy.Chains["busy"] = nftable.NewChain("busy", nftable.Base{}, rules...)
	var other *nft.Conn
	if err := l.Within("node-1", func() (err error) { other, err = nft.Open(); return err }); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	end, ended := make(chan struct{}), make(chan error, 1)
	commits := 0
	go func() {
		var err error
		for err == nil {
			select {
			case <-end:
				ended <- nil
				return
			default:
			}
			if err = other.Commit(t.Context(), busy.Name, nftable.Build(busy), 0); err == nil {
				err = other.Delete(t.Context(), busy.Name)
			}
			commits++
		}
		ended <- err
	}()
	for i := range 10 {
		closed := i%2 == 0
		policy(t, l, "b1", fmt.Sprintf(`"selector": "!has(app) && !has(role)", "types": ["Ingress"], "ingress": [{"action": %q}]`, map[bool]string{true: "Deny", false: "Allow"}[closed]))
		ways(t, l, "while others commit", reach{"client", "b1", 80, !closed})
	}
	addPod(t, l, "later", "node-1")
	if err := errors.Join(l.KillAgent(t.Context(), "node-1"), l.StartAgent(t.Context(), "node-1")); err != nil {
		t.Fatal(err)
	}
	close(end)
	if err := <-ended; err != nil || commits < 10 {
		t.Errorf("the other has committed %d times: %v", commits, err)
	}
	p.end()
	if text := agentLog(t, l, "node-1"); strings.Contains(text, "round failed") {
		t.Errorf("rounds failed:\n%s", text)
	}
}
