package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/muslin-cni/muslin/pkg/api"
)

// cluster is a cluster of namespaces of 100 pods with ten applications each, of which 200 pods run on this node: two of each of 100 namespaces. Its policies
// are as people write them for Kubernetes: of ten, nine select an application of a namespace and allow another one, or a namespace by its labels, to reach
// a port, and let it reach DNS; one in a hundred is global.
type cluster struct {
	objects []Change
	pods    []*api.WorkloadEndpoint
}

const (
	podsPerNamespace = 100
	apps             = 10
	localPods        = 200
)

func newCluster(endpoints, policies int) *cluster {
	c := &cluster{}
	namespaces := endpoints / podsPerNamespace
	for i := range namespaces {
		c.namespace(i)
	}
	for i := range endpoints {
		c.pod(i, namespaces)
	}
	for i := range policies {
		c.policy(i, namespaces)
	}
	return c
}

func (c *cluster) add(o api.Object) {
	c.objects = append(c.objects, Change{Key: api.KeyOf(o), Object: o})
}

func namespaceName(i int) string { return fmt.Sprintf("namespace-%d", i) }

func (c *cluster) namespace(i int) {
	name := namespaceName(i)
	p := &api.Profile{}
	p.Metadata.Name = namespaceProfile + name
	p.Spec = api.ProfileSpec{
		Ingress: []api.Rule{{Action: api.Allow}}, Egress: []api.Rule{{Action: api.Allow}},
		LabelsToApply: map[string]string{"pcns.projectcalico.org/name": name, "pcns.team": fmt.Sprintf("team-%d", i%50)},
	}
	c.add(p)
	a := &api.Profile{}
	a.Metadata.Name = "ksa." + name + ".default"
	a.Spec.LabelsToApply = map[string]string{"pcsa.projectcalico.org/name": "default"}
	c.add(a)
}

func (c *cluster) pod(i, namespaces int) {
	ns := namespaceName(i % namespaces)
	nth := i / namespaces
	w := &api.WorkloadEndpoint{}
	w.Metadata.Namespace, w.Metadata.Name = ns, fmt.Sprintf("node-k8s-pod--%d-eth0", i)
	w.Metadata.Labels = map[string]string{
		api.LabelNamespace: ns, api.LabelOrchestrator: "k8s", "app": fmt.Sprintf("app-%d", nth%apps),
		"pod-template-hash": fmt.Sprintf("hash-%d", i%1000), "role": fmt.Sprintf("role-%d", i%20),
	}
	host := fmt.Sprintf("node-%d", i%5000)
	if i%namespaces < localPods/2 && nth < 2 {
		host = node
	}
	w.Spec = api.WorkloadEndpointSpec{
		Orchestrator: "k8s", Node: host, Pod: fmt.Sprintf("pod-%d", i), Endpoint: "eth0", InterfaceName: fmt.Sprintf("cali%011x", i),
		ServiceAccountName: "default", Profiles: []string{namespaceProfile + ns, "ksa." + ns + ".default"},
		IPNetworks: []api.Prefix{api.HostPrefix(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}))},
		Ports:      []api.WEPort{{Name: "web", Protocol: api.Protocol{Name: "TCP"}, Port: 8080}},
	}
	c.pods = append(c.pods, w)
	c.add(w)
}

func (c *cluster) policy(i, namespaces int) {
	if i%100 == 99 {
		c.global(i)
		return
	}
	p := &api.NetworkPolicy{}
	p.Metadata.Namespace, p.Metadata.Name = namespaceName(i%namespaces), fmt.Sprintf("knp.default.policy-%d", i)
	order := 1000.0
	k8s := "projectcalico.org/orchestrator == 'k8s'"
	app := func(n int) string { return fmt.Sprintf("%s && app == 'app-%d'", k8s, n%apps) }
	from := api.EntityRule{Selector: app(i + 1)}
	if i%10 == 0 {
		from = api.EntityRule{Selector: k8s, NamespaceSelector: fmt.Sprintf("team == 'team-%d'", i%50)}
	}
	tcp, udp := &api.Protocol{Name: "TCP"}, &api.Protocol{Name: "UDP"}
	p.Spec = api.NetworkPolicySpec{
		Tier: "default", Order: &order, Selector: app(i / namespaces), Types: []api.PolicyType{api.Ingress, api.Egress},
		Ingress: []api.Rule{
			{Action: api.Allow, Protocol: tcp, Source: from, Destination: api.EntityRule{Ports: []api.Port{{Min: 8080, Max: 8080}}}},
			{Action: api.Allow, Protocol: tcp, Source: api.EntityRule{Nets: []string{"192.168.0.0/16"}, NotNets: []string{"192.168.7.0/24"}}},
		},
		Egress: []api.Rule{
			{Action: api.Allow, Protocol: udp, Destination: api.EntityRule{Ports: []api.Port{{Min: 53, Max: 53}}}},
			{Action: api.Allow, Protocol: tcp, Destination: api.EntityRule{Selector: app(i + 2)}},
		},
	}
	c.add(p)
}

func (c *cluster) global(i int) {
	p := &api.GlobalNetworkPolicy{}
	p.Metadata.Name = fmt.Sprintf("global-%d", i)
	role := func(n int) string { return fmt.Sprintf("role == 'role-%d'", n%20) }
	p.Spec = api.GlobalNetworkPolicySpec{
		Tier: "default", Order: new(float64(i)), Selector: role(i / 100), Types: []api.PolicyType{api.Ingress},
		Ingress: []api.Rule{{Action: api.Deny, Source: api.EntityRule{Selector: role(i/100 + 1)}}},
	}
	c.add(p)
}

var sizes = []struct{ endpoints, policies int }{{10_000, 1_000}, {250_000, 10_000}}

func eachSize(b *testing.B, run func(b *testing.B, c *cluster)) {
	for _, s := range sizes {
		b.Run(fmt.Sprintf("endpoints=%d/policies=%d", s.endpoints, s.policies), func(b *testing.B) {
			run(b, newCluster(s.endpoints, s.policies))
		})
	}
}

// live is the heap in use, after everything that can be collected was.
func live() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// cpuTime is the time that all threads of the process have run, garbage collection included: on a busy machine the wall tells of others.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkFullCompile takes everything over at once, as at the agent's start. live-B is the heap that the engine holds besides its inputs.
func BenchmarkFullCompile(b *testing.B) {
	eachSize(b, func(b *testing.B, c *cluster) {
		b.ReportAllocs()
		var held uint64
		var cpu time.Duration
		for b.Loop() {
			b.StopTimer()
			before := live()
			began := cpuTime(b)
			b.StartTimer()
			e := New(node)
			u := e.Apply(Delta{Objects: c.objects})
			b.StopTimer()
			cpu += cpuTime(b) - began
			if len(u.Endpoints) != localPods || len(u.Problems) != 0 {
				b.Fatalf("%d endpoints, problems %v", len(u.Endpoints), u.Problems)
			}
			b.ReportMetric(float64(len(u.Policies)), "policies")
			members := 0
			for _, s := range u.Sets {
				members += s.Added.Len()
			}
			b.ReportMetric(float64(len(u.Sets)), "sets")
			b.ReportMetric(float64(members), "members")
			u = Update{}
			held = live() - before
			runtime.KeepAlive(e)
			b.StartTimer()
		}
		b.ReportMetric(float64(held), "live-B")
		b.ReportMetric(float64(cpu.Nanoseconds())/float64(b.N), "cpu-ns/op")
	})
}

// oneChange measures changes that do and undo something.
func oneChange(b *testing.B, change func(c *cluster) (there, back Delta)) {
	eachSize(b, func(b *testing.B, c *cluster) {
		e := New(node)
		e.Apply(Delta{Objects: c.objects})
		there, back := change(c)
		if e.Apply(there).Empty() || e.Apply(back).Empty() {
			b.Fatal("the change changes nothing")
		}
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if i%2 == 0 {
				e.Apply(there)
			} else {
				e.Apply(back)
			}
		}
	})
}

func one(o api.Object) Delta { return Delta{Objects: []Change{{api.KeyOf(o), o}}} }

// BenchmarkOneLabel changes a label of a pod elsewhere, which rules here refer to.
func BenchmarkOneLabel(b *testing.B) {
	oneChange(b, func(c *cluster) (there, back Delta) {
		was := c.pods[len(c.pods)/podsPerNamespace*5] // of the first namespace, on another node
		is := *was
		is.Metadata.Labels = maps.Clone(was.Metadata.Labels)
		is.Metadata.Labels["role"] = "role-5"
		return one(&is), one(was)
	})
}

// BenchmarkOnePolicy edits a rule of a policy that is in force here.
func BenchmarkOnePolicy(b *testing.B) {
	oneChange(b, func(c *cluster) (there, back Delta) {
		for _, change := range c.objects {
			was, ok := change.Object.(*api.NetworkPolicy)
			if !ok {
				continue
			}
			is := *was
			is.Spec.Ingress = []api.Rule{{Action: api.Allow, Source: api.EntityRule{Selector: "app == 'app-7'"}}}
			return one(&is), one(was)
		}
		return there, back
	})
}

// BenchmarkOnePod adds and removes a pod of this node.
func BenchmarkOnePod(b *testing.B) {
	oneChange(b, func(c *cluster) (there, back Delta) {
		was := c.pods[0]
		return Delta{Objects: []Change{{Key: api.KeyOf(was)}}}, one(was)
	})
}
