package register_test

import (
	"testing"

	"github.com/muslin-cni/muslin/internal/register"
	"github.com/muslin-cni/muslin/pkg/api"
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
