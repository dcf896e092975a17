package cni

import (
	"context"
	"fmt"
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
	if err := n.status(conf{members: usual + `,"policy_wait":"none"`}); err != nil {
		t.Errorf("where pods do not wait for an agent: %v", err)
	}
	(&fakeAgent{}).start(n)
	if err := n.status(conf{}); err != nil {
		t.Errorf("with an agent: %v", err)
	}
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
