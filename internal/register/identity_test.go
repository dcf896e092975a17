package register_test

import (
	"errors"
	"testing"
	"time"

	"github.com/muslin-cni/muslin/internal/register"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
)

func TestAddDependsOnWhoHasTheNodesName(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", nil)
	w.pool("pool", "10.0.0.0/24", 26)
	w.add(w.handler("node-1"), request("before")) // nobody has it: a node of Calico's
	for _, c := range []struct {
		holder, machine string
		served          bool
	}{
		{"m1", "m1", true},
		{"m1", "m2", false},
		{"m1", "", false},
		{"m2", "m2", true},
	} {
		src := w.picture() // planned on what was true before
		put(w, api.IdentityKey("node-1"), &api.NodeIdentity{MachineID: c.holder, NodeUID: "u"})
		h := register.New(register.Config{Client: w.c, Source: always(src), Node: "node-1", Machine: c.machine})
		_, err := h.Add(w.ctx(), request("by-"+c.machine+"-of-"+c.holder))
		if status := register.New(register.Config{Client: w.c, Source: always(w.picture()), Node: "node-1", Machine: c.machine}).Serves(w.ctx()); (status == nil) != c.served {
			t.Errorf("machine %q under the name of %q: STATUS says %v", c.machine, c.holder, status)
		}
		if status := h.Ready(w.ctx()); (status == nil) != c.served {
			t.Errorf("machine %q under the name of %q: etcd says %v", c.machine, c.holder, status)
		}
		if (err == nil) != c.served {
			t.Errorf("machine %q under the name of %q: %v", c.machine, c.holder, err)
		}
	}
	if n := w.consistent(); n != 3 {
		t.Errorf("%d addresses, want 3", n)
	}
}

// Whoever attaches or detaches a pod on a node that is about to be deleted shows that it lives: the transactions that take back what it has compare the record.
func TestCommandOnANodeThatIsLeavingMakesItStay(t *testing.T) {
	for name, do := range map[string]func(w *world, h *register.Handler){
		"ADD": func(w *world, h *register.Handler) { w.add(h, request("c")) },
		"DEL": func(w *world, h *register.Handler) { w.del(h, request("before")) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.node("node-1", nil)
			w.pool("pool", "10.0.0.0/24", 26)
			put(w, api.IdentityKey("node-1"), &api.NodeIdentity{MachineID: "m", NodeUID: "u"})
			h := register.New(register.Config{Client: w.c, Node: "node-1", Machine: "m"})
			w.add(h, request("before"))
			node, nodeErr := store.Get[api.Node](w.ctx(), w.c, api.NodeKey("node-1"))
			id, idErr := store.Get[api.NodeIdentity](w.ctx(), w.c, api.IdentityKey("node-1"))
			gone, _, err := ipam.Depart(w.ctx(), w.c, "node-1", node, id)
			if err := errors.Join(nodeErr, idErr, err); err != nil {
				t.Fatal(err)
			}
			do(w, h)
			if _, err := ipam.ReleaseNode(w.ctx(), w.c, gone, time.Now); !errors.Is(err, ipam.ErrCameBack) {
				t.Errorf("what the node has is taken back all the same: %v", err)
			}
			if id, err := store.Get[api.NodeIdentity](w.ctx(), w.c, api.IdentityKey("node-1")); err != nil || id.Value.Leaving || id.Value.MachineID != "m" {
				t.Errorf("the record is %s, %v", id.Raw(), err)
			}
		})
	}
}
