package memkernel_test

import (
	"net/netip"
	"testing"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/memkernel"
)

// TestIPIPDeviceIsSetDownAndNeverRemoved holds the device to what `internal/rtnl` says of the kernel's: it cannot be removed, and set down it keeps its addresses and
// loses its routes. Most kernels that run the tests have none.
func TestIPIPDeviceIsSetDownAndNeverRemoved(t *testing.T) {
	k := memkernel.New()
	tables := k.Tables()
	link := kernel.Link{Type: kernel.IPIP, MTU: 1480}
	mustPut(t, tables.Links, kernel.IPIPDevice, link)
	host, _ := k.Host()
	dev, up := host.Dev(kernel.IPIPDevice)
	if !up {
		t.Fatal("the device is not up")
	}
	addr := kernel.AddrKey{Link: kernel.IPIPDevice, Addr: netip.MustParsePrefix("10.0.0.1/32")}
	mustPut(t, tables.Addrs, addr, struct{}{})
	key := kernel.RouteKey{Dst: netip.MustParsePrefix("10.1.0.0/24")}
	mustPut(t, tables.Routes, key, kernel.Route{Dev: dev, Gateway: netip.MustParseAddr("172.16.0.2"), Onlink: true, Protocol: kernel.RouteProtocol})
	mustDrop(t, tables.Links, kernel.IPIPDevice, link)
	if host, _ = k.Host(); !k.Names()[kernel.IPIPDevice] {
		t.Error("the device was removed")
	}
	if _, up := host.Dev(kernel.IPIPDevice); up {
		t.Error("the device is up")
	}
	s := k.State()
	if _, left := s.Routes[key]; left {
		t.Error("its route is left")
	}
	if _, has := s.Addrs[addr]; !has || len(s.Links) != 0 {
		t.Errorf("addresses %v, links %v", s.Addrs, s.Links)
	}
	mustPut(t, tables.Links, kernel.IPIPDevice, link)
	host, _ = k.Host()
	if again, up := host.Dev(kernel.IPIPDevice); !up || again != dev {
		t.Errorf("set up again it is %v, was %v", again, dev)
	}
}
