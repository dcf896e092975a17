package rtnl

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/kernel"
)

// Inside is what an interface of a pod gets, in this order.
type Inside struct {
	Name   string
	Index  int
	MAC    *kernel.MAC // nil: it has it
	Neighs []InsideNeigh
	Routes []InsideRoute
	Addrs  []netip.Addr // each the pod's alone
}

// InsideNeigh is a neighbour that never has to be asked for.
type InsideNeigh struct {
	Addr netip.Addr
	MAC  kernel.MAC
}

// InsideRoute is a route inside a pod.
type InsideRoute struct {
	Dst     netip.Prefix
	Gateway netip.Addr // the zero Addr: dst is on the link
}

// String is the route as ip route prints it.
func (r InsideRoute) String() string {
	if !r.Gateway.IsValid() {
		return r.Dst.String() + " scope link"
	}
	return r.Dst.String() + " via " + r.Gateway.String()
}

// Pod sets up interfaces in a pod's network namespace. One caller at a time.
type Pod struct{ s *sender }

// OpenPodBy takes over a new socket for rtnetlink(7) in the pod's namespace, also after an error.
func OpenPodBy(socket int) (*Pod, error) {
	s, err := senderBy(socket)
	if err != nil {
		return nil, err
	}
	return &Pod{s}, nil
}

// Close releases the socket.
func (p *Pod) Close() { p.s.close() }

// SetUp brings an interface up and gives it what it is to have, all with one system call: the kernel's lock of network devices is taken by few at
// a time. The error names the first of what the kernel refused; what comes after it may be there or not.
func (p *Pod) SetUp(x Inside) error {
	var m messages
	appendUp(&m, x)
	for _, n := range x.Neighs {
		appendEntry(&m, true, neighbour{index: x.Index, addr: n.Addr, mac: n.MAC})
	}
	for _, r := range x.Routes {
		appendRoute(&m, addFlags, kernel.RouteKey{Dst: r.Dst}, x.route(r))
	}
	for _, a := range x.Addrs {
		appendAddr(&m, x.Index, a)
	}
	errs, err := p.s.send(&m)
	if err != nil {
		return fmt.Errorf("set %s up: %w", x.Name, err)
	}
	for i, err := range errs {
		if err != nil {
			return fmt.Errorf("%s: %w", x.steps()[i], err)
		}
	}
	return nil
}

// steps says what is done, in order.
func (x Inside) steps() []string {
	out := []string{"set " + x.Name + " up"}
	for _, n := range x.Neighs {
		out = append(out, fmt.Sprintf("add neighbour %v", n.Addr))
	}
	for _, r := range x.Routes {
		out = append(out, fmt.Sprintf("add route %v", r))
	}
	for _, a := range x.Addrs {
		out = append(out, fmt.Sprintf("add address %v", a))
	}
	return out
}

func (x Inside) route(r InsideRoute) kernel.Route {
	out := kernel.Route{Gateway: r.Gateway, Dev: kernel.Dev{Name: x.Name, Index: x.Index}, Protocol: unix.RTPROT_BOOT}
	if !r.Gateway.IsValid() {
		out.Scope = kernel.LinkScope
	}
	return out
}

// appendUp adds the message that sets the MAC and brings the interface up (struct ifinfomsg, rtnetlink(7)).
func appendUp(m *messages, x Inside) {
	m.begin(unix.RTM_NEWLINK, 0, ifInfo(x.Index, unix.IFF_UP)...)
	if x.MAC != nil {
		m.attr(unix.IFLA_ADDRESS, x.MAC[:])
	}
}

// ifInfo is a struct ifinfomsg (rtnetlink(7)) about the interface of an index, 0 for one that is not named by it, which is to have flags.
func ifInfo(index int, flags uint32) []byte {
	info := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(info[4:], uint32(index))
	binary.NativeEndian.PutUint32(info[8:], flags)
	binary.NativeEndian.PutUint32(info[12:], flags) // which of them are to change
	return info
}

// appendAddr adds the message that adds an address (struct ifaddrmsg, rtnetlink(7)). It is nobody else's, so that IPv6 need not look for duplicates.
func appendAddr(m *messages, index int, a netip.Addr) {
	flags := byte(0)
	if a.Is6() {
		flags = unix.IFA_F_NODAD
	}
	info := []byte{family(a), byte(a.BitLen()), flags, unix.RT_SCOPE_UNIVERSE, 0, 0, 0, 0}
	binary.NativeEndian.PutUint32(info[4:], uint32(index))
	m.begin(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, info...)
	m.addr(unix.IFA_LOCAL, a)
	m.addr(unix.IFA_ADDRESS, a)
}

// Device returns the index and the MTU of the interface of that name, which costs much less than its whole description. The error is unix.ENODEV where
// there is none.
func (p *Pod) Device(name string) (index, mtu int, err error) {
	i, err := p.s.number(name, unix.SIOCGIFINDEX)
	if err != nil {
		return 0, 0, err
	}
	m, err := p.s.number(name, unix.SIOCGIFMTU)
	return int(i), int(m), err
}

// Forwards tells whether the namespace forwards packets of IPv4 (net.ipv4.ip_forward), of which the kernel says by netlink what it says in a file.
func (p *Pod) Forwards() (bool, error) {
	body, err := p.s.get(func(m *messages) {
		m.begin(unix.RTM_GETNETCONF, 0, unix.AF_INET, 0, 0, 0)
		m.uint32(netconfIndex, allDevices)
	})
	if err != nil {
		return false, fmt.Errorf("ask whether the namespace forwards packets: %w", err)
	}
	n, err := decodeNetconf(body)
	return n.values[netconfForwarding] != 0, err
}

// number asks for one of an interface's numbers (netdevice(7)), in the socket's namespace.
func (s *sender) number(name string, request uint) (uint32, error) {
	asked, err := unix.NewIfreq(name)
	if err == nil {
		err = unix.IoctlIfreq(s.fd, request, asked)
	}
	if err != nil {
		return 0, fmt.Errorf("look for interface %s: %w", name, err)
	}
	return asked.Uint32(), nil
}
