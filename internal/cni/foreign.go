package cni

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/cni/netconf"
)

// foreignIPAM is an IPAM module of another project, such as host-local, called as the CNI specification 1.1 has it ("Plugin
// Delegation"): with our own environment and configuration. What it gave is the pod's, and the endpoint is the only record of it in etcd.
type foreignIPAM struct {
	name    string
	program string
	args    *skel.CmdArgs
	podCIDR bool // the configuration leaves it to Kubernetes which range the node has
	asked   bool // ADD was sent: it may hold addresses for the container
}

// newForeignIPAM finds the module; nil if the configuration's is our own.
func newForeignIPAM(conf *netconf.Conf, args *skel.CmdArgs) (*foreignIPAM, error) {
	if !conf.ForeignIPAM() {
		return nil, nil
	}
	program, err := findModule(conf.IPAM.Type, filepath.SplitList(args.Path))
	if err != nil {
		return nil, noModule(err)
	}
	return &foreignIPAM{name: conf.IPAM.Type, program: program, args: args, podCIDR: conf.WantsPodCIDR()}, nil
}

// lease is what a foreign IPAM module gave.
type lease struct {
	addrs  []netip.Addr
	routes []netip.Prefix // that the pod shall have instead of default routes; their gateways do not count
	dns    types.DNS
}

// add asks the module for addresses.
func (f *foreignIPAM) add(ctx context.Context) (lease, error) {
	f.asked = true
	out, err := f.run(ctx, "ADD")
	if err != nil {
		return lease{}, err
	}
	l, err := readLease(out)
	if err != nil {
		return lease{}, failure(attach.CodeDecode, fmt.Errorf("read the result of IPAM module %s: %w", f.name, err), "")
	}
	return l, nil
}

// del has the module take back what it gave to the container. It may be repeated.
func (f *foreignIPAM) del(ctx context.Context) error {
	_, err := f.run(ctx, "DEL")
	return err
}

// run executes any command of the module's. What CNI_ARGS holds for us must not trouble it.
func (f *foreignIPAM) run(ctx context.Context, command string) ([]byte, error) {
	args := "CNI_ARGS=IgnoreUnknown=1"
	if f.args.Args != "" {
		args += ";" + f.args.Args
	}
	stdin, err := f.stdin(ctx, command)
	if err != nil {
		return nil, err
	}
	return moduleRun{
		program: f.program, command: command, stdin: stdin,
		env:    []string{args},
		remedy: "see why the IPAM module " + f.name + " does not answer",
	}.do(ctx)
}

// stdin is the module's configuration: ours, with the node's own ranges where it leaves them to Kubernetes. Only an ADD depends on which those are, and
// a DEL must not depend on anybody who might not answer.
func (f *foreignIPAM) stdin(ctx context.Context, command string) ([]byte, error) {
	if !f.podCIDR {
		return f.args.StdinData, nil
	}
	ranges := netconf.AnyRange()
	if command == "ADD" {
		var err error
		if ranges, err = podRanges(ctx); err != nil {
			return nil, err
		}
	}
	return netconf.WithPodCIDR(f.args.StdinData, ranges)
}

// rangesTurn is for the agent to ask the API server.
const rangesTurn = 10 * time.Second

// podRanges asks the agent, on a connection of its own.
func podRanges(ctx context.Context) ([]netip.Prefix, error) {
	d, err := dialAgent(rangesTurn)
	if err != nil {
		return nil, failure(attach.CodeTryAgain, fmt.Errorf("read the node's pod CIDR: %w", err), "start the agent on this node: it knows which range Kubernetes has given to the node")
	}
	defer d.close()
	reply, err := d.ask(ctx, rangesTurn, "read the node's pod CIDR", &attach.Request{Version: attach.Version, Verb: attach.Ranges})
	return reply.Ranges, err
}

// delegate runs a command of the configuration's IPAM module where that is a foreign one, and does nothing where it is ours.
func delegate(ctx context.Context, command string, conf *netconf.Conf, args *skel.CmdArgs) error {
	f, err := newForeignIPAM(conf, args)
	if f == nil || err != nil {
		return err
	}
	_, err = f.run(ctx, command)
	return err
}

func readLease(out []byte) (lease, error) {
	res, err := netconf.ReadResult("", out)
	if err != nil {
		return lease{}, err
	}
	l := lease{dns: res.DNS}
	for _, ip := range res.IPs {
		a, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			return lease{}, fmt.Errorf("address %q", ip.Address.IP)
		}
		l.addrs = append(l.addrs, a.Unmap())
	}
	if len(l.addrs) == 0 {
		return lease{}, fmt.Errorf("it holds no address: %s", out)
	}
	for _, r := range res.Routes {
		a, ok := netip.AddrFromSlice(r.Dst.IP)
		ones, bits := r.Dst.Mask.Size()
		if !ok || bits == 0 {
			return lease{}, fmt.Errorf("route %v", r.Dst)
		}
		l.routes = append(l.routes, netip.PrefixFrom(a.Unmap(), ones).Masked())
	}
	return l, nil
}

// checkVacant refuses a pod that has the interface already: its addresses are leased, and a second lease that fails would
// end with taking back the first.
func checkVacant(ns *netns, ifName string) error {
	links, err := openLinksIn(ns)
	if err != nil {
		return err
	}
	defer links.Close()
	_, err = links.LinkByName(ifName)
	switch {
	case isGone(err):
		return nil
	case err != nil:
		return fmt.Errorf("look at interface %s in the pod: %w", ifName, err)
	}
	return fmt.Errorf("lease an address: the pod's network namespace %s has an interface %s already", ns.file.Name(), ifName)
}

// lease has the foreign IPAM module give the addresses, if there is one.
func (a *attachment) lease(ctx context.Context) error {
	if a.foreign == nil {
		return nil
	}
	if err := checkVacant(a.netns, a.req.IfName); err != nil {
		return failure(attach.CodeKernel, err, "call DEL first")
	}
	l, err := a.foreign.add(ctx)
	if err != nil {
		return err
	}
	a.req.Addrs, a.dsts = l.addrs, l.routes
	if !l.dns.IsEmpty() {
		a.conf.DNS = l.dns
	}
	if a.conf.DefaultRoutes && len(a.dsts) > 0 {
		a.dsts = append(a.dsts, defaultRoutes()...)
	}
	a.wish.v6 = slices.ContainsFunc(l.addrs, netip.Addr.Is6)
	return nil
}

// giveBack ends the lease of addresses that the pod does not have: after a failed ADD, or where the pod was given others.
func (a *attachment) giveBack(ctx context.Context) error {
	if a.foreign == nil || !a.foreign.asked {
		return nil
	}
	return a.foreign.del(ctx)
}
