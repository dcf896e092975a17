package modelcheck_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	mc "github.com/muslin-cni/muslin/test/modelcheck"
)

// without makes a transaction compare no key below a prefix any more.
func without(prefix string) func(*pb.TxnRequest) *pb.TxnRequest {
	return func(t *pb.TxnRequest) *pb.TxnRequest {
		t.Compare = slices.DeleteFunc(t.Compare, func(c *pb.Compare) bool { return strings.HasPrefix(string(c.Key), prefix) })
		return t
	}
}

// unwritten leaves out what a transaction does to keys below a prefix.
func unwritten(prefix string) func(*pb.TxnRequest) *pb.TxnRequest {
	return func(t *pb.TxnRequest) *pb.TxnRequest {
		t.Success = slices.DeleteFunc(t.Success, func(op *pb.RequestOp) bool {
			return strings.HasPrefix(string(op.GetRequestPut().GetKey())+string(op.GetRequestDeleteRange().GetKey()), prefix)
		})
		return t
	}
}

// A checker that finds nothing shows nothing unless it would: every one of these is a transaction with one thing missing.
func TestBrokenTransactionsAreFoundWithAShortestTrace(t *testing.T) {
	endpoints := (*api.WorkloadEndpoint)(nil).KindOf().Prefix()
	oneLeft := left(1)
	orphan := mc.Start{Pods: map[string]string{"o": "a"}}
	for _, c := range []struct {
		name   string
		broken func(*pb.TxnRequest) *pb.TxnRequest
		start  mc.Start
		actors []mc.Actor
		want   string
		steps  int // that it takes at least
	}{
		{
			"blocks are not compared", without(api.BlocksRoot), oneLeft,
			[]mc.Actor{{Node: "a", Memory: true, Ops: []mc.Op{mc.Add("x")}}, {Node: "b", Memory: true, Ops: []mc.Op{mc.Add("y")}}},
			"one-owner", 4, // each looks, then each writes
		}, {
			"blocks are not compared where they are claimed", without(api.BlocksRoot), mc.Start{},
			[]mc.Actor{{Node: "a", Ops: []mc.Op{mc.Add("x")}}, {Node: "b", Ops: []mc.Op{mc.Add("y")}}, {Node: "c", Ops: []mc.Op{mc.Add("z")}}},
			"one-owner", 4,
		}, {
			"the handle is not compared", without(api.HandlesRoot), left(2),
			[]mc.Actor{{Node: "a", Memory: true, Ops: []mc.Op{mc.Add("x"), mc.Del("x")}}},
			"found-by-handle", 4, // the reply is lost, and the ADD begins again on a memory that knows nothing of it
		}, {
			"the endpoint is not written", unwritten(endpoints), mc.Start{},
			[]mc.Actor{{Node: "a", Ops: []mc.Op{mc.Add("x")}}},
			"no-leak", 1,
		}, {
			"the handle is not deleted", unwritten(api.HandlesRoot), orphan,
			[]mc.Actor{{Node: "a", Ops: []mc.Op{mc.Del("o")}}},
			"counts-agree", 1,
		}, {
			"the affinity is not written", unwritten(api.HostsRoot), mc.Start{},
			[]mc.Actor{{Node: "a", Ops: []mc.Op{mc.Add("x")}}},
			"no confirmed affinity", 1,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := mc.Scenario{Name: c.name, Start: c.start, Actors: c.actors, Lost: 1, Broken: c.broken}
			r, err := s.Explore(t.Context(), 100_000)
			if err != nil {
				t.Fatal(err)
			}
			if r.Violation == nil {
				t.Fatalf("nothing was found in %d states", r.States)
			}
			t.Logf("after %d states: %v", r.States, r.Violation)
			if !strings.Contains(r.Violation.What, c.want) || len(r.Violation.Trace) != c.steps {
				t.Errorf("want %s after %d steps", c.want, c.steps)
			}
			s.Broken = nil
			if r, err = s.Explore(t.Context(), 100_000); err != nil || r.Violation != nil {
				t.Errorf("and unbroken: %v, %v", r.Violation, err)
			}
		})
	}
}

// left is a cluster in which n addresses are left, all of node a's block.
func left(n int) mc.Start {
	return mc.Start{Blocks: map[string]string{mc.Low: "a", mc.High: "b"}, Fill: map[string]int{mc.Low: 4 - n, mc.High: 4}}
}

// Of each key that our commits compare without writing it, or write only as they found it, somebody notices if they do not: what they rest on is not true any more
// (rules.go), or an invariant is broken.
func TestEveryCompareIsMissedWhereItIsNotMade(t *testing.T) {
	own := mc.Start{Blocks: map[string]string{mc.Low: "a", mc.High: "b"}}
	scarce := mc.Start{Blocks: map[string]string{mc.Low: "b", mc.High: "c"}, Fill: map[string]int{mc.Low: 3, mc.High: 2}}
	onAgent := func(ops ...mc.Op) mc.Actor { return mc.Actor{Node: "a", Memory: true, Ops: ops} }
	onModule := func(ops ...mc.Op) mc.Actor { return mc.Actor{Node: "a", Ops: ops} }
	operator := func(ops ...mc.Op) mc.Actor { return mc.Actor{Node: "a", Operator: true, Ops: ops} }
	kinds := func(o api.Object) string { return o.KindOf().Prefix() }
	for _, c := range []struct {
		name   string
		broken func(*pb.TxnRequest) *pb.TxnRequest
		start  mc.Start
		actors []mc.Actor
		want   string
	}{
		{"cluster, by an ADD or DEL", without(ipam.ClusterKey()), own, []mc.Actor{onAgent(mc.AddOnce("x"), mc.Del("x")), operator(mc.Lock(), mc.Unlock())}, "while the datastore is locked"},
		{"cluster, by an executable's DEL", without(ipam.ClusterKey()), mc.Start{Pods: map[string]string{"o": "a"}}, []mc.Actor{onModule(mc.Del("o")), operator(mc.Lock(), mc.Unlock())}, "while the datastore is locked"},
		{"cluster, by who returns a block", without(ipam.ClusterKey()), own, []mc.Actor{onModule(mc.ReturnBlocks()), operator(mc.Lock(), mc.Unlock())}, "while the datastore is locked"},
		{"cluster, by who takes a pool down", without(ipam.ClusterKey()), own, []mc.Actor{onModule(mc.ReleasePool()), operator(mc.Lock(), mc.Unlock())}, "while the datastore is locked"},
		{"cluster, by tunnels", without(ipam.ClusterKey()), mc.Start{Tunnel: true}, []mc.Actor{onModule(mc.Tunnels()), operator(mc.Lock(), mc.Unlock())}, "while the datastore is locked"},
		{"pool", without(kinds((*api.IPPool)(nil))), own, []mc.Actor{onAgent(mc.Add("x")), operator(mc.DisablePool())}, "its pool is out of use"},
		{"node", without(kinds((*api.Node)(nil))), own, []mc.Actor{onAgent(mc.Add("x")), operator(mc.DeleteNode("a"))}, "there is no node a"},
		{"node, by who releases it", without(kinds((*api.Node)(nil))), mc.Start{Tunnel: true}, []mc.Actor{onModule(mc.Tunnels()), {Node: "b", Ops: []mc.Op{mc.ReleaseNode("a")}}}, "tunnel-holds"},
		{"identity", without(api.IdentitiesRoot), own, []mc.Actor{onAgent(mc.Add("x")), operator(mc.Adopt("a"))}, "is machine another's"},
		{"configuration", without(api.IPAMConfigKey), scarce, []mc.Actor{onAgent(mc.Add("x")), operator(mc.BeStrict())}, "affinity is strict"},
		{"affinity", without(api.HostsRoot), own, []mc.Actor{onAgent(mc.Add("x")), onModule(mc.CalicoReleaseAffinity(mc.Low))}, "no confirmed affinity"},
		{"profile", without(kinds((*api.Profile)(nil))), mc.Start{NoProfile: true}, []mc.Actor{onAgent(mc.Add("x")), {Node: "b", Ops: []mc.Op{mc.Add("y")}}}, "is written over"},
		{"endpoint", without(kinds((*api.WorkloadEndpoint)(nil))), own, []mc.Actor{onModule(mc.AddBrought("x", "192.0.2.1"), mc.Del("x"), mc.AddBrought("x", "192.0.2.1"))}, "whose endpoint has"},
		{"a DEL that finds nothing does not break what comes late", unwritten(api.IdentitiesRoot), own, []mc.Actor{onModule(mc.AddOnce("x"), mc.Del("x"))}, "the DEL of container x has succeeded"},
		{"nor does an agent's", unwritten(api.IdentitiesRoot), mc.Start{}, []mc.Actor{onAgent(mc.AddOnce("x"), mc.Del("x"))}, "the DEL of container x has succeeded"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := mc.Scenario{Name: c.name, Start: c.start, Actors: c.actors, Lost: 1, Late: 1, Broken: c.broken}
			r, err := s.Explore(t.Context(), 100_000)
			if err != nil {
				t.Fatal(err)
			}
			if r.Violation == nil || !strings.Contains(r.Violation.What, c.want) {
				t.Fatalf("%d states, and found is not %q, but: %v", r.States, c.want, r.Violation)
			}
			t.Logf("after %d states: %v", r.States, r.Violation)
			s.Broken = nil
			if r, err = s.Explore(t.Context(), 5_000); err != nil && !errors.Is(err, mc.ErrTooMany) || r.Violation != nil {
				t.Errorf("and unbroken: %v, %v", r.Violation, err)
			}
			t.Logf("%d states unbroken", r.States)
		})
	}
}
