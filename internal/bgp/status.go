package bgp

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"github.com/muslin-cni/muslin/internal/peering"
)

// Status is how a session is doing.
type Status struct {
	Name       string
	Kind       peering.Kind
	Peer       netip.Addr
	State      string    // Idle, Connect, Active, Passive, OpenSent, OpenConfirm or Established (RFC 4271 section 8.2.2)
	Since      time.Time // that it is Established, or that it is not
	LastError  string    // why it is not Established, as far as known; "" while it is
	Complete   bool      // it is Established, and the peer has sent all that it had at that time (RFC 4724: the end of RIB)
	Restarting bool      // the peer is away and its routes are kept
	Flaps      uint32    // how often it was Established and is so no longer
	Received   uint64    // routes, before filters
	Accepted   uint64    // routes, after filters
	Advertised uint64    // routes
	Updates    Counter   // messages
	Messages   Counter   // of all kinds
}

// Established tells whether routes can be exchanged.
func (s Status) Established() bool { return s.State == established }

const established = "Established"

// States are all that Status.State can be.
func States() []string {
	return []string{"Idle", "Connect", "Active", "Passive", "OpenSent", "OpenConfirm", established}
}

// Counter counts in both directions.
type Counter struct{ Received, Sent uint64 }

// Status returns the state of every session that the last Apply asked for, sorted by peer.
func (s *Server) Status() ([]Status, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.run == nil {
		return nil, nil
	}
	var out []Status
	err := s.run.ListPeer(context.Background(), &api.ListPeerRequest{EnableAdvertised: true}, func(p *api.Peer) {
		addr, err := netip.ParseAddr(p.GetState().GetNeighborAddress())
		if err != nil {
			addr, err = netip.ParseAddr(p.GetConf().GetNeighborAddress())
		}
		if session, ok := s.sessions[addr]; err == nil && ok {
			out = append(out, s.status(session, p))
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list peers: %w", err)
	}
	slices.SortFunc(out, func(a, b Status) int { return a.Peer.Compare(b.Peer) })
	return out, nil
}

func (s *Server) status(session peering.Session, p *api.Peer) Status {
	n := s.notes.of(session.Peer)
	st := p.GetState()
	out := Status{
		Name: session.Name, Kind: session.Kind, Peer: session.Peer, State: stateName(st.GetSessionState()), Since: n.since, LastError: n.text,
		Flaps: st.GetFlops(), Restarting: p.GetGracefulRestart().GetPeerRestarting(),
		Updates:  Counter{Received: st.GetMessages().GetReceived().GetUpdate(), Sent: st.GetMessages().GetSent().GetUpdate()},
		Messages: Counter{Received: st.GetMessages().GetReceived().GetTotal(), Sent: st.GetMessages().GetSent().GetTotal()},
	}
	if out.State == "Active" && session.Passive {
		out.State = "Passive"
	}
	if r := s.rests[session.Peer]; r.on {
		out.LastError = s.tooMany() + "; tried again at " + r.until.Format(time.TimeOnly)
	}
	if out.Established() {
		out.LastError = ""
	}
	out.Complete = out.Established() && complete(p, time.Since(n.since))
	for _, f := range p.GetAfiSafis() {
		out.Received += f.GetState().GetReceived()
		out.Accepted += f.GetState().GetAccepted()
		out.Advertised += f.GetState().GetAdvertised()
	}
	return out
}

// tellTime is how long a peer that does not say when it has told everything is taken to need for it.
const tellTime = 10 * time.Second

// complete tells whether an established peer has told everything.
func complete(p *api.Peer, up time.Duration) bool {
	for _, f := range p.GetAfiSafis() {
		if !f.GetMpGracefulRestart().GetState().GetEndOfRibReceived() && up < tellTime {
			return false
		}
	}
	return true
}

func stateName(s api.PeerState_SessionState) string {
	switch s {
	case api.PeerState_SESSION_STATE_CONNECT:
		return "Connect"
	case api.PeerState_SESSION_STATE_ACTIVE:
		return "Active"
	case api.PeerState_SESSION_STATE_OPENSENT:
		return "OpenSent"
	case api.PeerState_SESSION_STATE_OPENCONFIRM:
		return "OpenConfirm"
	case api.PeerState_SESSION_STATE_ESTABLISHED:
		return established
	default:
		return "Idle"
	}
}

// notes remembers of each peer what GoBGP says once and does not keep: since when, and why not. It has a lock of its own, since it is
// told while GoBGP holds locks of its.
type notes struct {
	most uint32 // routes of a family; 0: any number

	mu sync.Mutex // guards what follows
	by map[netip.Addr]note
}

type note struct {
	since time.Time
	up    bool
	text  string
	// Routes as announced since they were last counted, and how many there were then; see Tend.
	heard, counted uint64
	over           bool // GoBGP has ended the session for having too many, and nothing more was done about it yet
}

func newNotes(most uint32) *notes { return &notes{most: most, by: map[netip.Addr]note{}} }

// of returns what is known of a peer. One of which nothing is known is new: its time begins now.
func (n *notes) of(peer netip.Addr) note {
	n.mu.Lock()
	defer n.mu.Unlock()
	out, ok := n.by[peer]
	if !ok || out.since.IsZero() {
		out.since = time.Now()
		n.by[peer] = out
	}
	return out
}

// peer takes note of an event, and says whether the session came up or went down with it.
func (n *notes) peer(e *apiutil.WatchEventMessage_PeerEvent, at time.Time) (up, down bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	st := e.Peer.State
	was := n.by[st.NeighborAddress]
	is := was
	is.up = st.SessionState == bgp.BGP_FSM_ESTABLISHED
	if is.up != was.up || is.since.IsZero() {
		is.since = at
	}
	if st.DisconnectMessage != "" {
		is.text = st.DisconnectMessage
	}
	if is.up {
		is.text = ""
	}
	n.by[st.NeighborAddress] = is
	return is.up && !was.up, was.up && !is.up
}

// say takes note of why a session is not established.
func (n *notes) say(peer netip.Addr, text string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	is := n.by[peer]
	if !is.up {
		is.text = text
		n.by[peer] = is
	}
}

// hear takes note of routes that a peer announces, and tells whether it is time to count all of its: they may be too many.
func (n *notes) hear(peer netip.Addr, routes int) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	it := n.by[peer]
	it.heard += uint64(routes)
	n.by[peer] = it
	return n.suspect(it)
}

// suspect tells whether there may be too many routes. A count costs as much as there are, so there is none for each of a peer that is near its limit.
func (n *notes) suspect(it note) bool {
	most := uint64(n.most)
	return most > 0 && it.heard > max(most-min(most, it.counted), most/16)
}

// count takes note of how many routes a peer's session has, the last announced of which are those that were heard of before they were counted.
func (n *notes) count(peer netip.Addr, routes, heard uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	it := n.by[peer]
	it.heard, it.counted = it.heard-min(it.heard, heard), routes
	n.by[peer] = it
}

// over takes note of whether GoBGP has ended a session for having too many routes.
func (n *notes) over(peer netip.Addr, is bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	it := n.by[peer]
	it.over = is
	n.by[peer] = it
}

// forget drops the notes of peers that are not wanted any more.
func (n *notes) forget(want map[netip.Addr]peering.Session) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for p := range n.by {
		if _, ok := want[p]; !ok {
			delete(n.by, p)
		}
	}
}

// listener is the log handler that GoBGP writes to. Why a peer cannot be reached, and what it was refused for, GoBGP tells its
// log alone. What is severe enough goes on to next.
type listener struct {
	notes *notes
	next  slog.Handler
	least *slog.LevelVar // of what goes on to next
	touch func()         // says that Tend has something to do
	peer  netip.Addr     // whom the logger is about; zero if none
}

// Enabled implements slog.Handler.
func (l *listener) Enabled(_ context.Context, level slog.Level) bool {
	return l.peer.IsValid() || level >= l.least.Level()
}

// Handle implements slog.Handler.
func (l *listener) Handle(ctx context.Context, r slog.Record) error {
	if r.Message == "received update" && l.peer.IsValid() && l.notes.hear(l.peer, announced(r)) {
		l.touch()
	}
	attrs := map[string]string{}
	r.Attrs(func(a slog.Attr) bool { attrs[a.Key] = a.Value.String(); return true })
	peer := l.peer
	if p, err := netip.ParseAddr(attrs["Key"]); err == nil {
		peer = p
	}
	if peer.IsValid() {
		switch r.Message {
		case "failed to connect":
			l.notes.say(peer, "Socket: "+cause(attrs["Error"]))
		case "sent notification":
			l.notes.say(peer, "sent notification "+notification(attrs["Code"], attrs["Subcode"]))
		case "Administrative shutdown(Prefix limit reached)": // no event says so where the peer closes the connection at that very moment
			l.notes.over(peer, true)
			l.touch()
		}
	}
	if r.Message == "failed to stop BGP server" || r.Message == "update prefix limit configuration" || r.Level < l.least.Level() {
		return nil
	}
	r.Level = max(r.Level, slog.LevelInfo) // who asks for BGP's details does not mean everybody's
	if !l.next.Enabled(ctx, r.Level) {
		return nil
	}
	return l.next.Handle(ctx, r)
}

// announced is how many routes an UPDATE announces, of which GoBGP's record tells. No event would tell of those that it rejects.
func announced(r slog.Record) int {
	n := 0
	r.Attrs(func(a slog.Attr) bool {
		switch v := a.Value.Any().(type) {
		case []bgp.PathNLRI:
			if a.Key == "nlri" {
				n += len(v)
			}
		case []bgp.PathAttributeInterface:
			for _, attr := range v {
				if reach, ok := attr.(*bgp.PathAttributeMpReachNLRI); ok {
					n += len(reach.Value)
				}
			}
		}
		return true
	})
	return n
}

// WithAttrs implements slog.Handler.
func (l *listener) WithAttrs(attrs []slog.Attr) slog.Handler {
	out := &listener{notes: l.notes, next: l.next.WithAttrs(attrs), least: l.least, touch: l.touch, peer: l.peer}
	for _, a := range attrs {
		if p, err := netip.ParseAddr(a.Value.String()); a.Key == "Key" && err == nil {
			out.peer = p
		}
	}
	return out
}

// WithGroup implements slog.Handler.
func (l *listener) WithGroup(name string) slog.Handler {
	return &listener{notes: l.notes, next: l.next.WithGroup(name), least: l.least, touch: l.touch, peer: l.peer}
}

// leastOf is the least level of GoBGP's records that a severity asks for. What GoBGP calls Info is of no interest where nothing is wrong.
func leastOf(severity string) slog.Level {
	switch severity {
	case "Trace", "Debug":
		return slog.LevelDebug
	case "Error", "Fatal":
		return slog.LevelError
	default:
		return slog.LevelWarn
	}
}

// cause is the last part of a chain of errors: what the kernel said.
func cause(s string) string {
	if i := strings.LastIndex(s, ": "); i >= 0 {
		s = s[i+2:]
	}
	return s
}

// notification names the errors that configuration leads to (RFC 4271 section 6.2, RFC 6608, RFC 4486); others are given by number.
func notification(code, subcode string) string {
	known := map[string]string{
		"2/2": "bad peer AS", "2/3": "bad BGP identifier", "2/4": "unsupported optional parameter", "2/6": "unacceptable hold time", "4/0": "hold timer expired",
		"6/1": "maximum number of prefixes reached",
	}
	if text, ok := known[code+"/"+subcode]; ok {
		return text
	}
	return fmt.Sprintf("code %s subcode %s", code, subcode)
}
