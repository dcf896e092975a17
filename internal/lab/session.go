package lab

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/muslin-cni/muslin/pkg/api"
)

// session is one BGP session of a router, as its configuration has it.
type session struct {
	name     string
	own      netip.Addr
	peer     netip.Addr
	as       api.ASN // the peer's
	passive  bool
	internal bool // iBGP
}

// speaker is where somebody who speaks BGP is found.
type speaker struct {
	addrs []netip.Addr
	as    api.ASN
}

// locate finds who is meant by a peer.
func (s *state) locate(p RouterPeer) (out speaker, err error) {
	if a, err := netip.ParseAddr(p.Host); err == nil {
		return speaker{addrs: []netip.Addr{a}, as: orAS(p.AS, nodesAS)}, nil
	}
	if r, err := s.router(p.Host); err == nil {
		return speaker{addrs: valid(r.Addr, r.Addr6), as: orAS(p.AS, r.Spec.AS)}, nil
	}
	n, err := s.node(p.Host)
	if err != nil {
		return out, fmt.Errorf("peer %q: want an address, or the name of a node or a router of this lab", p.Host)
	}
	return speaker{addrs: valid(n.Addr, n.Addr6), as: orAS(p.AS, nodesAS)}, nil
}

func orAS(as, otherwise api.ASN) api.ASN {
	if as != 0 {
		return as
	}
	return otherwise
}

// sessions are those that a router has. Peers that are gone have none.
func (s *state) sessions(r *Router) (out []session) {
	for _, p := range r.Spec.Peers {
		if at, err := s.locate(p); err == nil {
			prefix := "peer_"
			if r.Spec.CalicoNode {
				prefix = "Node_"
			}
			out = append(out, r.with(prefix, at, false)...)
		}
	}
	if len(r.Spec.Peers) > 0 {
		return out
	}
	prefix, mesh := "peer_", false
	if r.Spec.CalicoNode {
		prefix, mesh = "Mesh_", true
	}
	for _, n := range s.Nodes {
		out = append(out, r.with(prefix, speaker{addrs: valid(n.Addr, n.Addr6), as: nodesAS}, mesh)...)
	}
	for i := range s.Routers {
		if o := &s.Routers[i]; o.Spec.CalicoNode && o.Spec.Name != r.Spec.Name {
			out = append(out, r.with(prefix, speaker{addrs: valid(o.Addr, o.Addr6), as: o.Spec.AS}, mesh)...)
		}
	}
	if f := s.FabricRouter; mesh && f != nil { // the BGPPeer that the lab has written is every node's
		out = append(out, r.with("Global_", speaker{addrs: valid(f.Addr, f.Addr6), as: f.Spec.AS}, false)...)
	}
	return out
}

// with makes a session for each family that both have. In a mesh exactly one side dials: that with the address that is greater as a string
// waits (Calico's rule; so 10.0.0.9 waits for 10.0.0.10).
func (r *Router) with(prefix string, to speaker, mesh bool) (out []session) {
	for _, peer := range to.addrs {
		own := r.Addr
		if peer.Is6() {
			own = r.Addr6
		}
		if !own.IsValid() || own == peer {
			continue
		}
		out = append(out, session{
			name: prefix + strings.NewReplacer(".", "_", ":", "_").Replace(peer.String()),
			own:  own, peer: peer, as: to.as, passive: mesh && peer.String() > own.String(), internal: to.as == r.Spec.AS,
		})
	}
	return out
}
