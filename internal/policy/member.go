package policy

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/muslin-cni/muslin/pkg/api"
)

// member is a member of a set of any kind, small and without pointers, since there are hundreds of thousands.
type member struct {
	addr     [16]byte // IPv4 as mapped into IPv6
	bits     uint8    // of 128: less is a range
	protocol uint8    // 0: no port
	port     uint16
}

func addrMember(a netip.Addr) member { return member{addr: a.As16(), bits: 128} }

func netMember(p netip.Prefix) member {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return member{addr: p.Addr().As16(), bits: uint8(bits)}
}

func portMember(p PortMember) member {
	m := addrMember(p.Addr)
	m.protocol, m.port = p.Protocol, p.Port
	return m
}

// collect adds a member where it belongs; nothing is sorted yet.
func (m *Members) collect(one member) {
	a := netip.AddrFrom16(one.addr).Unmap()
	switch {
	case one.protocol != 0:
		m.Ports = append(m.Ports, PortMember{a, one.protocol, one.port})
	case one.bits == 128:
		m.Addrs = append(m.Addrs, a)
	default:
		m.Nets = append(m.Nets, netip.PrefixFrom(a, int(one.bits)-(128-a.BitLen())))
	}
}

func (m *Members) sort() {
	slices.SortFunc(m.Addrs, netip.Addr.Compare)
	slices.SortFunc(m.Nets, netip.Prefix.Compare)
	slices.SortFunc(m.Ports, PortMember.compare)
}

// contribute calls yield for every member that an endpoint or network set is in a set, perhaps for one more than once.
func (w *want) contribute(o api.Object, yield func(member)) {
	switch v := o.(type) {
	case *api.WorkloadEndpoint:
		for _, p := range v.Spec.IPNetworks {
			if !p.IsValid() || !p.IsSingleIP() {
				continue
			}
			if w.kind == Addresses {
				yield(addrMember(p.Addr().Unmap()))
				continue
			}
			for _, port := range v.Spec.Ports {
				w.contributePort(p.Addr().Unmap(), port.Name, port.Protocol, port.Port, yield)
			}
		}
	case *api.HostEndpoint:
		for _, a := range expectedAddrs(v) {
			if w.kind == Addresses {
				yield(addrMember(a))
				continue
			}
			for _, port := range v.Spec.Ports {
				w.contributePort(a, port.Name, port.Protocol, port.Port, yield)
			}
		}
	case *api.NetworkSet:
		w.contributeNets(v.Spec.Nets, yield)
	case *api.GlobalNetworkSet:
		w.contributeNets(v.Spec.Nets, yield)
	}
}

func (w *want) contributePort(a netip.Addr, name string, protocol api.Protocol, port uint16, yield func(member)) {
	p, ok := namedPort(name, protocol, port)
	if ok && w.takes(p) {
		yield(portMember(PortMember{a, p.Protocol, p.Port}))
	}
}

func (w *want) contributeNets(nets []string, yield func(member)) {
	if w.kind != Addresses {
		return
	}
	for _, text := range nets {
		if p, ok := parseNet(text); ok {
			yield(netMember(p))
		}
	}
}

// namedPort is a port of an endpoint that rules can name; false if they cannot.
func namedPort(name string, protocol api.Protocol, port uint16) (NamedPort, bool) {
	n := protocol.IANA()
	return NamedPort{name, n, port}, name != "" && port != 0 && hasPorts(n)
}

func (p NamedPort) compare(q NamedPort) int {
	return cmp.Or(cmp.Compare(p.Name, q.Name), cmp.Compare(p.Protocol, q.Protocol), cmp.Compare(p.Port, q.Port))
}

// expectedAddrs are a host endpoint's addresses that can be read.
func expectedAddrs(h *api.HostEndpoint) (out []netip.Addr) {
	for _, text := range h.Spec.ExpectedIPs {
		if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" {
			out = append(out, a.Unmap())
		}
	}
	return out
}
