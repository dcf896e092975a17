package e2e

import (
	"fmt"
	"testing"

	"github.com/muslin-cni/muslin/internal/lab"
)

const reflectors = `{nodeSelector: all(), peerSelector: "route-reflector == 'true'"}`

// TestWalkFromMeshToRouteReflectors is the way of Calico's documentation: four nodes in a mesh, then one reflector, then two, and three. Pods talk
// throughout.
func TestWalkFromMeshToRouteReflectors(t *testing.T) {
	l := upBGP(t, func(o *lab.Options) { o.Nodes = 4 })
	addr := func(n int) string { return fmt.Sprintf("172.30.1.%d", n) }
	others := func(n int) (out []string) {
		for i := 1; i <= 4; i++ {
			if i != n {
				out = append(out, addr(i))
			}
		}
		return out
	}
	for n := 1; n <= 4; n++ {
		statusShows(t, l, fmt.Sprintf("node-%d", n), all(inMesh, others(n)...))
	}
	allWell(t, l)
	streams := map[string]*stream{
		"1 to 2": streamBetween(t, podEnd(t, l, "a1"), podEnd(t, l, "a2")),
		"2 to 3": streamBetween(t, podEnd(t, l, "a2"), podEnd(t, l, "a3")),
		"3 to 4": streamBetween(t, podEnd(t, l, "a3"), podEnd(t, l, "a4")),
		"4 to 1": streamBetween(t, podEnd(t, l, "a4"), podEnd(t, l, "a1")),
	}

	reflector(t, l, "node-1")
	peerWith(t, l, "peer-with-route-reflectors", reflectors)
	mesh(t, l, false)
	statusShows(t, l, "node-1", all(specific, others(1)...))
	for n := 2; n <= 4; n++ {
		statusShows(t, l, fmt.Sprintf("node-%d", n), all(specific, addr(1)))
	}

	reflector(t, l, "node-2")
	for n := 1; n <= 2; n++ {
		statusShows(t, l, fmt.Sprintf("node-%d", n), all(specific, others(n)...))
	}
	for n := 3; n <= 4; n++ {
		statusShows(t, l, fmt.Sprintf("node-%d", n), all(specific, addr(1), addr(2)))
	}

	reflector(t, l, "node-3")
	for n := 1; n <= 3; n++ {
		statusShows(t, l, fmt.Sprintf("node-%d", n), all(specific, others(n)...))
	}
	statusShows(t, l, "node-4", all(specific, addr(1), addr(2), addr(3)))
	noneLost(t, "from mesh to reflectors", streams)
	allWell(t, l)

	t.Run("any node's status is a resource", func(t *testing.T) { anyNodesStatus(t, l) })
}

func anyNodesStatus(t *testing.T, l *lab.Lab) {
	operator(t, l, "{apiVersion: projectcalico.org/v3, kind: CalicoNodeStatus, metadata: {name: of-3}, spec: {node: node-3, classes: [Agent, BGP, Routes], updatePeriodSeconds: 1}}", "apply", "-f", "-")
	eventually(t, l, func(out string) error {
		for _, want := range []string{
			"numberEstablishedV4: 3", "peerIP: 172.30.1.1", "peerIP: 172.30.1.2", "peerIP: 172.30.1.4", "state: Established", "type: NodePeer", "state: Ready", "routerID: 172.30.1.3",
			"version: Muslin ", "lastBootTime: ", "lastReconfigurationTime: ", "type: FIB", "sourceType: Static",
		} {
			if err := has(want)(out); err != nil {
				return err
			}
		}
		return nil
	}, "muslinctl", "get", "caliconodestatus", "of-3", "-o", "yaml")
	updated := func() string {
		return run(t, l, "node-1", "muslinctl", "get", "caliconodestatus", "of-3", "-o", "jsonpath={.status.lastUpdated}")
	}
	first := updated()
	eventually(t, l, func(string) error {
		if updated() == first {
			return fmt.Errorf("the report is still that of %s", first)
		}
		return nil
	}, "true")
}

// TestTwoReflectorsServeThreeClientsOneOfThemBIRD has routes that nobody but the reflectors can have told: those of BIRD's node, and those that
// BIRD has.
func TestTwoReflectorsServeThreeClientsOneOfThemBIRD(t *testing.T) {
	l := upBGP(t, func(o *lab.Options) { o.Nodes = 4 })
	mesh(t, l, false)
	reflector(t, l, "node-1")
	reflector(t, l, "node-2")
	peerWith(t, l, "peer-with-route-reflectors", reflectors)
	calico := addRouter(t, l, lab.RouterSpec{Name: "calico-1", Kind: lab.BIRD, CalicoNode: true, Peers: []lab.RouterPeer{{Host: "node-1"}, {Host: "node-2"}}})
	statusShows(t, l, "node-1", all(specific, "172.30.1.2", "172.30.1.3", "172.30.1.4", birdPeer))
	statusShows(t, l, "node-2", all(specific, "172.30.1.1", "172.30.1.3", "172.30.1.4", birdPeer))
	statusShows(t, l, "node-3", all(specific, "172.30.1.1", "172.30.1.2"))
	birdLearns(t, l, "calico-1", "Node_", blockRoutes(t, l, "node-1", "node-2", "node-3", "node-4")...)
	for _, b := range blockRoutes(t, l, "node-3") {
		prefix := b[:len(b)-len(" via 172.30.1.3")]
		for _, want := range []string{"BGP.originator_id: 172.30.1.3", "BGP.cluster_list: 244.0.0.1"} {
			if err := has(want)(run(t, l, "calico-1", "birdc", "show", "route", "for", prefix, "all")); err != nil {
				t.Error(err)
			}
		}
	}
	for n := 1; n <= 4; n++ {
		kernelLearns(t, l, fmt.Sprintf("node-%d", n), calico.Blocks[0].String(), birdPeer)
	}
	there := routerEnd(l, "calico-1", calico.Pods[0])
	streams := map[string]*stream{
		"client to BIRD's": streamBetween(t, podEnd(t, l, "a3"), there),
		"BIRD's to client": streamBetween(t, there, podEnd(t, l, "a4")),
	}
	// One reflector is enough.
	if err := l.StopAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	noneLost(t, "one reflector stopped", streams)
	birdLearns(t, l, "calico-1", "Node_", blockRoutes(t, l, "node-1", "node-2", "node-3", "node-4")...)
	if err := l.StartAgent(t.Context(), "node-1"); err != nil {
		t.Fatal(err)
	}
	statusShows(t, l, "node-1", all(specific, "172.30.1.2", "172.30.1.3", "172.30.1.4", birdPeer))
}
