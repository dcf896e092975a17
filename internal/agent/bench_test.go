package agent

import (
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/internal/nft"
	"github.com/muslin-cni/muslin/internal/ruleset"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// policyNode is a node of 200 pods in 20 namespaces, and so many policies, all of which select pods here: each an application of a namespace.
type policyNode struct {
	*guard
	feed *feed.Feed
	rev  int64
}

func newPolicyNode(b *testing.B, policies int) *policyNode {
	b.Helper()
	nettest.Need(b, "root")
	log := slog.New(slog.DiscardHandler)
	n := &policyNode{guard: newGuard("node-1", log), feed: feed.New(nil, log)}
	n.noteMask = func(uint32) error { return nil }
	var conn *nft.Conn
	ns := nettest.New(b)
	ns.Do(func() {
		var err error
		if conn, err = nft.Open(); err != nil {
			b.Fatal(err)
		}
	})
	b.Cleanup(func() { _ = conn.Close() })
	n.open = func() (policyKeeper, error) { return nft.NewKeeper(conn, ruleset.Table), nil }
	n.believe()
	for i := range 200 {
		n.store(b, fmt.Sprintf("workloadendpoints/ns-%d/node--1-k8s-pod--%d-eth0", i%20, i), fmt.Sprintf(`"kind":"WorkloadEndpoint","metadata":{"namespace":"ns-%d",
			"name":"node--1-k8s-pod--%d-eth0","labels":{"app":"app-%d","projectcalico.org/namespace":"ns-%[1]d","projectcalico.org/orchestrator":"k8s"}},"spec":{"orchestrator":"k8s",
			"node":"node-1","pod":"pod-%[2]d","endpoint":"eth0","containerID":"c","interfaceName":"cali%011[2]x","ipNetworks":["10.0.%d.%[2]d/32"]}`, i%20, i, i/20, i>>8))
	}
	for i := range policies {
		n.edit(b, i, 0)
	}
	n.round(b)
	return n
}

func (n *policyNode) store(b *testing.B, path, fields string) {
	b.Helper()
	n.rev++
	n.feed.Commit([]store.KV{{Key: api.ResourcesRoot + path, Rev: n.rev, Value: []byte(`{"apiVersion":"projectcalico.org/v3",` + fields + `}`)}})
}

// edit stores a version of the i-th policy.
func (n *policyNode) edit(b *testing.B, i, version int) {
	b.Helper()
	n.store(b, fmt.Sprintf("networkpolicies/ns-%d/default.p-%d", i%20, i), fmt.Sprintf(`"kind":"NetworkPolicy","metadata":{"namespace":"ns-%d","name":"default.p-%d"},"spec":{"tier":"default",
		"order":%d,"selector":"app == 'app-%d'","types":["Ingress","Egress"],"ingress":[{"action":"Allow","protocol":"TCP","source":{"selector":"app == 'app-%d'"},
		"destination":{"ports":[%d]}},{"action":"Allow","protocol":"TCP","source":{"nets":["192.168.0.0/16"]}}],"egress":[{"action":"Allow","protocol":"UDP","destination":{"ports":[53]}},
		{"action":"Allow","protocol":"TCP","destination":{"selector":"app == 'app-%[5]d'"}}]`, i%20, i, i, i/20%10, i%7, 1000+version%60000)+"}")
}

func (n *policyNode) round(b *testing.B) {
	b.Helper()
	snap, _ := n.feed.Snapshot()
	s := ruleset.Settings{Prefixes: []string{"cali"}, MarkMask: 0xffff0000, VXLANPort: 4789, LogGroup: ruleset.LogGroup, LogRate: logRate}
	if _, err := n.enforce(b.Context(), snap, s, kernel.Host{}, 1); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkPolicyToKernel edits one policy, from when the watch has told of it until the kernel has committed what follows. A policy of 1,000, or 10,000, applies
// to one pod in two hundred, and each pod is governed by a two-hundredth of them. On a busy machine the clock tells of others: beside it stands the time that
// processors worked for the change, the kernel's work and the collection of garbage included.
func BenchmarkPolicyToKernel(b *testing.B) {
	for _, policies := range []int{1000, 10_000} {
		b.Run(fmt.Sprintf("policies=%d", policies), func(b *testing.B) {
			n := newPolicyNode(b, policies)
			var took, used []time.Duration
			for version := 1; b.Loop(); version++ {
				start, before := time.Now(), worked(b)
				n.edit(b, version%policies, version)
				n.round(b)
				took, used = append(took, time.Since(start)), append(used, worked(b)-before)
			}
			for name, all := range map[string][]time.Duration{"": took, "cpu-": used} {
				slices.Sort(all)
				b.ReportMetric(float64(all[len(all)*99/100].Microseconds())/1000, name+"p99-ms")
				b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, name+"median-ms")
			}
		})
	}
}

// worked is the time that all threads of the process have run.
func worked(b *testing.B) time.Duration {
	b.Helper()
	used, err := processorTime()
	if err != nil {
		b.Fatal(err)
	}
	return used
}
