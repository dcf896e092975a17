package modelcheck

import (
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"slices"
	"strings"
	"testing"
)

func TestTryMutants(t *testing.T) {
	own := Start{Blocks: map[string]string{Low: "a", High: "b"}, Fill: map[string]int{Low: 2, High: 2}}
	scarce := Start{Blocks: map[string]string{Low: "b", High: "c"}, Fill: map[string]int{Low: 3, High: 2}}
	orphan := Start{Pods: map[string]string{"o": "a"}}
	all := []Scenario{
		named("own", Scenario{Start: own, Lost: 1, Late: 1, Actors: []Actor{agent("a", AddOnce("x"), Del("x")), operator(Lock(), Unlock())}}),
		named("orphan", Scenario{Start: orphan, Lost: 1, Actors: []Actor{module("a", Del("o")), operator(Lock(), Unlock())}}),
		named("own", Scenario{Start: own, Lost: 1, Actors: []Actor{agent("a", Add("x"), Del("x")), operator(DisablePool())}}),
		named("empty", Scenario{Start: Start{}, Lost: 1, Actors: []Actor{agent("a", Add("x"), Del("x")), operator(DisablePool())}}),
		named("scarce", Scenario{Start: scarce, Lost: 1, Actors: []Actor{agent("a", Add("x"), Del("x")), operator(BeStrict())}}),
		named("own", Scenario{Start: own, Lost: 1, Actors: []Actor{agent("a", Add("x"), Del("x")), operator(Adopt("a"))}}),
		named("own", Scenario{Start: own, Lost: 1, Actors: []Actor{agent("a", Add("x"), Del("x")), operator(DeleteNode("a"))}}),
		named("own", Scenario{Start: own, Lost: 1, Actors: []Actor{agent("a", Add("x"), Del("x")), module("a", CalicoReleaseAffinity(Low))}}),
		named("own", Scenario{Start: own, Lost: 1, Late: 1, Actors: []Actor{agent("a", Add("x"), Del("x")), module("b", Add("y"), Del("y"))}}),
		named("orphan", Scenario{Start: orphan, Lost: 1, Late: 1, Actors: []Actor{agent("a", Add("x"), Del("x")), module("a", Del("o")), module("a", FreeOrphan("o"))}}),
		named("return", Scenario{Start: Start{Blocks: map[string]string{Low: "a", High: "b"}}, Lost: 1, Late: 1, Actors: []Actor{agent("a", Add("x"), Del("x")), module("a", ReturnBlocks()), operator(Adopt("a"))}}),
		named("return", Scenario{Start: Start{Blocks: map[string]string{Low: "a", High: "b"}}, Lost: 1, Late: 1, Actors: []Actor{module("a", ReturnBlocks()), operator(Lock(), Unlock())}}),
		named("reclaim", Scenario{Start: Start{Blocks: map[string]string{Low: "c", High: "b"}, Fill: map[string]int{High: 4}}, Lost: 1, Late: 1, Actors: []Actor{module("a", Add("x")), module("c", Add("y"))}}),
		named("empty", Scenario{Start: Start{}, Lost: 1, Late: 1, Actors: []Actor{agent("a", AddOnce("x"), Del("x")), module("b", Add("y"), Del("y"))}}),
		named("tunnels", Scenario{Start: Start{Tunnel: true}, Lost: 1, Actors: []Actor{module("a", Tunnels()), operator(DisablePool())}}),
		named("tunnels", Scenario{Start: Start{Tunnel: true}, Lost: 1, Actors: []Actor{module("a", Tunnels()), operator(Lock(), Unlock())}}),
		named("tunnels", Scenario{Start: Start{Tunnel: true}, Lost: 1, Actors: []Actor{module("a", Tunnels(), Add("x")), module("b", ReleaseNode("a"))}}),
		named("pool", Scenario{Start: orphan, Lost: 1, Actors: []Actor{module("c", ReleasePool()), operator(Lock(), Unlock())}}),
	}
	for _, s := range all {
		s.Broken = nil
		r, err := s.Explore(t.Context(), 60000)
		t.Logf("%s: %d states %v\n%v", s.Name, r.States, err, r.Violation)
	}
	for name, prefix := range map[string]string{"block": api.BlocksRoot, "handle": api.HandlesRoot, "endpoint": endpointKey("a", "")[:60], "affinity": api.HostsRoot, "pool": poolKey(), "node": "/calico/resources/v3/projectcalico.org/nodes/", "identity": api.IdentitiesRoot, "config": api.IPAMConfigKey, "cluster": ipam.ClusterKey()} {
		for _, s := range all {
			s.Broken = func(r *pb.TxnRequest) *pb.TxnRequest {
				r.Compare = slices.DeleteFunc(r.Compare, func(c *pb.Compare) bool { return strings.HasPrefix(string(c.Key), prefix) })
				return r
			}
			r, err := s.Explore(t.Context(), 60000)
			if r.Violation != nil {
				what := ""
				if r.Violation != nil {
					what = strings.Split(r.Violation.Error(), "\n")[0]
				}
				t.Logf("MUT %s: %s: %d states %v %v", name, s.Name, r.States, err, what)
			}
		}
	}
}
