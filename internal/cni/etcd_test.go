package cni

import (
	"fmt"
	"strings"
	"testing"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/etcdtest"
)

// A user of Muslin's needs no more than this in etcd.
var ours = []string{"/calico/", "/muslin/"}

func TestModuleUsesTLSAndTheUserOfItsHost(t *testing.T) {
	n, p := newNode(t), newPod(t, "c1", "nginx")
	s := etcdtest.NewTLS(t)
	s.EnableAuth("calico", "secret", ours...)
	d := seeded(n, s)
	files := s.Client()
	members := fmt.Sprintf(`,"etcd_key_file":%q,"etcd_cert_file":%q,"etcd_ca_cert_file":%q`, files.KeyFile, files.CertFile, files.CAFile)
	t.Setenv("ETCD_USERNAME", "calico")
	t.Setenv("ETCD_PASSWORD", "guess")
	_, err := n.add(d.conf(noWait+members), p)
	if codeOf(err) != attach.CodeDatastore || !strings.Contains(err.Error(), "authentication failed") || strings.Contains(err.Error(), "guess") {
		t.Errorf("ADD with a wrong password: got %d %v, want code 100 and why", codeOf(err), err)
	}
	t.Setenv("ETCD_PASSWORD", "secret")
	n.mustAdd(d.conf(noWait+members), p)
	n.mustDel(d.conf(members), p)
	d.wantNothing()
	stranger := etcdtest.NewTLS(t).Client()
	_, err = n.add(d.conf(noWait+strings.ReplaceAll(members, files.CAFile, stranger.CAFile)), p)
	if codeOf(err) != attach.CodeDatastore || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("ADD with a wrong CA: got %d %v, want code 100 and why", codeOf(err), err)
	}
	d.wantNothing()
}
