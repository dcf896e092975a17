package agent

import (
	"context"
	"maps"
	"math"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/muslin-cni/muslin/internal/plan"
	"github.com/muslin-cni/muslin/internal/startup"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
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

// servers knows where a node's way into the cluster leads: etcd, by which it tells and learns keys, and the API server, by which its kubelet starts the agent
// that does. Where nodes encrypt what they send each other, these on nodes are reached in clear.
//
// Addresses that stand in etcd's configuration are known at once. Names and SRV records are looked up, and the API server is asked for its own addresses, since
// what programs know of it is a Service's: for as long as nodes encrypt, and once before the loop begins, so that an agent that finds its way now keeps it.
type servers struct {
	find func(context.Context) ([]string, error)             // etcd's endpoints
	host func(context.Context, string) ([]netip.Addr, error) // looks a name up
	kube startup.Kubernetes                                  // nil: there is none
	news chan struct{}                                       // cap 1
	ask  chan struct{}                                       // cap 1
	want atomic.Bool

	mu    sync.Mutex
	known []netip.AddrPort // sorted

	found map[string][]netip.AddrPort // what was found last, by what was looked for; owned by look
	etcd  []string                    // endpoints, as found last; likewise
}

const (
	serversPause   = time.Minute     // between two looks
	serversTimeout = 5 * time.Second // for each question of one
	etcdPort       = 2379
	apiPort        = 443
	// apiSlices are the addresses of the API servers, as they themselves keep them.
	apiSlices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3Dkubernetes"
)

func newServers(etcd store.Config, kube startup.Kubernetes) *servers {
	s := &servers{
		find: etcd.Find, kube: kube, news: make(chan struct{}, 1), ask: make(chan struct{}, 1), found: map[string][]netip.AddrPort{}, etcd: etcd.Endpoints,
		host: func(ctx context.Context, name string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", name)
		},
	}
	for _, e := range etcd.Endpoints {
		if u, err := url.Parse(e); err == nil { // else whoever connects there says so
			s.known = append(s.known, withNext(literal(u, etcdPort))...)
		}
	}
	slices.SortFunc(s.known, netip.AddrPort.Compare)
	return s
}

// literal is the address of a server that is named by it, else none.
func literal(u *url.URL, port uint16) []netip.AddrPort {
	a, err := netip.ParseAddr(u.Hostname())
	if err != nil {
		return nil
	}
	return []netip.AddrPort{netip.AddrPortFrom(a.Unmap(), portOf(u, port))}
}

// withNext adds the next port of each server, on which etcd's members talk to each other: without them nobody reads or tells a key.
func withNext(list []netip.AddrPort) (out []netip.AddrPort) {
	for _, a := range list {
		out = append(out, a, netip.AddrPortFrom(a.Addr(), a.Port()+1))
	}
	return out
}

func portOf(u *url.URL, usual uint16) uint16 {
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	if err != nil {
		return usual
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

// begin looks once, if nodes encrypt what they send each other. It waits for some seconds at the most.
func (s *servers) begin(ctx context.Context, hosts bool) {
	if s.want.Store(hosts); hosts {
		s.look(ctx)
	}
}

// needed says whether nodes encrypt what they send each other. The loop calls it.
func (s *servers) needed(hosts bool) {
	if !s.want.Swap(hosts) && hosts {
		poke(s.ask)
	}
}

// run looks again and again until ctx ends.
func (s *servers) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.ask:
		case <-time.After(serversPause):
		}
		if s.want.Load() {
			s.look(ctx)
		}
	}
}

// look looks once. What was known stays where it cannot be looked up.
func (s *servers) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*serversTimeout)
	defer cancel()
	if found, err := s.find(ctx); err == nil { // etcd's client says what is wrong with it
		s.etcd = found
	}
	var all []netip.AddrPort
	for _, e := range s.etcd {
		if u, err := url.Parse(e); err == nil {
			all = append(all, withNext(s.at(ctx, u, etcdPort))...)
		}
	}
	if c, ok := s.kube.(interface{ Server() *url.URL }); ok {
		all = append(all, s.at(ctx, c.Server(), apiPort)...)
	}
	s.set(append(all, s.apiServers(ctx)...))
}

// at are the addresses of a server.
func (s *servers) at(ctx context.Context, u *url.URL, port uint16) []netip.AddrPort {
	if list := literal(u, port); len(list) > 0 {
		return list
	}
	ctx, cancel := context.WithTimeout(ctx, serversTimeout)
	defer cancel()
	var out []netip.AddrPort
	addrs, _ := s.host(ctx, u.Hostname()) // whoever connects there says what is wrong with the name
	for _, a := range addrs {
		out = append(out, netip.AddrPortFrom(a.Unmap(), portOf(u, port)))
	}
	return s.keep(u.Host, out)
}

// apiServers asks the API server where it is.
func (s *servers) apiServers(ctx context.Context) (out []netip.AddrPort) {
	if s.kube == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, serversTimeout)
	defer cancel()
	var list discoveryv1.EndpointSliceList
	_ = s.kube.Get(ctx, apiSlices, &list) // while it cannot be reached, what was known of it stays
	for i := range list.Items {
		out = append(out, serving(&list.Items[i])...)
	}
	return s.keep(apiSlices, out)
}

// serving are the addresses in a slice, with every port of it.
func serving(slice *discoveryv1.EndpointSlice) (out []netip.AddrPort) {
	for _, e := range slice.Endpoints {
		for _, text := range e.Addresses {
			a, err := netip.ParseAddr(text)
			if err != nil {
				continue // a name: nothing that a rule could say
			}
			for _, p := range slice.Ports {
				if p.Port != nil && *p.Port > 0 && *p.Port <= math.MaxUint16 {
					out = append(out, netip.AddrPortFrom(a.Unmap(), uint16(*p.Port)))
				}
			}
		}
	}
	return out
}

// keep remembers what was found, or else returns what was found before.
func (s *servers) keep(what string, found []netip.AddrPort) []netip.AddrPort {
	if len(found) > 0 {
		s.found[what] = found
	}
	return s.found[what]
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
	poke(s.news)
}
