package startup_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/muslin-cni/muslin/internal/etcdtest"
	"github.com/muslin-cni/muslin/internal/startup"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
)

const otherMachine = "22222222222222222222222222222222"

// startOn starts node-1 on a machine.
func startOn(t *testing.T, c *store.Client, machine string) error {
	t.Helper()
	d := deps(c, hostWith("eth0 172.30.1.1/24"))
	d.Machine = machine
	_, err := startup.Run(t.Context(), "node-1", settings(t), d)
	return err
}

const node1 = api.ResourcesRoot + "nodes/node-1"

// identity is whom node-1 belongs to, and the UID of its Node.
func identity(t *testing.T, c *store.Client) (api.NodeIdentity, string) {
	t.Helper()
	id, err := store.Get[api.NodeIdentity](t.Context(), c, api.IdentityKey("node-1"))
	if err != nil {
		t.Fatal(err)
	}
	n, err := store.Get[api.Node](t.Context(), c, node1)
	if err != nil {
		t.Fatal(err)
	}
	return *id.Value, n.Value.Metadata.UID
}

func wantHolder(t *testing.T, c *store.Client, machine string) {
	t.Helper()
	id, uid := identity(t, c)
	if id.MachineID != machine || id.NodeUID != uid || uid == "" {
		t.Errorf("record %+v, Node %s; want machine %s", id, uid, machine)
	}
}

func TestSecondMachineOfOneNameIsRefusedAndChangesNothing(t *testing.T) {
	srv := etcdtest.New(t)
	c := srv.Store()
	if err := startOn(t, c, machine); err != nil {
		t.Fatal(err)
	}
	wantHolder(t, c, machine)
	rev, err := c.Revision(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = startOn(t, c, otherMachine)
	if !errors.Is(err, ipam.ErrNotHolder) {
		t.Fatalf("the second machine: %v", err)
	}
	for _, part := range []string{machine, otherMachine, "node-1", "muslinctl delete node node-1", "muslinctl node adopt node-1", "NODENAME"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the error does not name %s: %v", part, err)
		}
	}
	if now, err := c.Revision(t.Context()); now != rev || err != nil {
		t.Errorf("it changed etcd: revision %d, was %d, %v", now, rev, err)
	}
	if err := startOn(t, c, machine); err != nil {
		t.Errorf("the first machine, again: %v", err)
	}
}

func TestMachineTakesOverANameWhoseNodeIsGone(t *testing.T) {
	for _, again := range []bool{false, true} {
		t.Run(fmt.Sprintf("made again %t", again), func(t *testing.T) {
			srv := etcdtest.New(t)
			c := srv.Store()
			if err := startOn(t, c, machine); err != nil {
				t.Fatal(err)
			}
			if _, err := srv.Etcd().Delete(t.Context(), node1); err != nil {
				t.Fatal(err)
			}
			if again {
				if _, err := srv.Etcd().Put(t.Context(), node1, `{"kind":"Node","metadata":{"name":"node-1","uid":"new"},"spec":{}}`); err != nil {
					t.Fatal(err)
				}
			}
			if err := startOn(t, c, otherMachine); err != nil {
				t.Fatal(err)
			}
			wantHolder(t, c, otherMachine)
			if err := startOn(t, c, machine); !errors.Is(err, ipam.ErrNotHolder) {
				t.Errorf("the machine that lost the name: %v", err)
			}
		})
	}
}

func TestAgentThatStartsOnANodeThatIsLeavingMakesItStay(t *testing.T) {
	srv := etcdtest.New(t)
	c := srv.Store()
	if err := startOn(t, c, machine); err != nil {
		t.Fatal(err)
	}
	node, nodeErr := store.Get[api.Node](t.Context(), c, node1)
	id, idErr := store.Get[api.NodeIdentity](t.Context(), c, api.IdentityKey("node-1"))
	gone, _, err := ipam.Depart(t.Context(), c, "node-1", node, id)
	if err := errors.Join(nodeErr, idErr, err); err != nil {
		t.Fatal(err)
	}
	if err := startOn(t, c, machine); err != nil {
		t.Fatal(err)
	}
	var txn store.Txn
	gone.Delete(&txn)
	if _, err := c.Commit(t.Context(), &txn); !errors.Is(err, store.ErrConflict) {
		t.Errorf("the Node is deleted all the same: %v", err)
	}
	if id, err := store.Get[api.NodeIdentity](t.Context(), c, api.IdentityKey("node-1")); err != nil || id.Value.Leaving {
		t.Errorf("the record is %s, %v", id.Raw(), err)
	}
}

func TestHolderKeepsItsNameWhenItsNodeIsMadeAgain(t *testing.T) {
	srv := etcdtest.New(t)
	c := srv.Store()
	if err := startOn(t, c, machine); err != nil {
		t.Fatal(err)
	}
	if _, err := srv.Etcd().Delete(t.Context(), node1); err != nil {
		t.Fatal(err)
	}
	for _, node := range []string{
		"", // by ourselves
		`{"kind":"Node","metadata":{"name":"node-1","uid":"another"},"spec":{}}`,
		`{"kind":"Node","metadata":{"name":"node-1"},"spec":{}}`, // by hand
	} {
		if node != "" {
			if _, err := srv.Etcd().Put(t.Context(), node1, node); err != nil {
				t.Fatal(err)
			}
		}
		if err := startOn(t, c, machine); err != nil {
			t.Fatal(err)
		}
		wantHolder(t, c, machine)
	}
	if id, _ := identity(t, c); id.NodeUID == "another" {
		t.Error("a Node without uid was not given one of its own")
	}
}

func TestNodeOfCalicoIsTakenUpWithItsUID(t *testing.T) {
	srv := etcdtest.New(t)
	c := srv.Store()
	if _, err := srv.Etcd().Put(t.Context(), node1, `{"kind":"Node","metadata":{"name":"node-1","uid":"calicos"},"spec":{}}`); err != nil {
		t.Fatal(err)
	}
	if err := startOn(t, c, machine); err != nil {
		t.Fatal(err)
	}
	wantHolder(t, c, machine)
	if _, uid := identity(t, c); uid != "calicos" {
		t.Errorf("the Node's uid is %s now", uid)
	}
}

func TestOneOfManyMachinesThatStartTogetherGetsTheName(t *testing.T) {
	srv := etcdtest.New(t)
	errs := make([]error, 6)
	var wg sync.WaitGroup
	for i := range errs {
		c := srv.Store()
		wg.Go(func() { errs[i] = startOn(t, c, fmt.Sprint("machine-", i)) })
	}
	wg.Wait()
	var winners []string
	for i, err := range errs {
		switch {
		case err == nil:
			winners = append(winners, fmt.Sprint("machine-", i))
		case !errors.Is(err, ipam.ErrNotHolder):
			t.Errorf("machine-%d: %v", i, err)
		}
	}
	if len(winners) != 1 {
		t.Fatalf("these have the name: %v", winners)
	}
	wantHolder(t, srv.Store(), winners[0])
}

func TestNameThatWasAdoptedWithoutUIDIsFreeOnceItsNodeIsGone(t *testing.T) {
	srv := etcdtest.New(t)
	c := srv.Store()
	if _, err := srv.Etcd().Put(t.Context(), node1, `{"kind":"Node","metadata":{"name":"node-1"},"spec":{}}`); err != nil {
		t.Fatal(err)
	}
	if err := startup.Adopt(t.Context(), c, "node-1", machine); err != nil {
		t.Fatal(err)
	}
	if err := startOn(t, c, otherMachine); !errors.Is(err, ipam.ErrNotHolder) {
		t.Errorf("while the Node is there: %v", err)
	}
	if _, err := srv.Etcd().Delete(t.Context(), node1); err != nil {
		t.Fatal(err)
	}
	if err := startOn(t, c, otherMachine); err != nil {
		t.Errorf("once it is gone: %v", err)
	}
}

func TestAdoptGivesANameToAnotherMachine(t *testing.T) {
	srv := etcdtest.New(t)
	c := srv.Store()
	if err := startup.Adopt(t.Context(), c, "node-1", otherMachine); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a node that does not exist: %v", err)
	}
	for _, record := range []string{"", "{"} { // as it is, and one that cannot be read
		if err := startOn(t, c, machine); err != nil {
			t.Fatal(err)
		}
		if record != "" {
			if _, err := srv.Etcd().Put(t.Context(), api.IdentityKey("node-1"), record); err != nil {
				t.Fatal(err)
			}
			if err := startOn(t, c, machine); err == nil || !strings.Contains(err.Error(), "delete the key") {
				t.Errorf("with a record that cannot be read: %v", err)
			}
		}
		if err := startup.Adopt(t.Context(), c, "node-1", otherMachine); err != nil {
			t.Fatal(err)
		}
		if err := startOn(t, c, otherMachine); err != nil {
			t.Errorf("the new holder: %v", err)
		}
		wantHolder(t, c, otherMachine)
		if err := startup.Adopt(t.Context(), c, "node-1", machine); err != nil {
			t.Fatal(err)
		}
	}
}
