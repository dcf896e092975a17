package cni

import (
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/muslin-cni/muslin/internal/hostside"
)

// result describes what is in the kernel: both interfaces, and the pod's addresses and routes as they are. No address has a
// gateway, since the next hop is no host's and is in no subnet of the pod's.
func (a *attachment) result() *types100.Result {
	res := &types100.Result{
		CNIVersion: types100.ImplementedSpecVersion,
		Interfaces: []*types100.Interface{
			{Name: a.pair.host.Name, Mac: hostside.MAC, Mtu: a.pair.mtu},
			{Name: a.pair.pod.Name, Mac: a.mac.String(), Mtu: a.pair.mtu, Sandbox: a.req.Netns},
		},
		DNS: a.conf.DNS,
	}
	for _, addr := range a.addrs {
		const ofPod = 1 // in Interfaces
		res.IPs = append(res.IPs, &types100.IPConfig{
			Interface: types100.Int(ofPod), Address: *ipNet(netip.PrefixFrom(addr, addr.BitLen())),
		})
	}
	for _, r := range podRoutes(a.addrs, a.dsts) {
		res.Routes = append(res.Routes, &types.Route{Dst: *ipNet(r.Dst), GW: r.Gateway.AsSlice()})
	}
	return after(a.prev, res)
}

// after puts our result behind that of the plugins before us, which has to be passed on (CNI specification 1.1, "ADD"). It may change ours.
func after(prev, ours *types100.Result) *types100.Result {
	if prev == nil {
		return ours
	}
	for _, ip := range ours.IPs {
		ip.Interface = types100.Int(len(prev.Interfaces) + *ip.Interface)
	}
	ours.Interfaces = slices.Concat(prev.Interfaces, ours.Interfaces)
	ours.IPs = slices.Concat(prev.IPs, ours.IPs)
	ours.Routes = slices.Concat(prev.Routes, ours.Routes)
	if ours.DNS.IsEmpty() {
		ours.DNS = prev.DNS
	}
	return ours
}
