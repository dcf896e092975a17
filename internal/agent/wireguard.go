package agent

import (
	"context"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/muslin-cni/muslin/internal/plan"
	"github.com/muslin-cni/muslin/pkg/ipam"
)

// wish is what the loop says of tunnels beside what pools say.
type wish struct {
	keep plan.Modes        // these keep their addresses
	keys map[string]string // kinds of WireGuard that are on, with the device's public key; "": it is not known yet
}

func (w wish) equal(x wish) bool { return w.keep == x.keep && maps.Equal(w.keys, x.keys) }

// asked is the wish as pkg/ipam has it.
func (w wish) asked() ipam.Wish { return ipam.Wish{Keep: kinds(w.keep), Keys: w.keys} }

// wish tells the public keys of the devices that the loop has made: when others read one, what they send by it is let in and understood.
func (a *Agent) wish() wish {
	w := wish{keep: a.linger.left(), keys: map[string]string{}}
	host, e := a.monitor.Host(), a.encryption()
	asked := a.planned.result.Modes
	for _, x := range []struct {
		on        bool
		kind, dev string
	}{{asked.WireGuard, ipam.TunnelWireGuard, e.Device}, {asked.WireGuard6, ipam.TunnelWireGuard6, e.Device6}} {
		dev, up := host.Dev(x.dev)
		if !x.on || !up && e.Lacking != "" {
			continue
		}
		w.keys[x.kind] = ""
		if key, ok := a.wireguard.Public(dev); ok {
			w.keys[x.kind] = key.String()
		}
	}
	return w
}

// servers knows the addresses of etcd, which its configuration may name otherwise. Where nodes encrypt what they send each other, etcd on one of
// them is reached in clear: there a node finds the others' keys.
type servers struct {
	names []*url.URL
	news  chan struct{} // cap 1

	mu    sync.Mutex
	known []netip.AddrPort // sorted
}

// serversPause is how often names are looked up anew.
const serversPause = time.Minute

func newServers(endpoints []string) *servers {
	s := &servers{news: make(chan struct{}, 1)}
	for _, e := range endpoints {
		u, err := url.Parse(e)
		if err != nil {
			continue // whoever connects there says so
		}
		if at, ok := literal(u); ok {
			s.known = append(s.known, at)
		} else {
			s.names = append(s.names, u)
		}
	}
	slices.SortFunc(s.known, netip.AddrPort.Compare)
	return s
}

// literal is the address of a server that is named by it.
func literal(u *url.URL) (netip.AddrPort, bool) {
	a, err := netip.ParseAddr(u.Hostname())
	return netip.AddrPortFrom(a.Unmap(), portOf(u)), err == nil
}

func portOf(u *url.URL) uint16 {
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	if err != nil {
		return 2379
	}
	return uint16(port)
}

// addrs are the addresses that are known. The list is not modified.
func (s *servers) addrs() []netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known
}

// changed receives when there are other addresses.
func (s *servers) changed() <-chan struct{} { return s.news }

// run looks names up until ctx ends. What was known of a name stays where it cannot be looked up.
func (s *servers) run(ctx context.Context) error {
	found := map[string][]netip.AddrPort{}
	literals := s.addrs()
	for len(s.names) > 0 {
		for _, u := range s.names {
			if at := lookUp(ctx, u); len(at) > 0 {
				found[u.Host] = at
			}
		}
		s.set(slices.Concat(literals, slices.Concat(slices.Collect(maps.Values(found))...)))
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(serversPause):
		}
	}
	return nil
}

func lookUp(ctx context.Context, u *url.URL) (out []netip.AddrPort) {
	ctx, cancel := context.WithTimeout(ctx, serversPause/2)
	defer cancel()
	addrs, _ := net.DefaultResolver.LookupNetIP(ctx, "ip", u.Hostname()) // etcd's client says what is wrong with a name
	for _, a := range addrs {
		out = append(out, netip.AddrPortFrom(a.Unmap(), portOf(u)))
	}
	return out
}

func (s *servers) set(known []netip.AddrPort) {
	slices.SortFunc(known, netip.AddrPort.Compare)
	known = slices.Compact(known)
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.Equal(known, s.known) {
		return
	}
	s.known = known
	select {
	case s.news <- struct{}{}:
	default:
	}
}
