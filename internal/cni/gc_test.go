package cni

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/attachlock"
)

// gc calls the plugin's GC as a runtime does that has lost its own cache: libcni would call DEL for what it remembers.
func (n *node) gc(c conf, valid ...string) (string, error) {
	n.t.Helper()
	list := []types.GCAttachment{}
	for _, id := range valid {
		list = append(list, types.GCAttachment{ContainerID: id, IfName: "eth0"})
	}
	raw, err := json.Marshal(list)
	if err != nil {
		n.t.Fatal(err)
	}
	c.version = "1.1.0"
	var conf map[string]json.RawMessage
	if err := json.Unmarshal(c.list(n.t).Plugins[0].Bytes, &conf); err != nil {
		n.t.Fatal(err)
	}
	conf["cniVersion"], conf["cni.dev/valid-attachments"] = []byte(`"1.1.0"`), raw
	conf["name"] = fmt.Appendf(nil, "%q", c.list(n.t).Name)
	stdin, err := json.Marshal(conf)
	if err != nil {
		n.t.Fatal(err)
	}
	return n.run("muslin", string(stdin), "CNI_COMMAND=GC")
}

func (n *node) mustGC(c conf, valid ...string) {
	n.t.Helper()
	if out, err := n.gc(c, valid...); err != nil || out != "" {
		n.t.Fatalf("GC: %v, %s; want success without a word", err, out)
	}
}

// handles returns the handles in etcd.
func (d *datastore) handles() (out []string) {
	for _, key := range d.keys() {
		if id, ok := strings.CutPrefix(key, "/calico/ipam/v2/handle/"); ok {
			out = append(out, id)
		}
	}
	return out
}

func TestGCFreesWhatNoLongerLives(t *testing.T) {
	n, a, b := newNode(t), newPod(t, "a", "nginx"), newPod(t, "b", "other")
	d := newDatastore(n)
	n.mustAdd(d.conf(noWait), a)
	n.mustAdd(d.conf(noWait), b)
	n.mustGC(d.conf(""), "b", "a")
	if got := len(n.links()); got != 2 || d.allocated() != 2 {
		t.Fatalf("GC with all of them: %d links and %d addresses, want both", got, d.allocated())
	}
	n.mustGC(d.conf(""), "b")
	if diff := cmp.Diff([]string{"hc-net.b"}, d.handles()); diff != "" || d.allocated() != 1 || len(n.links()) != 1 {
		t.Errorf("after GC: links %v, %d addresses, handles (-want +got):\n%s", n.links(), d.allocated(), diff)
	}
	if err := n.check(d.conf(noWait), b); err != nil {
		t.Errorf("CHECK of the one that lives: %v", err)
	}
	n.mustGC(d.conf(""))
	d.wantNothing()
	if got := n.links(); len(got) > 0 {
		t.Errorf("left behind: %v", got)
	}
}

func TestGCLeavesOtherNodesAndOtherNetworksAlone(t *testing.T) {
	n := newNode(t)
	d := newDatastore(n)
	d.put("/calico/resources/v3/projectcalico.org/nodes/node-2", strings.Replace(seed["/calico/resources/v3/projectcalico.org/nodes/node-1"], "node-1", "node-2", 1))
	node2 := d.conf(noWait)
	node2.members = strings.Replace(node2.members, `"node-1"`, `"node-2"`, 1)
	n.mustAdd(node2, newPod(t, "far", "far"))
	for _, c := range []struct{ network, container string }{{"hc-net", "c1"}, {"hc-net.a", "c2"}, {"hc-net2", "c3"}, {"hc", "c4"}} {
		cf := d.conf(noWait)
		cf.name = c.network
		n.mustAdd(cf, newPod(t, c.container, "pod-"+c.container))
	}
	bridge := d.conf("")
	foreign := func(network, container string) {
		t.Helper()
		stdin := fmt.Sprintf(`{"cniVersion":"1.1.0","name":%q,"type":"bridge",%s}`, network, bridge.members)
		if out, err := n.run("muslin-ipam", stdin, "CNI_COMMAND=ADD", "CNI_CONTAINERID="+container, "CNI_NETNS=/run/netns/x", "CNI_IFNAME=eth0"); err != nil {
			t.Fatalf("ADD: %v, %s", err, out)
		}
	}
	foreign("hc-net", "c5")
	foreign("hc-net.a", "c6") // could as well be hc-net's container a.c6: nobody knows

	n.mustGC(d.conf(""))
	want := []string{"hc-net.a.c2", "hc-net.a.c6", "hc-net.far", "hc-net2.c3", "hc.c4"}
	if diff := cmp.Diff(want, d.handles()); diff != "" {
		t.Errorf("after GC of hc-net (-want +got):\n%s", diff)
	}
	dotted := d.conf("")
	dotted.name = "hc-net.a"
	n.mustGC(dotted)
	want = []string{"hc-net.a.c6", "hc-net.far", "hc-net2.c3", "hc.c4"}
	if diff := cmp.Diff(want, d.handles()); diff != "" {
		t.Errorf("after GC of hc-net.a (-want +got):\n%s", diff)
	}
}

func TestGCOfAnOldContainerSparesTheNewOne(t *testing.T) {
	n, old, young := newNode(t), newPod(t, "old", "nginx"), newPod(t, "young", "nginx")
	d := newDatastore(n)
	n.mustAdd(d.conf(noWait), old)
	n.mustAdd(d.conf(noWait), young)
	n.mustGC(d.conf(""), "young")
	if diff := cmp.Diff([]string{"hc-net.young"}, d.handles()); diff != "" || d.allocated() != 1 {
		t.Errorf("%d addresses, handles (-want +got):\n%s", d.allocated(), diff)
	}
	if err := n.check(d.conf(noWait), young); err != nil {
		t.Errorf("CHECK of the new container: %v", err)
	}
}

func TestGCLeavesWhatACommandIsAtWorkOn(t *testing.T) {
	n, a, b := newNode(t), newPod(t, "a", "nginx"), newPod(t, "b", "other")
	d := newDatastore(n)
	n.mustAdd(d.conf(noWait), a)
	n.mustAdd(d.conf(noWait), b)
	var lock *attachlock.Lock
	n.do(func() {
		var err error
		if lock, err = attachlock.Acquire(context.Background(), attach.LockDir, "calic440f455693"); err != nil {
			t.Fatal(err)
		}
	})
	n.mustGC(d.conf(""))
	if diff := cmp.Diff([]string{"hc-net.a"}, d.handles()); diff != "" {
		t.Errorf("after GC (-want +got):\n%s", diff)
	}
	if err := n.check(d.conf(noWait), a); err != nil {
		t.Errorf("CHECK of the one at work on: %v", err)
	}
	n.do(lock.Release)
	n.mustGC(d.conf(""))
	d.wantNothing()
}

func TestGCNeedsAListAndAnEmptyOneIsOne(t *testing.T) {
	n := newNode(t)
	d := newDatastore(n)
	for _, plugin := range []string{"muslin", "muslin-ipam"} {
		for _, c := range []struct{ list, says string }{
			{"", `"code": 7`},
			{`,"cni.dev/valid-attachments":{}`, `"code": 6`},
			{`,"cni.dev/valid-attachments":[{"ifname":"eth0"}]`, "without a containerID"},
			{`,"cni.dev/valid-attachments":null`, ""},
			{`,"cni.dev/valid-attachments":[]`, ""},
		} {
			out, err := n.run(plugin, fmt.Sprintf(`{"cniVersion":"1.1.0","name":"hc-net","type":"muslin",%s%s}`, d.conf("").members, c.list), "CNI_COMMAND=GC")
			if (err == nil) != (c.says == "") || !strings.Contains(out, c.says) {
				t.Errorf("%s with %q: %v, %s; want %q", plugin, c.list, err, out, c.says)
			}
		}
		if out, err := n.run(plugin, fmt.Sprintf(`{"cniVersion":"1.0.0","name":"hc-net","type":"muslin",%s}`, d.conf("").members), "CNI_COMMAND=GC"); err == nil || !strings.Contains(out, "does not allow GC") {
			t.Errorf("%s at version 1.0.0: %v, %s", plugin, err, out)
		}
	}
}

func TestGCThroughTheAgentRemovesInterfacesBeforeAddresses(t *testing.T) {
	n, p := newNode(t), newPod(t, "c1", "nginx")
	a := (&fakeAgent{stale: []attach.Stale{{ContainerID: "c1", HandleRev: 3, HostIf: "calic440f455693", Endpoint: "e", EndpointRev: 3}}}).start(n)
	n.mustAdd(conf{}, p)
	n.mustGC(conf{}, "c2")
	if got := n.links(); len(got) > 0 || a.registered() != 0 {
		t.Errorf("after GC: links %v, %d pods with the agent", got, a.registered())
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	var verbs []attach.Verb
	for _, r := range a.requests {
		verbs = append(verbs, r.Verb)
	}
	if want := []attach.Verb{attach.Add, attach.GC, attach.GC, attach.Free}; !slices.Equal(verbs, want) {
		t.Errorf("the agent was asked %v, want %v", verbs, want)
	}
	if diff := cmp.Diff([]attach.Attachment{{ContainerID: "c2", IfName: "eth0"}}, a.requests[1].Valid); diff != "" {
		t.Errorf("valid attachments (-want +got):\n%s", diff)
	}
}
