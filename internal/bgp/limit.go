package bgp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/osrg/gobgp/v4/api"

	"github.com/muslin-cni/muslin/internal/peering"
)

const (
	restFirst   = time.Minute
	restDoubles = 4 // times: sixteen minutes
)

// rest is the time that passes before a peer which has announced too many routes is spoken to again.
type rest struct {
	on    bool // nobody is spoken to
	wait  time.Duration
	until time.Time // wait is over; with on false it was over then
}

// next is the rest that begins now: twice the last one, unless more time than that has passed since.
func (r rest) next(now time.Time, first time.Duration) rest {
	wait := first
	if r.wait > 0 && now.Sub(r.until) <= r.wait {
		wait = min(2*r.wait, first<<restDoubles)
	}
	return rest{on: true, wait: wait, until: now.Add(wait)}
}

// Tend ends the sessions of peers that have announced more than Options.MaxRoutes, and opens those whose rest is over. It returns a sentence for each
// that rests, sorted by peer. Call it when Changed delivers, and every few seconds while it returns any.
//
// GoBGP has a limit of its own, but counts all routes of a peer for it with each UPDATE: five thousand UPDATEs took 15 seconds in place of 0.6. So its
// log tells us how many are announced, and only where they may be too many is it given the limit, upon which it counts them and sends the notification
// (CEASE, maximum number of prefixes: RFC 4486). Then it takes the end of the connection for a restart of a peer that can restart gracefully, and would
// keep its routes: so the peer is made anew, closed.
func (s *Server) Tend(ctx context.Context) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.run == nil || s.opts.MaxRoutes == 0 {
		return nil, nil
	}
	var errs []error
	var out []string
	for addr, session := range s.sessions {
		errs = append(errs, s.tend(ctx, session, time.Now()))
		if r := s.rests[addr]; r.on {
			out = append(out, fmt.Sprintf("BGP peer %v (%s): %s, so the session with it is closed, and tried again after %v. Have it announce less, or set MUSLIN_BGP_MAX_ROUTES of the agent "+
				"higher, which costs it some 3.5 KB of memory a route; what a BGPFilter rejects counts too", addr, session.Kind, s.tooMany(), r.wait))
		}
	}
	slices.Sort(out)
	return out, errors.Join(errs...)
}

// tooMany says what a peer did.
func (s *Server) tooMany() string {
	return fmt.Sprintf("it has announced more than %d routes of one family (MUSLIN_BGP_MAX_ROUTES)", s.opts.MaxRoutes)
}

func (s *Server) tend(ctx context.Context, p peering.Session, now time.Time) error {
	r, n := s.rests[p.Peer], s.notes.of(p.Peer)
	switch {
	case n.over:
		if err := s.setRest(ctx, p, r.next(now, cmp.Or(s.opts.Rest, restFirst))); err != nil {
			return err
		}
		s.notes.over(p.Peer, false)
		return nil
	case r.on && !now.Before(r.until):
		r.on, r.until = false, now
		return s.setRest(ctx, p, r)
	case !r.on && s.notes.suspect(n):
		return s.count(ctx, p, n.heard)
	}
	return nil
}

// setRest begins or ends a rest. To GoBGP that is another configuration: it drops the peer, with all its routes, and adds it.
func (s *Server) setRest(ctx context.Context, p peering.Session, r rest) error {
	was := s.rests[p.Peer]
	s.rests[p.Peer] = r
	s.notes.count(p.Peer, 0, s.notes.of(p.Peer).heard)
	if _, err := s.run.UpdatePeer(ctx, &api.UpdatePeerRequest{Peer: s.peer(p)}); err != nil {
		s.rests[p.Peer] = was
		return fmt.Errorf("configure peer %v, which has announced too many routes: %w", p.Peer, err)
	}
	return nil
}

// count counts a peer's routes, and has GoBGP end the session if they are too many. GoBGP looks at once when the limit is new, and does not keep it.
func (s *Server) count(ctx context.Context, p peering.Session, heard uint64) error {
	var all, most uint64
	err := s.run.ListPeer(ctx, &api.ListPeerRequest{Address: p.Peer.String()}, func(peer *api.Peer) {
		for _, f := range peer.GetAfiSafis() {
			n := f.GetState().GetReceived()
			all, most = all+n, max(most, n)
		}
	})
	if err != nil {
		return fmt.Errorf("count the routes of peer %v: %w", p.Peer, err)
	}
	s.notes.count(p.Peer, all, heard)
	if most <= uint64(s.opts.MaxRoutes) {
		return nil
	}
	for _, peer := range []*api.Peer{limited(s.peer(p), s.opts.MaxRoutes), s.peer(p)} {
		if _, err := s.run.UpdatePeer(ctx, &api.UpdatePeerRequest{Peer: peer}); err != nil {
			return fmt.Errorf("limit the routes of peer %v: %w", p.Peer, err)
		}
	}
	return nil
}

// limited gives each family of a peer a limit of routes.
func limited(p *api.Peer, most uint32) *api.Peer {
	for _, f := range p.AfiSafis {
		f.PrefixLimits = &api.PrefixLimit{Family: f.Config.Family, MaxPrefixes: most}
	}
	return p
}
