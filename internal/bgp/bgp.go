// Package bgp speaks BGP: it announces a full set of routes and knows the full set learned.
//
// A Server is GoBGP inside the process. Apply takes the whole configuration and changes what differs: a peer whose configuration
// stays keeps its session. Announce takes every route that is to be originated, and Learned returns every best path that peers sent.
// Nothing here writes to the kernel.
package bgp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	gobgp "github.com/osrg/gobgp/v4/pkg/server"

	"github.com/muslin-cni/muslin/internal/peering"
)

// Options are what a Server is made with.
type Options struct {
	// Restarting says that an earlier run of this node's speaker has ended a moment ago, and that its routes are in the kernel still. The
	// sessions of the first Apply then ask their peers to keep what they have (RFC 4724).
	Restarting bool
	// MaxRoutes is how many routes of one family a peer may announce, before filters; 0: any number.
	MaxRoutes uint32
	// Rest is how long the first of the rests is that Tend gives to a peer which announces more; 0: a minute.
	Rest time.Duration
}

// Server speaks for one node. All methods may be called concurrently. A process has one Server at a time: GoBGP keeps what concerns
// the choice of paths in package variables.
type Server struct {
	log     *slog.Logger
	opts    Options
	changed chan struct{}
	notes   *notes
	least   *slog.LevelVar // of what is logged

	mu       sync.Mutex // guards what follows
	run      *run       // nil while there is nobody to speak to
	closed   bool
	broken   bool // what the last Apply asked for could not be started
	cfg      peering.Speaker
	policies compiled
	version  int                            // of the policies' names
	routes   map[netip.Prefix]peering.Route // to be announced
	sessions map[netip.Addr]peering.Session // that GoBGP has, by its own word for them
	rests    map[netip.Addr]rest            // of sessions that have had too many routes
}

// run is one life of GoBGP: a change of the AS number or the router id ends it.
type run struct {
	*gobgp.BgpServer
	serving sync.WaitGroup
	cancel  context.CancelFunc // of the watch
	first   bool               // no session was added yet
}

// New returns a Server that does nothing until Apply. What GoBGP logs goes to log as far as it concerns an operator.
func New(log *slog.Logger, opts Options) *Server {
	return &Server{
		log: log, opts: opts, changed: make(chan struct{}, 1), notes: newNotes(opts.MaxRoutes), least: new(slog.LevelVar),
		routes: map[netip.Prefix]peering.Route{}, sessions: map[netip.Addr]peering.Session{}, rests: map[netip.Addr]rest{},
	}
}

// errClosed is what a Server says after Close.
var errClosed = errors.New("the BGP speaker is closed")

// Changed delivers when Learned or Status may have another answer than before. It says so once for many changes.
func (s *Server) Changed() <-chan struct{} { return s.changed }

func (s *Server) touch() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// Apply makes the speaker what cfg says. Peers whose Session is unchanged, or differs in filters or timers alone, keep their sessions; a
// change of AS, RouterID, Port or Listen ends all of them. It goes on past a peer that cannot be configured, and joins the errors: call it
// again. A Speaker without AS or RouterID speaks to nobody: all sessions end with a notification, and peers drop the routes at once. Call Announce before the first Apply: peers take the end of what they are sent at first for the whole.
func (s *Server) Apply(ctx context.Context, cfg peering.Speaker) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errClosed
	}
	defer s.touch()
	s.broken = false
	s.least.Set(leastOf(cfg.Log))
	if s.run != nil && !sameSpeaker(s.cfg, cfg) {
		if err := s.stop(ctx, false); err != nil {
			return err
		}
	}
	if !cfg.RouterID.IsValid() || cfg.AS == 0 {
		return nil
	}
	if s.run == nil {
		if err := s.start(ctx, cfg); err != nil {
			s.broken = true
			return err
		}
	}
	s.cfg = cfg
	errs := s.removePeers(ctx, cfg)
	soft, err := s.setPolicies(ctx, cfg)
	if err != nil {
		return errors.Join(errs, fmt.Errorf("set BGP filters: %w", err)) // no peer is added without its filters
	}
	return errors.Join(errs, s.addPeers(ctx, cfg), s.refresh(ctx, soft))
}

// sameSpeaker tells whether two configurations differ in sessions alone.
func sameSpeaker(a, b peering.Speaker) bool {
	return a.AS == b.AS && a.RouterID == b.RouterID && a.Port == b.Port && slices.Equal(a.Listen, b.Listen)
}

// start begins a life of GoBGP and gives it the routes, before there is anyone to send them to.
func (s *Server) start(ctx context.Context, cfg peering.Speaker) error {
	level := new(slog.LevelVar)
	level.Set(slog.LevelDebug) // that a peer cannot be dialled is said at this level
	r := &run{BgpServer: gobgp.NewBgpServer(gobgp.LoggerOption(slog.New(&listener{notes: s.notes, next: s.log.Handler(), least: s.least, touch: s.touch}), level)), first: true}
	r.serving.Go(r.Serve)
	global := &api.Global{
		Asn: uint32(cfg.AS), RouterId: cfg.RouterID.String(), ListenPort: int32(cfg.Port),
		Families:         []uint32{0, 1}, // IPv4 and IPv6 unicast, by OpenConfig's numbers; tables of all families cost 10 MB
		UseMultiplePaths: true,
	}
	for _, a := range cfg.Listen {
		global.ListenAddresses = append(global.ListenAddresses, a.String())
	}
	err := r.StartBgp(ctx, &api.StartBgpRequest{Global: global})
	if err == nil {
		err = s.watch(r)
	}
	if err == nil {
		err = addPaths(r, s.routes)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("start BGP: %w", err), r.end(ctx, false))
	}
	s.run, s.policies = r, compiled{}
	return nil
}

// watch makes GoBGP's events occasions to look again.
func (s *Server) watch(r *run) error {
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	return r.WatchEvent(ctx, gobgp.WatchEventMessageCallbacks{
		OnPeerUpdate: func(e *apiutil.WatchEventMessage_PeerEvent, at time.Time) {
			s.note(e, at)
			s.touch()
		},
		OnBestPath: func([]*apiutil.Path, time.Time) { s.touch() },
		OnPathEor:  func(*apiutil.Path, time.Time) { s.touch() },
	}, gobgp.WatchPeer(), gobgp.WatchBestPath(true), gobgp.WatchEor(false))
}

// note logs that a session came up or went down.
func (s *Server) note(e *apiutil.WatchEventMessage_PeerEvent, at time.Time) {
	st := e.Peer.State
	up, down := s.notes.peer(e, at)
	switch {
	case s.least.Level() > slog.LevelWarn: // nothing but errors is asked for
	case up:
		s.log.Info("BGP session is up", "peer", st.NeighborAddress, "as", st.PeerASN)
	case down:
		s.log.Warn("BGP session is down", "peer", st.NeighborAddress, "as", st.PeerASN, "reason", st.DisconnectMessage)
	}
}

// end stops GoBGP and waits for its main loop. With graceful no peer is told: their sockets just close.
func (r *run) end(ctx context.Context, graceful bool) error {
	if r.cancel != nil {
		r.cancel()
	}
	err := r.StopBgp(ctx, &api.StopBgpRequest{AllowGracefulRestart: graceful})
	if err != nil {
		return fmt.Errorf("stop BGP: %w", err)
	}
	r.serving.Wait()
	r.Stop() // ends what StopBgp leaves, and complains to the log that the rest has ended (see listener.Handle)
	return nil
}

// stop ends the life of GoBGP, if there is one.
func (s *Server) stop(ctx context.Context, graceful bool) error {
	if s.run == nil {
		return nil
	}
	err := s.run.end(ctx, graceful)
	s.run, s.cfg, s.sessions, s.rests = nil, peering.Speaker{}, map[netip.Addr]peering.Session{}, map[netip.Addr]rest{}
	s.notes.forget(nil)
	return err
}

// Close ends all sessions without a word, so that peers keep the routes and wait for this node to come back (RFC 4724). The Server
// cannot be used afterwards. (Whoever wants peers to drop the routes applies a Speaker without a RouterID.)
func (s *Server) Close(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return s.stop(ctx, true)
}

// removePeers takes away the sessions that are no longer wanted, and those that have to be made anew.
func (s *Server) removePeers(ctx context.Context, cfg peering.Speaker) error {
	want := map[netip.Addr]peering.Session{}
	for _, p := range cfg.Sessions {
		want[p.Peer] = p
	}
	var errs []error
	for addr, have := range s.sessions {
		if p, ok := want[addr]; ok && sameSession(have, p) {
			continue
		}
		if err := s.removePeer(ctx, have); err != nil {
			errs = append(errs, err)
			continue
		}
		delete(s.sessions, addr)
		delete(s.rests, addr)
	}
	s.notes.forget(want)
	return errors.Join(errs...)
}

// sameSession tells whether two sessions with one peer differ in filters, timers or names alone.
func sameSession(a, b peering.Session) bool {
	for _, p := range []*peering.Session{&a, &b} {
		p.Import, p.Export, p.Keepalive, p.Name, p.Kind = nil, nil, 0, "", ""
	}
	return reflect.DeepEqual(a, b)
}

// removePeer deletes a peer. GoBGP would leave its password on the listening socket, where the kernel would then refuse every connection
// of a later peer of that address without one.
func (s *Server) removePeer(ctx context.Context, p peering.Session) error {
	if p.Password != "" {
		p.Password = ""
		if _, err := s.run.UpdatePeer(ctx, &api.UpdatePeerRequest{Peer: s.peer(p)}); err != nil {
			return fmt.Errorf("clear the password of peer %v: %w", p.Peer, err)
		}
	}
	if err := s.run.DeletePeer(ctx, &api.DeletePeerRequest{Address: p.Peer.String()}); err != nil {
		return fmt.Errorf("delete peer %v: %w", p.Peer, err)
	}
	return nil
}

// addPeers adds what is missing and updates timers.
func (s *Server) addPeers(ctx context.Context, cfg peering.Speaker) error {
	var errs []error
	for _, p := range cfg.Sessions {
		have, ok := s.sessions[p.Peer]
		var err error
		switch {
		case !ok:
			err = s.run.AddPeer(ctx, &api.AddPeerRequest{Peer: s.peer(p)})
		case have.Keepalive != p.Keepalive:
			_, err = s.run.UpdatePeer(ctx, &api.UpdatePeerRequest{Peer: s.peer(p)})
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("configure peer %v: %w", p.Peer, err))
			continue
		}
		s.sessions[p.Peer] = p
	}
	if len(cfg.Sessions) > 0 {
		s.run.first = false
	}
	return errors.Join(errs...)
}

// refresh has the filters of established sessions applied to what they have exchanged already.
func (s *Server) refresh(ctx context.Context, soft []softReset) error {
	var errs []error
	for _, r := range soft {
		err := s.run.ResetPeer(ctx, &api.ResetPeerRequest{Address: r.peer.String(), Soft: true, Direction: r.direction})
		if err != nil {
			errs = append(errs, fmt.Errorf("apply filters of peer %v: %w", r.peer, err))
		}
	}
	return errors.Join(errs...)
}
