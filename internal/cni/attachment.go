package cni

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/cni/netconf"
	"github.com/muslin-cni/muslin/internal/fault"
	"github.com/muslin-cni/muslin/internal/hostside"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/rtnl"
)

// attachment is one ADD under way.
type attachment struct {
	conf  netconf.Conf
	req   attach.Request
	wish  pairWish
	netns *netns
	queue kernelQueue
	door  door // nil until it is open
	log   *slog.Logger
	prev  *types100.Result // of the plugins before this one; nil if there were none

	foreign *foreignIPAM   // nil: the addresses are the handler's to give
	dsts    []netip.Prefix // that the pod shall have routes to; none: everything
	asked   bool           // the request has been sent: something may be in etcd

	pair  *pair // nil until it is made
	mac   kernel.MAC
	addrs []netip.Addr
}

// newAttachment holds an ADD's input to what can be known before anything is made.
func newAttachment(args *skel.CmdArgs) (*attachment, error) {
	conf, err := netconf.Parse(args.StdinData)
	if err != nil {
		return nil, err
	}
	req, err := conf.Request(attach.Add, args)
	if err != nil {
		return nil, err
	}
	mac, err := chooseMAC(req.Annotations)
	if err != nil {
		return nil, err
	}
	req.MAC = mac.String()
	mtu, err := conf.PodMTU(netconf.MTUFile)
	if err != nil {
		return nil, err
	}
	prev, err := netconf.Chained(args.StdinData)
	if err != nil {
		return nil, err
	}
	foreign, err := newForeignIPAM(&conf, args)
	if err != nil {
		return nil, err
	}
	ns, err := openNetns(args.Netns)
	if err != nil {
		return nil, failure(attach.CodeBadEnv, err, "CNI_NETNS names the pod's network namespace; is the pod still there?")
	}
	wish := pairWish{
		hostIf: req.HostIf, podIf: req.IfName, mac: mac, mtu: mtu, queues: max(1, conf.NumQueues),
		ofPod: req.Pod != attach.Pod{}, forwarding: conf.ContainerSettings.AllowIPForwarding, v6: req.AssignIPv6,
	}
	return &attachment{conf: conf, req: req, wish: wish, netns: ns, mac: mac, foreign: foreign, prev: prev}, nil
}

// close lets go of everything that is held open.
func (a *attachment) close() {
	if a.door != nil {
		a.door.close()
	}
	if a.pair != nil {
		a.pair.close()
	}
	a.netns.close()
}

// attach registers the pod and gives it its interface. After an error undo has to follow.
func (a *attachment) attach(ctx context.Context) error {
	if err := a.lease(ctx); err != nil {
		return err
	}
	reply, err := a.registerAndMakePair(ctx)
	if err != nil {
		return err
	}
	if a.addrs, a.mac, err = granted(reply, a.mac); err != nil {
		return err
	}
	a.log.Debug("registered, and interface made", "addresses", a.addrs, "mac", a.mac)
	if err := fault.At(fault.PluginAddRegistered); err != nil {
		return err
	}
	if err := a.configure(); err != nil {
		return failure(attach.CodeKernel, err, "look at the pod's network namespace "+a.req.Netns)
	}
	a.log.Debug("pod's side set")
	if err := fault.At(fault.PluginAddConfigured); err != nil {
		return err
	}
	if err := a.door.finish(ctx, hostside.Workload{Dev: a.pair.host, MAC: a.mac, Addrs: a.addrs}); err != nil {
		return err
	}
	a.log.Debug("host's side in the kernel")
	if err := fault.At(fault.PluginAddFinished); err != nil {
		return err
	}
	if slices.Equal(a.addrs, a.req.Addrs) {
		return nil
	}
	return a.giveBack(ctx) // an annotation has given the pod others
}

// configure sets the pod's side. Addresses of IPv6 may come unasked, by an annotation that only the handler sees.
func (a *attachment) configure() error {
	if !a.wish.v6 && slices.ContainsFunc(a.addrs, netip.Addr.Is6) {
		a.wish.v6 = true
		if err := a.netns.visit(func() error { return podSettings(a.wish) }); err != nil {
			return err
		}
	}
	var err error
	a.queue.do(func() { err = a.pair.configure(a.addrs, a.mac, podRoutes(a.addrs, a.dsts)) })
	return err
}

// registerAndMakePair does both at once. After an error either may have succeeded.
func (a *attachment) registerAndMakePair(ctx context.Context) (attach.Reply, error) {
	links, err := rtnl.OpenVeths()
	if err != nil {
		return attach.Reply{}, failure(attach.CodeKernel, err, "")
	}
	if err := checkReplaceable(links, a.netns, a.wish); err != nil {
		links.Close()
		return attach.Reply{}, err
	}
	a.asked = true
	registered := a.door.register(ctx, a.req)
	var linkErr error
	a.queue.do(func() { a.pair, linkErr = makePair(links, a.netns, a.wish) })
	if linkErr == nil {
		linkErr = fault.At(fault.PluginAddLinked)
	}
	reply, err := registered()
	if linkErr != nil && err == nil {
		err = failure(attach.CodeKernel, linkErr, "look at the interfaces of the host and of the pod's network namespace "+a.req.Netns)
	}
	return reply, err
}

// granted checks what the handler gave: addresses, and the MAC that the endpoint holds.
func granted(r attach.Reply, proposed kernel.MAC) ([]netip.Addr, kernel.MAC, error) {
	if len(r.Addrs) == 0 {
		return nil, kernel.MAC{}, &attach.Error{Code: attach.CodeNoAddress, Msg: "register pod: the answer holds no address"}
	}
	for _, a := range r.Addrs {
		if !a.IsValid() || a.IsUnspecified() || a.Zone() != "" {
			return nil, kernel.MAC{}, &attach.Error{Code: attach.CodeNoAddress, Msg: "register pod: the answer holds the address " + a.String()}
		}
	}
	if r.MAC == "" {
		return r.Addrs, proposed, nil
	}
	mac, err := kernel.ParseMAC(r.MAC)
	if err != nil {
		return nil, kernel.MAC{}, failure(attach.CodeInternal, err, "the pod's endpoint holds this MAC: correct or delete it")
	}
	return r.Addrs, mac, nil
}

func (a *attachment) removePair() error {
	if a.pair == nil {
		return nil
	}
	return a.pair.remove()
}

// release takes the pod out of etcd again if it may have got there, within limit.
func (a *attachment) release(ctx context.Context, limit time.Duration) error {
	if !a.asked {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	req := a.req
	req.Verb, req.Labels, req.Annotations = attach.Del, nil, nil
	return a.door.release(ctx, req)
}
