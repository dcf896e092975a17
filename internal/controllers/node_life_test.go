package controllers

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-cni/muslin/pkg/api"
)

// life is a node that is worked on while another one goes on as ever.
type life struct {
	*world
	ns, in, other string
	rounds        int
}

// round waits until the audit has freed something new for the second time, so that all that was a leak before has been freed.
func (l *life) round() {
	l.Helper()
	for range 2 {
		l.rounds++
		block := fmt.Sprintf("10.0.9.%d/30", 4*l.rounds)
		l.address(l.ns, "canary", "m2", block)
		l.until("the audit has come round", func() bool { return l.freed(block) })
	}
}

// have checks what is in use.
func (l *life) have(when string, blocks map[string]bool) {
	l.Helper()
	for block, used := range blocks {
		if l.freed(block) == used {
			l.Errorf("%s: %s is in use %t, want %t", when, block, !used, used)
		}
	}
}

// come makes a node of that name report, as a kubelet that has registered it.
func (l *life) come() {
	l.Helper()
	must[*corev1.Node](l.world)(l.kube.CoreV1().Nodes().Create(l.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: l.in}}, metav1.CreateOptions{}))
	l.ready(l.in, corev1.ConditionTrue)
}

// A node is drained, rebooted, and made anew under its name. What its pods leave behind comes back, what one may be using never does.
func TestNodeThatIsDrainedRebootedAndReimagedGivesBackWhatNobodyUses(t *testing.T) {
	w, ns, in := auditWorld(t)
	l := &life{world: w, ns: ns, in: in, other: w.kubeNode("-other", nil)}
	w.node("m2", l.other, "")
	for name, block := range map[string]string{"web": "10.0.0.0/30", "daemon": "10.0.0.4/30"} {
		w.pod(ns, name, in, nil)
		w.address(ns, name, "n1", block)
	}
	w.start()
	w.watched(1, "nodes", "pods")

	// Drained: its DEL was lost. The DaemonSet's pod stays.
	w.dropPod(ns, "web")
	l.round()
	l.have("drained", map[string]bool{"10.0.0.0/30": false, "10.0.0.4/30": true})

	// Rebooted: nothing is heard of it, and pods that were deleted meanwhile may still run there. Afterwards the pod has a new container, and a
	// new address; the old container's is its agent's to free, which knows that its interface is gone.
	w.pod(ns, "job", in, nil)
	w.address(ns, "job", "n1", "10.0.0.8/30")
	w.ready(in, corev1.ConditionUnknown)
	w.dropPod(ns, "job")
	l.round()
	l.have("while it is away", map[string]bool{"10.0.0.4/30": true, "10.0.0.8/30": true})
	w.holding("n1", "10.0.0.12/30", "net.c-daemon-2", map[string]string{api.AttrNode: "n1", api.AttrNamespace: ns, api.AttrPod: "daemon"})
	w.ready(in, corev1.ConditionTrue)
	l.round()
	l.have("back again", map[string]bool{"10.0.0.4/30": true, "10.0.0.8/30": false, "10.0.0.12/30": true})

	// Re-imaged: Kubernetes' node goes with its pods, and the Node with all that it held. Another machine comes under the name.
	w.dropPod(ns, "daemon")
	w.dropNode(in)
	w.until("the Node is gone", func() bool { return w.get(api.NodeKey("n1")) == "" })
	w.until("its addresses came back", func() bool { return w.freed("10.0.0.4/30") && w.freed("10.0.0.12/30") })
	l.come()
	w.node("n1", in, "")
	w.pod(ns, "daemon", in, nil)
	w.address(ns, "daemon", "n1", "10.0.0.4/30") // it may get any address that came back
	l.round()
	l.have("made anew", map[string]bool{"10.0.0.4/30": true})
	w.sound()
}

// A machine that comes back under its name before anybody saw that it was gone keeps what its pods use.
func TestNodeThatIsMadeAnewAtOnceLosesNoAddressInUse(t *testing.T) {
	w, ns, in := auditWorld(t)
	l := &life{world: w, ns: ns, in: in, other: w.kubeNode("-other", nil)}
	w.node("m2", l.other, "")
	w.pod(ns, "static", in, nil)
	w.address(ns, "static", "n1", "10.0.0.0/30")
	w.start()
	w.watched(1, "nodes", "pods")
	for range 3 {
		w.dropNode(in)
		l.come()
		l.round()
		l.have("made anew", map[string]bool{"10.0.0.0/30": true})
	}
}
