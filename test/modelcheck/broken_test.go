package modelcheck_test

import (
	"slices"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/muslin-cni/muslin/pkg/api"
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
			"affinities-agree", 1,
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
