package bgp

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"github.com/muslin-cni/muslin/internal/peering"
)

// chunk is how many routes GoBGP takes at a time: it does nothing else meanwhile.
const chunk = 1000

// noPreference is the local preference of a path that came without one (RFC 4271 leaves it to us; every implementation says 100).
const noPreference = 100

// Announce makes routes the full set that the node originates: what was announced before and is not in it is withdrawn, and
// what is unchanged is not sent again. It may be called before the first Apply.
func (s *Server) Announce(routes []peering.Route) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errClosed
	}
	want := make(map[netip.Prefix]peering.Route, len(routes))
	for _, r := range routes {
		want[r.Prefix.Masked()] = r
	}
	add, remove := map[netip.Prefix]peering.Route{}, map[netip.Prefix]peering.Route{}
	for p, r := range want {
		if have, ok := s.routes[p]; !ok || have.LocalPref != r.LocalPref {
			add[p] = r
		}
	}
	for p, r := range s.routes {
		if _, ok := want[p]; !ok {
			remove[p] = r
		}
	}
	if s.run != nil {
		if err := errors.Join(addPaths(s.run, add), deletePaths(s.run, remove)); err != nil {
			return err // the next call finds the same difference, and repeating it does no harm
		}
	}
	s.routes = want
	return nil
}

func addPaths(r *run, routes map[netip.Prefix]peering.Route) error {
	paths, err := pathsOf(routes)
	for part := range slices.Chunk(paths, chunk) {
		if _, e := r.AddPath(apiutil.AddPathRequest{Paths: part}); e != nil {
			err = errors.Join(err, fmt.Errorf("announce routes: %w", e))
		}
	}
	return err
}

func deletePaths(r *run, routes map[netip.Prefix]peering.Route) error {
	paths, err := pathsOf(routes)
	for part := range slices.Chunk(paths, chunk) {
		if e := r.DeletePath(apiutil.DeletePathRequest{Paths: part}); e != nil {
			err = errors.Join(err, fmt.Errorf("withdraw routes: %w", e))
		}
	}
	return err
}

// pathsOf are routes in GoBGP's terms. An unspecified next hop becomes the session's own address.
func pathsOf(routes map[netip.Prefix]peering.Route) ([]*apiutil.Path, error) {
	out := make([]*apiutil.Path, 0, len(routes))
	var errs []error
	for p, r := range routes {
		nlri, err := bgp.NewIPAddrPrefix(p)
		if err != nil {
			errs = append(errs, fmt.Errorf("announce %v: %w", p, err))
			continue
		}
		family, hop := bgp.RF_IPv4_UC, netip.IPv4Unspecified()
		if p.Addr().Is6() {
			family, hop = bgp.RF_IPv6_UC, netip.IPv6Unspecified()
		}
		next, err := bgp.NewPathAttributeNextHop(hop)
		if err != nil {
			errs = append(errs, fmt.Errorf("announce %v: %w", p, err))
			continue
		}
		out = append(out, &apiutil.Path{Family: family, Nlri: nlri, Attrs: []bgp.PathAttributeInterface{
			bgp.NewPathAttributeOrigin(bgp.BGP_ORIGIN_ATTR_TYPE_IGP), next, bgp.NewPathAttributeLocalPref(r.LocalPref),
		}})
	}
	return out, errors.Join(errs...)
}

// errBroken is why nothing is known of peers.
var errBroken = errors.New("list learned routes: the BGP speaker could not be started")

// Learned returns the full set of best paths that peers have sent and that passed their import filters, all equally good ones of a
// prefix, in no particular order. Paths of peers that are away and may restart are Stale. While nobody is
// to be spoken to there are none; while the speaker cannot be started it is an error, since that says nothing about the peers.
func (s *Server) Learned() ([]peering.Path, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken {
		return nil, errBroken
	}
	if s.run == nil {
		return nil, nil
	}
	var out []peering.Path
	for _, family := range []bgp.Family{bgp.RF_IPv4_UC, bgp.RF_IPv6_UC} {
		request := apiutil.ListPathRequest{TableType: api.TableType_TABLE_TYPE_GLOBAL, Family: family}
		err := s.run.ListPath(request, func(nlri bgp.NLRI, paths []*apiutil.Path) {
			prefix, ok := nlri.(*bgp.IPAddrPrefix)
			if !ok {
				return
			}
			for _, p := range paths {
				if p.Best && p.PeerAddress.IsValid() && !p.Withdrawal {
					out = append(out, learned(prefix.Prefix, p))
				}
			}
		})
		if err != nil {
			return nil, fmt.Errorf("list learned routes: %w", err)
		}
	}
	return out, nil
}

func learned(prefix netip.Prefix, p *apiutil.Path) peering.Path {
	out := peering.Path{Prefix: prefix, Peer: p.PeerAddress, LocalPref: noPreference, Stale: p.Stale}
	for _, a := range p.Attrs {
		switch a := a.(type) {
		case *bgp.PathAttributeNextHop:
			out.NextHop = a.Value
		case *bgp.PathAttributeMpReachNLRI:
			out.NextHop = a.Nexthop
			if (!a.Nexthop.IsValid() || a.Nexthop.IsUnspecified() || a.Nexthop.IsLinkLocalUnicast()) && a.LinkLocalNexthop.IsValid() {
				out.NextHop = a.LinkLocalNexthop
			}
		case *bgp.PathAttributeLocalPref:
			out.LocalPref = a.Value
		}
	}
	if out.NextHop.IsLinkLocalUnicast() && out.NextHop.Zone() == "" {
		out.NextHop = out.NextHop.WithZone(p.PeerAddress.Zone())
	}
	return out
}
