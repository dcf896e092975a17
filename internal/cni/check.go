package cni

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/cni/netconf"
	"github.com/muslin-cni/muslin/internal/hostside"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/rtnl"
)

// Check reports whether the pod still is as its ADD left it (CNI spec 1.1, "CHECK"): the interface with its MAC, MTU, addresses and
// routes, its other side on the host, the allocation and the endpoint in etcd, and the host's routes. It changes nothing. Errors are
// *types.Error: CodeMissing names everything that is wrong in the pod and on the host, or the first thing in etcd.
func (p *Plugin) Check(args *skel.CmdArgs) error { return netconf.AsCNI(p.check(args)) }

func (p *Plugin) check(args *skel.CmdArgs) error {
	ctx, cancel := context.WithTimeout(context.Background(), p.Limits.Work)
	defer cancel()
	conf, err := netconf.Parse(args.StdinData)
	if err != nil {
		return err
	}
	prev, err := netconf.PrevResult(args.StdinData)
	if err != nil {
		return err
	}
	req, err := conf.Request(attach.Check, args)
	if err != nil {
		return err
	}
	want, err := expect(prev, req)
	if err != nil {
		return err
	}
	found, err := inspect(want)
	if err != nil {
		return failure(attach.CodeKernel, err, "")
	}
	if conf.ForeignIPAM() {
		req.Addrs = want.addrs
	}
	door, err := p.open(&conf, req, args, nil)
	if err != nil {
		return err
	}
	defer door.close()
	reply, err := door.query(ctx, req)
	if err != nil {
		return err
	}
	if diff := different(reply.Addrs, want.addrs); diff != "" {
		return want.missing("etcd has", []string{diff})
	}
	if err := door.confirm(ctx, hostside.Workload{Dev: found, MAC: want.mac, Addrs: want.addrs}); err != nil {
		return want.name(err)
	}
	return delegate(ctx, "CHECK", &conf, args)
}

// expected is what CHECK holds a pod to.
type expected struct {
	req   attach.Request
	mac   kernel.MAC
	mtu   int // 0: the result does not say
	addrs []netip.Addr
	dsts  []netip.Prefix // that it has routes to by way of the host; none: everything
}

// expect reads it from the ADD's result, in which plugins after ours may have listed more.
func expect(prev *types100.Result, req attach.Request) (expected, error) {
	want := expected{req: req}
	pod := slices.IndexFunc(prev.Interfaces, func(i *types100.Interface) bool { return i.Name == req.IfName && i.Sandbox != "" })
	if pod < 0 {
		return want, badResult(fmt.Sprintf("lists no interface %s of the pod", req.IfName))
	}
	mac, err := kernel.ParseMAC(prev.Interfaces[pod].Mac)
	if err != nil {
		return want, badResult(err.Error())
	}
	want.mac, want.mtu = mac, prev.Interfaces[pod].Mtu
	for _, ip := range prev.IPs {
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		if ip.Interface != nil && *ip.Interface != pod {
			continue
		}
		if !ok {
			return want, badResult(fmt.Sprintf("lists the address %q", ip.Address.IP))
		}
		want.addrs = append(want.addrs, addr.Unmap())
	}
	for _, r := range prev.Routes {
		gw, _ := netip.AddrFromSlice(r.GW)
		if gw = gw.Unmap(); gw.String() == hostside.Gateway || gw.String() == gateway6 { // else it is another plugin's
			dst, _ := netip.ParsePrefix(r.Dst.String())
			want.dsts = append(want.dsts, dst)
		}
	}
	if len(want.addrs) == 0 {
		return want, badResult(fmt.Sprintf("lists no address of %s", req.IfName))
	}
	return want, nil
}

func badResult(what string) error {
	return &attach.Error{Code: attach.CodeBadConfig, Msg: `network configuration: key "prevResult" ` + what, Details: "it is to be the result of the container's ADD"}
}

// missing is the error that names what is wrong.
func (w expected) missing(where string, what []string) error {
	return &attach.Error{
		Code: attach.CodeMissing, Msg: fmt.Sprintf("check container %s: %s %s", w.req.ContainerID, where, strings.Join(what, "; ")),
		Details: "delete the pod; what replaces it is attached anew",
	}
}

// name says whom an error is about that tells only what is missing.
func (w expected) name(err error) error {
	var told *attach.Error
	if !errors.As(err, &told) || told.Code != attach.CodeMissing {
		return err
	}
	return &attach.Error{Code: told.Code, Msg: fmt.Sprintf("check container %s: %s", w.req.ContainerID, told.Msg), Details: told.Details}
}

// inspect holds both sides of the pair to what is expected, and returns the host's.
func inspect(w expected) (kernel.Dev, error) {
	hostLinks, err := openLinks()
	if err != nil {
		return kernel.Dev{}, err
	}
	defer hostLinks.Close()
	ns, err := openNetns(w.req.Netns)
	if errors.Is(err, errNoNetns) {
		return kernel.Dev{}, w.missing("the pod's network namespace is gone:", []string{w.req.Netns})
	}
	if err != nil {
		return kernel.Dev{}, failure(attach.CodeBadEnv, err, "CNI_NETNS names the pod's network namespace")
	}
	defer ns.close()
	podLinks, err := openLinksIn(ns)
	if err != nil {
		return kernel.Dev{}, err
	}
	defer podLinks.Close()
	pod, wrong, err := w.inspectPod(podLinks)
	if err != nil {
		return kernel.Dev{}, err
	}
	if len(wrong) > 0 {
		return kernel.Dev{}, w.missing("in the pod's network namespace "+w.req.Netns, wrong)
	}
	host, wrong, err := w.inspectHost(hostLinks, pod)
	if err != nil {
		return kernel.Dev{}, err
	}
	if len(wrong) > 0 {
		return kernel.Dev{}, w.missing("on the host", wrong)
	}
	return host, nil
}

// inspectPod looks at the pod's side and lists what is wrong with it.
func (w expected) inspectPod(h *netlink.Handle) (pod *netlink.LinkAttrs, wrong []string, err error) {
	link, err := h.LinkByName(w.req.IfName)
	if isGone(err) {
		return nil, []string{"the interface " + w.req.IfName + " is missing"}, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("look at interface %s in the pod: %w", w.req.IfName, err)
	}
	pod, wrong = link.Attrs(), w.inspectDevice(link)
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	addrs, err := h.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, nil, fmt.Errorf("list addresses of %s in the pod: %w", pod.Name, err)
	}
	for _, a := range w.addrs {
		want := ipNet(netip.PrefixFrom(a, a.BitLen())).String()
		if !slices.ContainsFunc(addrs, func(have netlink.Addr) bool { return have.IPNet.String() == want }) {
			say("the address %s is missing on %s", want, pod.Name)
		}
	}
	routes, err := h.RouteList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, nil, fmt.Errorf("list routes of %s in the pod: %w", pod.Name, err)
	}
	for _, r := range podRoutes(w.addrs, w.dsts) {
		if !slices.ContainsFunc(routes, func(have netlink.Route) bool { return isRoute(r, have) }) {
			say("the route %v dev %s is missing", r, pod.Name)
		}
	}
	return pod, wrong, nil
}

// inspectDevice looks at the pod's device without what is on it. One that is no veth device may have no MAC at all.
func (w expected) inspectDevice(link netlink.Link) (wrong []string) {
	pod := link.Attrs()
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	if link.Type() != "veth" {
		say("the interface %s is a %s, want a veth device", pod.Name, link.Type())
	}
	if !slices.Equal(pod.HardwareAddr, w.mac[:]) {
		say("the interface %s has the MAC %v, want %v", pod.Name, cmp.Or(pod.HardwareAddr.String(), "none"), w.mac)
	}
	if w.mtu != 0 && pod.MTU != w.mtu {
		say("the interface %s has the MTU %d, want %d", pod.Name, pod.MTU, w.mtu)
	}
	if pod.RawFlags&unix.IFF_UP == 0 {
		say("the interface %s is down", pod.Name)
	}
	return wrong
}

// isRoute reports whether the kernel's route is r.
func isRoute(r rtnl.InsideRoute, have netlink.Route) bool {
	dst := r.Dst.Addr().IsUnspecified() && have.Dst == nil || have.Dst != nil && have.Dst.String() == r.Dst.String()
	gw, _ := netip.AddrFromSlice(have.Gw)
	return dst && gw.Unmap() == r.Gateway
}

// inspectHost looks at the host's side and lists what is wrong with it.
func (w expected) inspectHost(h *netlink.Handle, pod *netlink.LinkAttrs) (dev kernel.Dev, wrong []string, err error) {
	link, err := h.LinkByName(w.req.HostIf)
	if isGone(err) {
		return dev, []string{"the interface " + w.req.HostIf + " is missing"}, nil
	}
	if err != nil {
		return dev, nil, fmt.Errorf("look at interface %s: %w", w.req.HostIf, err)
	}
	host := link.Attrs()
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	if host.ParentIndex != pod.Index || pod.ParentIndex != host.Index {
		say("the interface %s is not the other side of the pod's %s", host.Name, pod.Name)
	}
	if host.RawFlags&unix.IFF_UP == 0 {
		say("the interface %s is down", host.Name)
	}
	if host.MTU != pod.MTU {
		say("the interface %s has the MTU %d, and the pod's %s %d", host.Name, host.MTU, pod.Name, pod.MTU)
	}
	return kernel.Dev{Name: host.Name, Index: host.Index}, wrong, nil
}

// different says how addresses that were found differ from those that are wanted; "" if they do not.
func different(have, want []netip.Addr) string {
	h, w := slices.Clone(have), slices.Clone(want)
	slices.SortFunc(h, netip.Addr.Compare)
	slices.SortFunc(w, netip.Addr.Compare)
	if slices.Equal(h, w) {
		return ""
	}
	return fmt.Sprintf("the addresses %v, want %v", h, w)
}
