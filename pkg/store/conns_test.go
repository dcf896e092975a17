package store_test

import (
	"net/netip"
	"testing"

	"github.com/muslin-cni/muslin/internal/etcdtest"
	"github.com/muslin-cni/muslin/pkg/store"
)

func TestConnectionsFromAddressesThatAreGoneAreMadeAnew(t *testing.T) {
	p := newProxy(t, etcdtest.New(t).Endpoint())
	c := open(t, store.Config{Endpoints: []string{"http://" + p.addr}, Timeout: moment})
	own := netip.MustParseAddr("127.0.0.1")
	call := func() {
		t.Helper()
		etcdtest.Until(t, "etcd answers", func() bool { _, err := c.Revision(t.Context()); return err == nil })
	}
	call()
	for i := range int32(3) {
		c.Drop(func(a netip.Addr) bool { return a != own })
		call()
		if n := p.taken.Load(); n != i+1 {
			t.Fatalf("%d connections, want %d: that of an address which is there stays", n, i+1)
		}
		c.Drop(func(a netip.Addr) bool { return a == own })
		etcdtest.Until(t, "there is another connection", func() bool { return p.taken.Load() == i+2 })
		call()
	}
}
