package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
)

// drifts is what others may do to the table of policy, by nft, and the object that is then told to have been repaired. SET stands for the set of client's address ADDR, CHAIN
// for the chain of the policy.
var drifts = []struct{ damage, object string }{
	{"delete table inet muslin", "table inet muslin"},
	{"flush ruleset", "table inet muslin"},
	{"insert rule inet muslin forward accept", "chain forward"},
	{"flush chain inet muslin CHAIN", "chain CHAIN"},
	{"insert rule inet muslin CHAIN accept", "chain CHAIN"},
	{"delete element inet muslin SET { ADDR }", "set SET"},
	{"add element inet muslin SET { 198.51.100.7 }", "set SET"},
	{"add chain inet muslin stray { type filter hook forward priority -400; policy drop; }", "chain stray"},
	{"add set inet muslin stray { type ipv4_addr; }", "set stray"},
	{"add set inet muslin stray { type mark; }", "table inet muslin"}, // of which we cannot tell what it is: all is made anew
}

// drifting is a lab with a policy by which client alone reaches web.
func drifting(t *testing.T) (l *lab.Lab, fill *strings.Replacer) {
	t.Helper()
	l = up(t, func(o *lab.Options) { o.Nodes, o.Mode = 1, lab.VXLAN })
	addPodOf(t, l, lab.PodSpec{Name: "web", Node: "node-1", Labels: map[string]string{"app": "web"}})
	addPodOf(t, l, lab.PodSpec{Name: "client", Node: "node-1", Labels: map[string]string{"role": "client"}})
	listenTCP(t, l, "web", 80)
	policy(t, l, "web", bothWays(5, ""))
	holds(t, l, "at first")
	table := run(t, l, "node-1", "nft", "list", "table", "inet", "muslin")
	word := func(prefix, holding string) string {
		for block := range strings.SplitSeq(table, "\n\t}\n") {
			head, body, _ := strings.Cut(strings.TrimSpace(block), " {")
			if name := head[strings.LastIndex(head, " ")+1:]; strings.HasPrefix(name, prefix) && strings.Contains(body, holding) {
				return name
			}
		}
		t.Fatalf("no %s… holds %s:\n%s", prefix, holding, table)
		return ""
	}
	addr := pod(t, l, "client").Addr.String()
	return l, strings.NewReplacer("SET", word("a4-", addr), "CHAIN", word("pi-", "@a4-"), "ADDR", addr)
}

func holds(t *testing.T, l *lab.Lab, what string) {
	t.Helper()
	ways(t, l, what, reach{"client", "web", 80, true}, reach{"a1", "web", 80, false})
}

func isAsBefore(t *testing.T, l *lab.Lab, what string, before []string) {
	t.Helper()
	nettest.Eventually(t, func() error {
		now, err := try(t, l, "node-1", "nft", "--stateless", "list", "table", "inet", "muslin")
		if err != nil {
			return err
		}
		if d := cmp.Diff(before, linesOf(now)); d != "" {
			return fmt.Errorf("%s: the table differs (-before +after):\n%s", what, d)
		}
		return nil
	})
}

// TestOthersCannotTouchPolicyWhileAnAgentRuns needs a kernel whose tables may belong to somebody. While no agent runs the table is anybody's: the next agent puts it right.
func TestOthersCannotTouchPolicyWhileAnAgentRuns(t *testing.T) {
	l, fill := drifting(t)
	before := tableOf(t, l)
	if !strings.Contains(strings.Join(before, "\n"), "flags owner") {
		t.Skip("this kernel has no tables that are owned and persist: TestVMDriftOfPolicyIsRepairedAtOnceAndTold is for it")
	}
	for _, d := range drifts {
		command := fill.Replace(d.damage)
		_, err := try(t, l, "node-1", "nft", command)
		if refused := err != nil; refused != (command != "flush ruleset") { // which passes over what is another's
			t.Errorf("%s: refused %t: %v", command, refused, err)
		}
		isAsBefore(t, l, command, before)
	}
	for _, d := range drifts {
		if err := l.KillAgent(t.Context(), "node-1"); err != nil {
			t.Fatal(err)
		}
		command := fill.Replace(d.damage)
		nettest.Eventually(t, func() error { // a program that the agent had just forked may hold the table's socket until it begins
			_, err := try(t, l, "node-1", "nft", command)
			return err
		})
		if err := l.StartAgent(t.Context(), "node-1"); err != nil {
			t.Fatal(err)
		}
		isAsBefore(t, l, command+", while no agent ran", before)
		holds(t, l, command)
	}
	if text := agentLog(t, l, "node-1"); strings.Contains(text, "repaired what others changed") && strings.Contains(text, "table=policy") {
		t.Errorf("an agent that starts does not know who has changed what, and says so:\n%s", text)
	}
}

// TestVMDriftOfPolicyIsRepairedAtOnceAndTold has a kernel on which anybody may change the table.
func TestVMDriftOfPolicyIsRepairedAtOnceAndTold(t *testing.T) {
	nettest.Need(t, "vm")
	l, fill := drifting(t)
	before := tableOf(t, l)
	if strings.Contains(strings.Join(before, "\n"), "flags owner") {
		t.Skip("in this kernel nobody else can touch the table")
	}
	for _, d := range drifts {
		command, object := fill.Replace(d.damage), fill.Replace(d.object)
		told := func() int {
			return strings.Count(agentLog(t, l, "node-1"), fmt.Sprintf("table=policy object=%q", object))
		}
		already := told()
		run(t, l, "node-1", "nft", command)
		nettest.Eventually(t, func() error {
			if told() <= already {
				return errors.New(command + ": no repair of " + object + " is told")
			}
			return nil
		})
		isAsBefore(t, l, command, before)
		holds(t, l, command)
	}
}
