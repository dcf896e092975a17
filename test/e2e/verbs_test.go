package e2e

import (
	"errors"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/lab"
)

func codeOf(err error) uint {
	var told *types.Error
	if !errors.As(err, &told) {
		return 0
	}
	return told.Code
}

// TestVerbsThroughTheAgent is a container's life as a runtime leads it, mishaps included.
func TestVerbsThroughTheAgent(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 2, lab.VXLAN })
	r := newRuntime(t, l, "node-1", programs(t), "verbs")
	other := newRuntime(t, l, "node-2", programs(t), "verbs")
	warmUp(t, r)
	before := traceOf(t, l)

	old, far := r.container("old", "web"), other.container("far", "far")
	_, err := other.add(far)
	r.succeeds("ADD on the other node", err)
	first, err := r.add(old)
	r.succeeds("ADD", err)
	second, err := r.add(old)
	r.succeeds("second ADD", err)
	if d := cmp.Diff(first, second); d != "" {
		t.Errorf("second ADD of one container (-first +second):\n%s", d)
	}
	r.succeeds("CHECK", r.check(old))

	young := r.container("young", "web") // the pod again, before DEL came for its old container
	_, err = r.add(young)
	r.succeeds("ADD of the new container", err)
	r.succeeds("late DEL", r.del(old))
	r.succeeds("DEL again", r.del(old))
	r.succeeds("CHECK of the new container", r.check(young))

	lost := r.container("lost", "lost") // its DEL never comes
	_, err = r.add(lost)
	r.succeeds("ADD", err)
	r.succeeds("GC", r.gc([]string{"young"}))
	r.succeeds("CHECK of what lives", r.check(young))
	r.succeeds("CHECK on the other node", other.check(far))
	if _, left := leftOf(t, l, "verbs")["lost"]; left {
		t.Error("GC has left the lost container in etcd")
	}
	if out := run(t, l, "node-1", "ip", "netns", "exec", "lost", "ip", "-o", "link"); strings.Contains(out, "eth0") {
		t.Errorf("GC has left the lost container its interface: %s", out)
	}
	if err := r.check(lost); codeOf(err) != attach.CodeMissing {
		t.Errorf("CHECK of the lost container: %v, want code %d", err, attach.CodeMissing)
	}

	if err := l.StopEtcd(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.check(young); codeOf(err) != attach.CodeTryAgain || !strings.Contains(err.Error(), "etcd") {
		t.Errorf("CHECK without etcd: %v, want code 11 that names it", err)
	}
	if err := r.del(young); codeOf(err) != attach.CodeDatastore {
		t.Errorf("DEL without etcd: %v, want code %d", err, attach.CodeDatastore)
	}
	if out := run(t, l, "node-1", "ip", "netns", "exec", "young", "ip", "-o", "link"); strings.Contains(out, "eth0") {
		t.Errorf("DEL without etcd has left the interface: %s", out)
	}
	if err := l.StartEtcd(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.succeeds("DEL with etcd back", r.del(young))
	r.succeeds("DEL on the other node", other.del(far))
	for _, c := range []container{old, young, lost} {
		r.remove(c)
	}
	other.remove(far)
	settles(t, l, before)
}
