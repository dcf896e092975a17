package cni

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/muslin-cni/muslin/internal/attach"
)

func (n *node) status(c conf) (err error) {
	n.t.Helper()
	c.version = "1.1.0"
	list := c.list(n.t)
	n.do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
		defer cancel()
		err = n.libcni().GetStatusNetworkList(ctx, list)
	})
	return err
}

func TestStatusSaysWhetherPodsCanBeAttached(t *testing.T) {
	n := newNode(t)
	if err := n.status(conf{}); codeOf(err) != attach.CodeNotAvailable || !strings.Contains(fmt.Sprint(err), "start it") {
		t.Errorf("without an agent: got %d %v, want code 50 with a remedy", codeOf(err), err)
	}
	n.write(attach.Socket, "")
	if err := n.status(conf{}); codeOf(err) != attach.CodeLimited {
		t.Errorf("with an agent that died: got %d %v, want code 51", codeOf(err), err)
	}
	n.do(func() { _ = os.Remove(attach.Socket) })
	agent := (&fakeAgent{}).start(n)
	if err := n.status(conf{}); err != nil {
		t.Errorf("with an agent: %v", err)
	}
	agent.mu.Lock()
	agent.status = &attach.Error{Code: attach.CodeNotAvailable, Msg: "the node name belongs to another machine", Details: "give it back"}
	agent.mu.Unlock()
	if err := n.status(conf{}); codeOf(err) != attach.CodeNotAvailable || !strings.Contains(fmt.Sprint(err), "another machine") {
		t.Errorf("with an agent that lost its name: got %d %v, want code 50 and why", codeOf(err), err)
	}
}

func TestStatusWithoutAgentAsksEtcd(t *testing.T) {
	t.Parallel() // it waits
	n := newNode(t)
	d := newDatastore(n)
	wants := func(what, says string) {
		t.Helper()
		c := d.conf(noWait)
		err := n.status(c)
		if says == "" && err != nil || says != "" && (codeOf(err) != attach.CodeNotAvailable || !strings.Contains(fmt.Sprint(err), says)) {
			t.Errorf("%s: got %d %v, want %q", what, codeOf(err), err, says)
		}
		out, err := n.run("muslin-ipam", fmt.Sprintf(`{"cniVersion":"1.1.0","name":"hc-net","type":"bridge",%s}`, c.members), "CNI_COMMAND=STATUS")
		if says == "" && err != nil || says != "" && (!strings.Contains(out, `"code": 50`) || !strings.Contains(out, says)) {
			t.Errorf("%s: muslin-ipam: %v, %s; want %q", what, err, out, says)
		}
	}
	wants("all is well", "")
	d.put("/calico/resources/v3/projectcalico.org/nodes/node-1", "")
	wants("no node", "node-1 is not registered")
	d.put("/calico/resources/v3/projectcalico.org/clusterinformations/default", "")
	wants("no cluster", "not ready")
	d.Stop()
	wants("no etcd", "etcd cannot be reached")
}

func TestStatusAsksAForeignIPAMToo(t *testing.T) {
	n := newNode(t)
	(&fakeAgent{}).start(n)
	if err := n.status(hostLocalConf("", "")); err != nil {
		t.Errorf("host-local is ready: %v", err)
	}
	if err := n.status(conf{members: `"ipam":{"type":"nobodys-ipam"}`}); codeOf(err) != attach.CodeBadEnv || !strings.Contains(fmt.Sprint(err), "nobodys-ipam") {
		t.Errorf("got %v, want an error that names the module", err)
	}
}
