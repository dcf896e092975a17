package feed

import (
	"fmt"
	"testing"

	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/pkg/api"
)

// holder waits until the feed says that the node's name belongs to the machine; "": to none.
func (r *rig) holder(machine string) {
	r.t.Helper()
	nettest.Eventually(r.t, func() error {
		s, _ := r.feed.Snapshot()
		got := ""
		if e := s.Identity("node-1"); e.Exists() {
			got = e.Value.MachineID
		}
		if got != machine {
			return fmt.Errorf("the name is %q's, want %q's", got, machine)
		}
		return nil
	})
}

func TestIdentityRecordsAreFollowedBesideTheRest(t *testing.T) {
	r := newRig(t)
	key := api.IdentityKey("node-1")
	r.put(key, `{"machineID":"m1"}`)
	r.run()
	r.holder("m1")
	r.put(key, `{"machineID":"m2"}`)
	r.holder("m2")
	r.del(key)
	r.holder("")
	r.put(key, "{")
	nettest.Eventually(t, func() error {
		s, _ := r.feed.Snapshot()
		if _, bad := s.BadAt(key); !bad {
			return fmt.Errorf("a record that cannot be read is not named")
		}
		return nil
	})
	r.put(key, `{"machineID":"m3"}`)
	r.holder("m3")
}

func TestIdentityRecordsOutliveARestartOfEtcd(t *testing.T) {
	r := newRig(t)
	key := api.IdentityKey("node-1")
	r.put(key, `{"machineID":"m1"}`)
	r.run()
	r.holder("m1")
	r.etcd.Stop()
	r.etcd.Start()
	r.put(key, `{"machineID":"m2"}`)
	r.put(nodeKey(1), nodeJSON(1, "a"))
	r.holder("m2")
}
