package hosts

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/etcdtest"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

var (
	wellPath    = api.Path{Peer: "node-2", Family: "IPv4", Kind: api.PathVXLAN, State: api.PathOK, Largest: 1450, Wanted: 1450}
	smallPath   = api.Path{Peer: "node-2", Family: "IPv6", Kind: api.PathDirect, State: api.PathBad, Fault: api.FaultMTU, Largest: 1400, Wanted: 1450, Text: "the largest packet is 1400 of 1450"}
	unknownPath = api.Path{Peer: "node-3", Family: "IPv4", Kind: api.PathVXLAN, State: api.PathUnknown, Wanted: 1450, Text: "the peer runs no probes"}
)

func TestPathsOfThisNodeAreAskedOfItsAgent(t *testing.T) {
	want := []api.Path{wellPath, smallPath, unknownPath}
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := askPaths(t.Context(), agentFor(t, attach.Paths, attach.Reply{Paths: b}))
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Fatalf("%v %s", err, d)
	}
	var out bytes.Buffer
	if err := printPaths(&out, got); err != nil {
		t.Fatal(err)
	}
	const table = `+--------+--------+--------+---------+----------------+
|  PEER  | FAMILY |   BY   |  STATE  | LARGEST PACKET |
+--------+--------+--------+---------+----------------+
| node-2 | IPv4   | vxlan  | ok      | 1450 of 1450   |
| node-2 | IPv6   | direct | bad     | 1400 of 1450   |
| node-3 | IPv4   | vxlan  | unknown | -              |
+--------+--------+--------+---------+----------------+
node-2, IPv6 by direct: the largest packet is 1400 of 1450
node-3, IPv4 by vxlan: the peer runs no probes
`
	if d := cmp.Diff(table, out.String()); d != "" {
		t.Error(d)
	}
}

func TestAgentThatTestsNoPathsSaysSo(t *testing.T) {
	socket := agentFor(t, attach.Paths, attach.Reply{Error: &attach.Error{Code: attach.CodeNoProbes, Msg: "this node tests no paths", Details: "MUSLIN_PATH_PROBES is false for its agent"}})
	if _, err := askPaths(t.Context(), socket); err == nil || !strings.Contains(err.Error(), "MUSLIN_PATH_PROBES") {
		t.Error(err)
	}
}

// published is an etcd with so many nodes and what some of them have published.
func published(t *testing.T, nodes int, records map[string]api.NodePaths) *store.Client {
	t.Helper()
	c := etcdtest.New(t).Store()
	for n := range nodes {
		name := fmt.Sprintf("node-%d", n+1)
		v := &api.Node{}
		v.Metadata.Name = name
		if _, err := store.Create(t.Context(), c, v.KindOf().Key("", name), v); err != nil {
			t.Fatal(err)
		}
	}
	for node, r := range records {
		if _, err := store.Create(t.Context(), c, api.PathsKey(node), &r); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func all(t *testing.T, c *store.Client, format string) string {
	t.Helper()
	var out bytes.Buffer
	if err := allPaths(t.Context(), &out, c, format); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestPathsOfAllNodesAreAMatrix(t *testing.T) {
	c := published(t, 4, map[string]api.NodePaths{
		"node-1": {Tested: true, Faults: []api.Path{smallPath}, More: 3},
		"node-2": {Tested: true, Faults: []api.Path{{Peer: "node-1", Family: "IPv4", Kind: api.PathVXLAN, State: api.PathUnknown, Text: "no agent"}}},
		"node-4": {},             // it has only just begun
		"node-9": {Tested: true}, // it is no node any more
	})
	const matrix = `+-----------+---------+-----------------------+---------+---------+
| FROM \ TO | node-1  |        node-2         | node-3  | node-4  |
+-----------+---------+-----------------------+---------+---------+
| node-1    | -       | IPv6 direct: mtu 1400 | unknown | ok      |
| node-2    | unknown | -                     | unknown | ok      |
| node-3    | unknown | unknown               | -       | unknown |
| node-4    | unknown | unknown               | unknown | -       |
+-----------+---------+-----------------------+---------+---------+
node-1 to node-2, IPv6 by direct: the largest packet is 1400 of 1450
node-1 has 3 more: ` + "`muslinctl node paths`" + ` there shows them
`
	if d := cmp.Diff(matrix, all(t, c, "")); d != "" {
		t.Error(d)
	}
	var rows []told
	if err := json.Unmarshal([]byte(all(t, c, "json")), &rows); err != nil {
		t.Fatal(err)
	}
	if len(rows) != 4 || rows[0].To["node-2"] != "IPv6 direct: mtu 1400" || !rows[0].Answers || rows[2].Answers || rows[1].To["node-4"] != "ok" {
		t.Errorf("as JSON: %+v", rows)
	}
}

func TestPathsOfManyNodesAreListedWhereTheyAreBad(t *testing.T) {
	records := map[string]api.NodePaths{}
	for n := range mostColumns {
		records[fmt.Sprintf("node-%d", n+1)] = api.NodePaths{Tested: true}
	}
	records["node-1"] = api.NodePaths{Tested: true, Faults: []api.Path{smallPath}}
	const list = `17 nodes, of which 1 run no probes; of 272 pairs 1 are bad and 32 unknown
+--------+--------+-----------------------+
|  FROM  |   TO   |         FOUND         |
+--------+--------+-----------------------+
| node-1 | node-2 | IPv6 direct: mtu 1400 |
+--------+--------+-----------------------+
node-1 to node-2, IPv6 by direct: the largest packet is 1400 of 1450
`
	if d := cmp.Diff(list, all(t, published(t, mostColumns+1, records), "")); d != "" {
		t.Error(d)
	}
}
