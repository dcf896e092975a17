package cni

import (
	"strings"
	"testing"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/pkg/api"
)

func TestModuleAddsNothingUnderAnotherMachinesName(t *testing.T) {
	n, p, q := newNode(t), newPod(t, "c1", "first"), newPod(t, "c2", "second")
	d := newDatastore(n)
	hold := func(machine string) {
		t.Helper()
		if _, err := d.etcd.Put(t.Context(), api.IdentityKey("node-1"), `{"machineID":"`+machine+`","nodeUID":"2"}`); err != nil {
			t.Fatal(err)
		}
	}
	n.write("/run/muslin/machine-id", "mine\n") // as the agent says it
	hold("mine")
	n.mustAdd(d.conf(noWait), p)
	hold("another")
	if _, err := n.add(d.conf(noWait), q); codeOf(err) != attach.CodeNotAvailable || !strings.Contains(err.Error(), "belongs to machine another") {
		t.Errorf("ADD: got %d %v, want code 50 that names the machine", codeOf(err), err)
	}
	n.mustDel(d.conf(""), p) // what is its own it may take out
	if count := d.allocated(); count > 0 {
		t.Errorf("%d addresses are left", count)
	}
}
