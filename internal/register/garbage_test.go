package register_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/register"
	"github.com/muslin-cni/muslin/pkg/api"
)

// TestGarbageIsNamedAndStopsNoDel writes what nobody can read under one key at a time: a container goes all the same, and one that comes is
// either connected or told the key and what to do.
func TestGarbageIsNamedAndStopsNoDel(t *testing.T) {
	identity := api.IdentityKey("node-1")
	for _, c := range []struct {
		key  string
		adds bool // ADD goes on
	}{
		{api.IPAMConfigKey, false},
		{"/calico/resources/v3/projectcalico.org/nodes/node-1", false},
		{identity, false},
		{"/calico/resources/v3/projectcalico.org/ippools/other", true},
		{"/calico/resources/v3/projectcalico.org/ipreservations/r", true},
		{"/calico/ipam/v2/host/node-1/ipv4/block/10.0.0.64-26", true},
		{"/calico/ipam/v2/assignment/ipv4/block/10.0.0.64-26", true},
		{"/calico/ipam/v2/handle/net.other", true},
		{"/calico/resources/v3/projectcalico.org/workloadendpoints/default/node--1-cni-other-eth0", true},
		{"/calico/resources/v3/projectcalico.org/profiles/other", true},
	} {
		for _, memory := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, from memory %v", c.key, memory), func(t *testing.T) {
				w := newWorld(t)
				w.node("node-1", nil)
				w.pool("pool", "10.0.0.0/24", 26)
				w.putRaw(identity, `{"machineID":"m","nodeUID":"u"}`)
				cfg := register.Config{Client: w.c, Node: "node-1", Machine: "m"}
				seen := func() {}
				if memory {
					f := w.follow()
					cfg.Source, cfg.Committed = register.FromFeed(f), f.Commit
					seen = func() {
						if err := f.WaitFor(w.ctx(), w.revision()); err != nil {
							t.Fatal(err)
						}
					}
				}
				h := register.New(cfg)
				w.add(h, request("c"))
				w.putRaw(c.key, `{"spec":7,"state":7,"cidr":7,"block":7,"strictAffinity":7,"machineID":7`)
				seen()
				_, err := h.Add(w.ctx(), request("d"))
				var cni *attach.Error
				switch {
				case c.adds && err != nil:
					t.Errorf("ADD: %v", err)
				case !c.adds && (!errors.As(err, &cni) || !strings.Contains(cni.Msg, c.key) || !strings.Contains(cni.Details, c.key)):
					t.Errorf("ADD: %v, with the remedy %q", err, cni.Details)
				}
				if err := h.Del(w.ctx(), request("c")); err != nil {
					t.Errorf("DEL: %v", err)
				}
			})
		}
	}
}
