package agent

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/muslin-cni/muslin/internal/bgp"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/peering"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

const (
	defaultStatusPeriod = 10 * time.Second // where a CalicoNodeStatus says none
	// mostStatusRoutes bounds the routes of a family in one report: etcd takes values of 1.5 MiB at most, and a route is some 150 bytes of JSON.
	mostStatusRoutes = 4000
	// statusTime is as people read it who are not at the node, nor there on the same day.
	statusTime = time.DateTime
)

// nodeStatuses answers the CalicoNodeStatuses that ask for this node, each in its own time. It follows them beside the feed, so that the
// reports of all nodes are no occasion for rounds of the loop.
type nodeStatuses struct {
	store  *store.Client
	node   string
	report func(context.Context, []string) (api.CalicoNodeStatusReport, error) // of these classes
	log    *slog.Logger

	due     map[string]dueStatus // by key; owned by run
	failing string               // as logged; owned by run
}

// dueStatus is a CalicoNodeStatus that asks for this node.
type dueStatus struct {
	entry store.Entry[api.CalicoNodeStatus]
	next  time.Time // for a report; zero if it asks for none
}

// run follows and answers until ctx ends. What fails is tried again.
func (n *nodeStatuses) run(ctx context.Context) error {
	retry := backoff{}
	for ctx.Err() == nil {
		err := n.follow(ctx, retry.reset)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && err.Error() != n.failing {
			n.log.Warn("follow CalicoNodeStatuses", "error", err)
			n.failing = err.Error()
		}
		retry.next()
		select {
		case <-ctx.Done():
		case <-retry.due():
			retry.fired()
		}
	}
	return nil
}

// follow lists and watches them until something fails. It calls going once it watches.
func (n *nodeStatuses) follow(ctx context.Context, going func()) error {
	prefix := (*api.CalicoNodeStatus)(nil).KindOf().Prefix()
	all, rev, err := store.List[api.CalicoNodeStatus](ctx, n.store, prefix)
	var unreadable *store.UnreadableError
	if err != nil && !errors.As(err, &unreadable) {
		return err
	}
	was := n.due
	n.due = map[string]dueStatus{}
	for _, e := range all {
		n.take(e, was[e.Key])
	}
	g, ctx := errgroup.WithContext(ctx)
	w, err := n.store.Watch(ctx, prefix, prefixEnd(prefix), rev)
	if err != nil {
		return err
	}
	defer w.Close()
	going()
	n.failing = ""
	batches := make(chan store.Batch)
	g.Go(func() error { return pump(ctx, w, batches) })
	g.Go(func() error {
		defer w.Close() // so that Next ends
		return n.answer(ctx, batches)
	})
	return g.Wait()
}

// prefixEnd is the first key after those that begin with a prefix that ends in a slash.
func prefixEnd(prefix string) string { return prefix[:len(prefix)-1] + "0" }

func pump(ctx context.Context, w *store.Watcher, into chan<- store.Batch) error {
	for {
		b, err := w.Next()
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case into <- b:
		}
	}
}

// answer takes over changes, and reports what is due, until ctx ends.
func (n *nodeStatuses) answer(ctx context.Context, batches <-chan store.Batch) error {
	for {
		var timer <-chan time.Time
		if next, ok := n.next(); ok {
			timer = time.After(time.Until(next))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case b := <-batches:
			for _, kv := range b.Changes {
				n.changed(kv)
			}
		case <-timer:
			if err := n.write(ctx); err != nil {
				return err
			}
		}
	}
}

// changed takes over a change. One that cannot be read is nobody's.
func (n *nodeStatuses) changed(kv store.KV) {
	had := n.due[kv.Key]
	delete(n.due, kv.Key)
	if e, err := store.Decode[api.CalicoNodeStatus](kv); err == nil && e.Exists() {
		n.take(e, had)
	}
}

// take notes an entry that may ask for this node. One that asks for the same as before is due when it was.
func (n *nodeStatuses) take(e store.Entry[api.CalicoNodeStatus], had dueStatus) {
	if e.Value.Spec.Node != n.node {
		return
	}
	d := dueStatus{entry: e, next: time.Now()}
	if had.entry.Exists() && reflect.DeepEqual(had.entry.Value.Spec, e.Value.Spec) {
		d.next = had.next
	}
	if period(e.Value.Spec) == 0 {
		d.next = time.Time{}
	}
	n.due[e.Key] = d
}

func period(s api.CalicoNodeStatusSpec) time.Duration {
	if s.UpdatePeriodSeconds == nil {
		return defaultStatusPeriod
	}
	return time.Duration(*s.UpdatePeriodSeconds) * time.Second
}

// next is when the first report is due.
func (n *nodeStatuses) next() (first time.Time, ok bool) {
	for _, d := range n.due {
		if !d.next.IsZero() && (!ok || d.next.Before(first)) {
			first, ok = d.next, true
		}
	}
	return first, ok
}

// write reports what is due. One that somebody else has changed meanwhile comes again by the watch.
func (n *nodeStatuses) write(ctx context.Context) error {
	now := time.Now()
	for key, d := range n.due {
		if d.next.IsZero() || d.next.After(now) {
			continue
		}
		v := *d.entry.Value
		report, err := n.report(ctx, v.Spec.Classes)
		if err != nil {
			return err
		}
		v.Status = report
		e, err := store.Update(ctx, n.store, d.entry, &v)
		if err != nil && !errors.Is(err, store.ErrConflict) {
			return err
		}
		if err == nil {
			d.entry = e
		}
		d.next = now.Add(period(v.Spec))
		n.due[key] = d
	}
	return nil
}

// nodeReport says how this node fares, of the classes asked for.
func (a *Agent) nodeReport(ctx context.Context, classes []string) (out api.CalicoNodeStatusReport, err error) {
	out.LastUpdated = time.Now().UTC().Truncate(time.Second)
	sessions, err := a.bgp.status()
	if err != nil {
		return out, err
	}
	if slices.Contains(classes, "Agent") {
		out.Agent = a.daemonStatus()
	}
	if slices.Contains(classes, "BGP") {
		out.BGP = sessionReport(sessions)
	}
	if slices.Contains(classes, "Routes") {
		out.Routes, err = a.routeReport(ctx, sessions)
	}
	return out, err
}

// daemonStatus says of each family whether BGP runs for it.
func (a *Agent) daemonStatus() (out api.NodeAgentStatus) {
	for v6, into := range map[bool]*api.BGPDaemonStatus{false: &out.BIRDV4, true: &out.BIRDV6} {
		*into = api.BGPDaemonStatus{State: "NotReady"}
		id, ok := a.routerID(v6)
		if !ok {
			continue
		}
		*into = api.BGPDaemonStatus{State: "Ready", Version: "Muslin " + a.version, RouterID: id.String(), LastBootTime: a.began.UTC().Format(statusTime)}
		if at := a.bgp.lastConfigured(); !at.IsZero() {
			into.LastReconfigurationTime = at.UTC().Format(statusTime)
		}
	}
	return out
}

// routerID is the node's in BGP; ok is false where it does not speak BGP for the family.
func (a *Agent) routerID(v6 bool) (id netip.Addr, ok bool) {
	snap, synced := a.feed.Snapshot()
	self := snap.Node(a.node)
	if a.bgp == nil || !synced || !self.Exists() {
		return id, false
	}
	_, ok = self.Value.Address(v6)
	return peering.Compute(a.node, peering.Model{Nodes: []*api.Node{self.Value}, RouterID: a.cfg.RouterID}).Speaker.RouterID, ok
}

// sessionReport lists the sessions that people ask for: not those with pods.
func sessionReport(sessions []bgp.Status) (out api.NodeBGPStatus) {
	for _, s := range sessions {
		kind, ok := sessionTypes()[s.Kind]
		if !ok {
			continue
		}
		up, down, list := &out.NumberEstablishedV4, &out.NumberNotEstablishedV4, &out.PeersV4
		if s.Peer.Is6() {
			up, down, list = &out.NumberEstablishedV6, &out.NumberNotEstablishedV6, &out.PeersV6
		}
		if !s.Established() {
			up = down
		}
		*up++
		state := s.State
		if state == "Passive" { // BIRD's word; RFC 4271's states, which this field holds, have Active for it
			state = "Active"
		}
		*list = append(*list, api.BGPPeerStatus{PeerIP: s.Peer.WithZone("").String(), Type: kind, State: state, Since: s.Since.UTC().Format(statusTime)})
	}
	return out
}

// sessionTypes are the kinds of sessions that a CalicoNodeStatus lists, in its words.
func sessionTypes() map[peering.Kind]string {
	return map[peering.Kind]string{peering.Mesh: "NodeMesh", peering.ForNode: "NodePeer", peering.Global: "GlobalPeer"}
}

// routeReport lists the routes that the kernel holds of us (FIB), and those that peers have sent and that are not in it (RIB).
func (a *Agent) routeReport(ctx context.Context, sessions []bgp.Status) (out api.NodeRoutesStatus, err error) {
	held, err := a.rtnl.Routes().List(ctx)
	if err != nil {
		return out, err
	}
	maps.DeleteFunc(held, func(k kernel.RouteKey, _ kernel.Route) bool { return k.Table != 0 }) // WireGuard's say which go encrypted
	paths, err := a.bgp.paths()
	if err != nil {
		return out, err
	}
	rows := routeRows(held, paths, sessions)
	for _, v6 := range []bool{false, true} {
		into := &out.RoutesV4
		if v6 {
			into = &out.RoutesV6
		}
		for _, r := range rows {
			if r.dst.Addr().Is6() == v6 && len(*into) < mostStatusRoutes {
				*into = append(*into, r.status)
			}
		}
	}
	return out, nil
}

// routeRow is a route of a report.
type routeRow struct {
	dst    netip.Prefix
	status api.RouteStatus
}

// routeRows lists the kernel's routes, with the paths that they came from, and the paths that none came from, by destination.
func routeRows(held map[kernel.RouteKey]kernel.Route, paths []peering.Path, sessions []bgp.Status) (out []routeRow) {
	kinds := map[netip.Addr]peering.Kind{}
	for _, s := range sessions {
		kinds[s.Peer] = s.Kind
	}
	sent := map[netip.Prefix][]peering.Path{}
	for _, p := range paths {
		sent[p.Prefix] = append(sent[p.Prefix], p)
	}
	for k, r := range held {
		hops := r.Hops.List()
		if len(hops) == 0 {
			hops = []kernel.Hop{{Gateway: r.Gateway, Dev: r.Dev}}
		}
		for _, h := range hops {
			row := api.RouteStatus{Type: "FIB", Destination: k.Dst.String(), Interface: h.Dev.Name, LearnedFrom: sourceOf(r)}
			if h.Gateway.IsValid() {
				row.Gateway = h.Gateway.String()
			}
			if i := pathOf(sent[k.Dst], h.Gateway); i >= 0 {
				row.LearnedFrom = learnedFrom(sent[k.Dst][i], kinds)
				sent[k.Dst] = slices.Delete(sent[k.Dst], i, i+1)
			}
			out = append(out, routeRow{k.Dst, row})
		}
	}
	for dst, rest := range sent {
		for _, p := range rest {
			out = append(out, routeRow{dst, api.RouteStatus{Type: "RIB", Destination: dst.String(), Gateway: p.NextHop.WithZone("").String(), LearnedFrom: learnedFrom(p, kinds)}})
		}
	}
	slices.SortFunc(out, func(a, b routeRow) int { return a.compare(b) })
	return out
}

func (r routeRow) compare(o routeRow) int {
	if c := r.dst.Compare(o.dst); c != 0 {
		return c
	}
	for _, pair := range [][2]string{{r.status.Type, o.status.Type}, {r.status.Gateway, o.status.Gateway}, {r.status.LearnedFrom.PeerIP, o.status.LearnedFrom.PeerIP}} {
		if pair[0] != pair[1] {
			return map[bool]int{true: -1, false: 1}[pair[0] < pair[1]]
		}
	}
	return 0
}

// pathOf finds the path that a way through the gateway comes from: that with this next hop, else any, whose next hop is reached through it. A
// way without a gateway comes from none.
func pathOf(paths []peering.Path, gateway netip.Addr) int {
	if !gateway.IsValid() || len(paths) == 0 {
		return -1
	}
	return max(0, slices.IndexFunc(paths, func(p peering.Path) bool { return p.NextHop.WithZone("") == gateway }))
}

// sourceOf is where a route comes from that no peer has sent, in BIRD's words: blocks are static, pods' routes and those of the datastore are
// there without it.
func sourceOf(r kernel.Route) api.LearnedFrom {
	if r.Type == kernel.Blackhole {
		return api.LearnedFrom{SourceType: "Static"}
	}
	return api.LearnedFrom{SourceType: "Kernel"}
}

func learnedFrom(p peering.Path, kinds map[netip.Addr]peering.Kind) api.LearnedFrom {
	if kinds[p.Peer] == peering.Mesh {
		return api.LearnedFrom{SourceType: "NodeMesh", PeerIP: p.Peer.String()}
	}
	return api.LearnedFrom{SourceType: "BGPPeer", PeerIP: p.Peer.WithZone("").String()}
}
