package cni

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/hostside"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/rtnl"
)

// pairWish says what veth pair a pod is to get.
type pairWish struct {
	hostIf, podIf string
	ofPod         bool       // hostIf is named after a Kubernetes pod; else after the first characters of a container's id
	mac           kernel.MAC // of the pod's side
	mtu           int        // 0: the kernel's default
	queues        int        // of either side, each way
	forwarding    bool       // may the pod forward packets
	v6            bool       // may it have IPv6 addresses
}

// pair is the veth pair of a pod, with a netlink socket at either end.
type pair struct {
	ofHost *rtnl.Veths
	inside *rtnl.Pod

	host, pod kernel.Dev
	mtu       int        // of both
	mac       kernel.MAC // of the pod's side
}

// netlinkTimeout bounds the wait for the kernel's answer to one request.
const netlinkTimeout = 20 * time.Second

// openLinks opens a netlink socket in the calling thread's network namespace.
func openLinks() (*netlink.Handle, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	if err := h.SetSocketTimeout(netlinkTimeout); err != nil {
		h.Close()
		return nil, fmt.Errorf("set netlink timeout: %w", err)
	}
	return h, nil
}

// openVethsIn opens a pod's network namespace for its veths.
func openVethsIn(ns *netns) (*rtnl.Veths, error) {
	socket, err := ns.socket()
	if err != nil {
		return nil, err
	}
	return rtnl.OpenVethsBy(socket)
}

// openLinksIn opens a netlink socket in a pod's network namespace.
func openLinksIn(ns *netns) (links *netlink.Handle, err error) {
	err = ns.visit(func() (err error) { links, err = openLinks(); return err })
	return links, err
}

// makePair makes the pair at once across both namespaces: names, MACs, MTU and the host's side up in one message. (The pod's cannot be up yet: the
// kernel opens it while it has no other end, and refuses; and its settings must stand before.) It takes over the host's socket. Nothing is left
// behind after an error.
func makePair(host *rtnl.Veths, ns *netns, w pairWish) (*pair, error) {
	p := &pair{ofHost: host, mac: w.mac}
	index, err := addVeth(host, ns, w)
	if err != nil {
		host.Close()
		return nil, err
	}
	p.host = kernel.Dev{Name: w.hostIf, Index: index}
	if err := p.enterPod(ns, w); err != nil {
		err = errors.Join(err, p.remove())
		p.close()
		return nil, err
	}
	return p, nil
}

// addVeth makes the pair and returns the index of its host's side. An interface that has the name already is an earlier one of the same
// pod (the name is a hash of it), and goes.
func addVeth(host *rtnl.Veths, ns *netns, w pairWish) (int, error) {
	mac, err := kernel.ParseMAC(hostside.MAC)
	if err != nil {
		return 0, err
	}
	wanted := rtnl.Veth{Name: w.hostIf, MAC: mac, Peer: w.podIf, PeerMAC: w.mac, PeerNS: ns.fd(), MTU: w.mtu, Queues: w.queues}
	err = host.Add(wanted)
	if errors.Is(err, unix.EEXIST) {
		if err := removeOld(host, w.hostIf); err != nil {
			return 0, err
		}
		err = host.Add(wanted)
	}
	if errors.Is(err, unix.EEXIST) {
		return 0, fmt.Errorf("make interface %s: the pod's network namespace %s has an interface of that name, and it is not ours", w.podIf, ns.file.Name())
	}
	if err != nil {
		return 0, fmt.Errorf("make veth pair %s and %s: %w", w.hostIf, w.podIf, err)
	}
	index, err := host.Index(w.hostIf)
	if errors.Is(err, unix.ENODEV) {
		return 0, fmt.Errorf("make veth pair %s and %s: it is gone again", w.hostIf, w.podIf)
	}
	return index, err
}

// checkReplaceable refuses to put a new pair in the place of one that may be in use: another container's whose id begins alike, or that of
// another interface of the container, of which the name of the host's side knows nothing. What it lets go is an earlier attempt at the same
// interface, and an earlier container of the same pod. It comes before anything is registered: the two would share a handle.
func checkReplaceable(host *rtnl.Veths, ns *netns, w pairWish) error {
	if _, err := host.Index(w.hostIf); errors.Is(err, unix.ENODEV) {
		return nil
	}
	old, err := host.Find(w.hostIf)
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return failure(attach.CodeKernel, fmt.Errorf("look at interface %s: %w", w.hostIf, err), "")
	}
	if old.Kind != veth {
		return nil // removeOld says what is wrong with it
	}
	inside, err := peerIn(ns, old)
	switch {
	case err != nil:
		return failure(attach.CodeKernel, err, "")
	case inside == w.podIf || inside == "" && w.ofPod:
		return nil
	case inside != "":
		return failure(attach.CodeKernel, fmt.Errorf("make interface %s: the container has its interface %s by %s already", w.podIf, inside, w.hostIf),
			"one interface of a container can be ours: take the other network out, or call DEL for the first")
	}
	return failure(attach.CodeKernel, fmt.Errorf("make interface %s: another container has it, whose id begins with the same characters", w.hostIf),
		"give the container another id; if the other one is gone, call DEL for it, or remove the interface")
}

// veth is the kind of our interfaces, as the kernel calls it.
const veth = "veth"

// peerIn is the name of the other side of the host's if that is in ns, else "".
func peerIn(ns *netns, host rtnl.End) (string, error) {
	links, err := openVethsIn(ns)
	if err != nil {
		return "", err
	}
	defer links.Close()
	pod, err := links.At(host.Peer)
	if errors.Is(err, unix.ENODEV) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("look for the other side of %s in the pod: %w", host.Name, err)
	}
	if pod.Kind != veth || pod.Peer != host.Index {
		return "", nil // only its number is the same
	}
	return pod.Name, nil
}

// removeOld removes the host's side of an earlier pair, if there is one.
func removeOld(host *rtnl.Veths, name string) error {
	old, err := host.Find(name)
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at interface %s: %w", name, err)
	}
	if old.Kind != veth {
		return fmt.Errorf("replace interface %s: it is no veth device but a %s, and so not ours: remove or rename it", name, cmp.Or(old.Kind, "physical device"))
	}
	return removeLink(host, old.Index, name)
}

// enterPod looks at the pod's side, opens a netlink socket beside it and sets what must be set before it is up.
func (p *pair) enterPod(ns *netns, w pairWish) error {
	socket, err := ns.socket()
	if err != nil {
		return err
	}
	if p.inside, err = rtnl.OpenPodBy(socket); err != nil {
		return err
	}
	if !p.isSet(w) {
		if err := ns.visit(func() error { return podSettings(w) }); err != nil {
			return err
		}
	}
	p.pod.Name = w.podIf
	if p.pod.Index, p.mtu, err = p.inside.Device(w.podIf); err != nil {
		return fmt.Errorf("the pod's side: %w", err)
	}
	return nil
}

// isSet tells whether the pod's namespace has the settings that it is to have. Those of IPv6 are in files alone.
func (p *pair) isSet(w pairWish) bool {
	if w.v6 {
		return false
	}
	forwards, err := p.inside.Forwards()
	return err == nil && forwards == w.forwarding
}

// remove removes the pair, both sides. It succeeds when the pair is gone already.
func (p *pair) remove() error { return removeLink(p.ofHost, p.host.Index, p.host.Name) }

func (p *pair) close() {
	p.ofHost.Close()
	if p.inside != nil {
		p.inside.Close()
	}
}

// detach removes the interface from the pod's network namespace, and its other side with it. It succeeds when either is gone: with
// its namespace the kernel removes the pair.
func detach(netnsPath, ifName string) error {
	if netnsPath == "" {
		return nil
	}
	ns, err := openNetns(netnsPath)
	if errors.Is(err, errNoNetns) {
		return nil
	}
	if err != nil {
		return err
	}
	defer ns.close()
	links, err := openVethsIn(ns)
	if err != nil {
		return err
	}
	defer links.Close()
	link, err := links.Find(ifName)
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at interface %s in the pod: %w", ifName, err)
	}
	if link.Kind != veth {
		return nil // never ours
	}
	return removeLink(links, link.Index, ifName)
}

func removeLink(v *rtnl.Veths, index int, name string) error {
	if err := v.Remove(index); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove interface %s: %w", name, err)
	}
	return nil
}

func isGone(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound) || errors.Is(err, unix.ENODEV)
}
