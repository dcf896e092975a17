package peering

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/selector"
)

// defaultRestart is how long a peer keeps the routes of one that restarts.
const defaultRestart = 120 * time.Second

// target is the far end of a session.
type target struct {
	addr netip.Addr
	port uint16    // 0: as the node says, or 179
	as   api.ASN   // of the session
	node *api.Node // nil if it is none of ours
}

// sessions adds the node's sessions of one family. An address has one session: explicit ones go before those of the mesh, and of
// these all nodes' before some nodes' before those that the other side asks for. It is nil if the node has no address of the family.
func (c *computation) sessions(v6 bool) *family {
	own, ok := c.self.Address(v6)
	if !ok {
		return nil
	}
	f := &family{computation: c, v6: v6, own: own.Addr(), at: map[netip.Addr]Session{}, routers: map[netip.Addr]*api.BGPPeer{}}
	for _, pass := range []func(*api.BGPPeer){f.global, f.specific, f.reverse} {
		for _, b := range c.Peers {
			pass(b)
		}
	}
	f.mesh()
	return f
}

// share has IPv4 sessions carry IPv6 routes too, where the peer has no session for these: it is no node, of which Calico has two, and no IPv6 session
// leads into its AS. What it does not agree to is not sent. (There is no such thing the other way around: kernels that peers run on may not take IPv4
// routes with IPv6 gateways.)
func (f *family) share(six *family) {
	if f == nil || six == nil {
		return
	}
	served := map[api.ASN]bool{}
	for peer := range six.routers {
		served[six.at[peer].PeerAS] = true
	}
	for peer, b := range f.routers {
		s := f.at[peer]
		if served[s.PeerAS] {
			continue
		}
		s.Hop6 = six.own
		s.Import = slices.Concat(only(IPv4, s.Import), only(IPv6, six.imports(b, s)))
		s.Export = slices.Concat(only(IPv4, s.Export), six.byOwnHop(only(IPv6, six.exports(b, s)), s))
		f.at[peer] = s
	}
}

// byOwnHop puts our IPv6 address wherever BGP would put the session's own: IPv4 in IPv6's clothes, which leads nowhere. What is reflected keeps its next hop.
func (f *family) byOwnHop(terms []Term, s Session) []Term {
	own := []Action{{Hop: f.own}}
	for i, t := range terms {
		if slices.ContainsFunc(t.Actions, func(a Action) bool { return a.NextHop == NextHopSelf }) {
			terms[i].Actions = own
		}
	}
	return slices.Concat([]Term{{Match: Match{Family: IPv6, Own: s.Internal()}, Actions: own, Verdict: Next}}, terms)
}

// only restricts terms to a family.
func only(family Family, terms []Term) []Term {
	out := slices.Clone(terms)
	for i := range out {
		out[i].Match.Family = family
	}
	return out
}

// list adds the sessions to the result.
func (f *family) list() {
	if f == nil {
		return
	}
	for _, s := range f.at {
		f.out.Speaker.Sessions = append(f.out.Speaker.Sessions, s)
	}
}

// family is the part of a computation that is done once for IPv4 and once for IPv6.
type family struct {
	*computation
	v6      bool
	own     netip.Addr
	at      map[netip.Addr]Session      // by peer
	routers map[netip.Addr]*api.BGPPeer // whose sessions are with none of our nodes or pods
}

// global adds the sessions that every node has.
func (f *family) global(b *api.BGPPeer) {
	if b.Spec.Node == "" && b.Spec.NodeSelector == "" {
		f.expand(b, Global)
	}
}

// specific adds the sessions of a peer that selects this node.
func (f *family) specific(b *api.BGPPeer) {
	if (b.Spec.Node != "" || b.Spec.NodeSelector != "") && f.selects(b, f.self) {
		f.expand(b, ForNode)
	}
}

// reverse adds the sessions of a peer whose far end this node is: both ends have to be told, and its author named one.
func (f *family) reverse(b *api.BGPPeer) {
	if b.Spec.ReversePeering == "Manual" || b.Spec.LocalWorkloadSelector != "" || !f.isFarEnd(b) {
		return
	}
	kind := Global
	if b.Spec.Node != "" || b.Spec.NodeSelector != "" {
		kind = ForNode
	}
	for _, n := range f.Nodes {
		if n == f.self || !f.selects(b, n) {
			continue
		}
		t, ok := f.nodeTarget(n)
		if !ok {
			continue
		}
		local := f.asOf(f.self)
		if b.Spec.LocalASNumber != nil {
			t.as = *b.Spec.LocalASNumber // that is what n calls itself towards us
		}
		f.add(b, kind, t, local)
	}
}

// isFarEnd tells whether the peer's selector or address means this node.
func (f *family) isFarEnd(b *api.BGPPeer) bool {
	if b.Spec.PeerSelector != "" {
		return f.matches(b, b.Spec.PeerSelector, f.self)
	}
	t, ok := f.parse(b)
	return ok && t.node == f.self && (t.port == 0 || t.port == f.portOf(f.self))
}

// selects tells whether a node has the peer's sessions.
func (f *family) selects(b *api.BGPPeer, n *api.Node) bool {
	switch {
	case b.Spec.Node != "":
		return b.Spec.Node == n.Metadata.Name
	case b.Spec.NodeSelector != "":
		return f.matches(b, b.Spec.NodeSelector, n)
	default:
		return true
	}
}

func (f *family) matches(b *api.BGPPeer, expr string, n *api.Node) bool {
	return f.matchLabels(b, expr, n.Metadata.Labels)
}

func (f *family) matchLabels(b *api.BGPPeer, expr string, labels map[string]string) bool {
	sel, err := selector.Parse(expr)
	if err != nil {
		f.problem("BGPPeer("+b.Metadata.Name+")", "selector %q: %v; correct it, it selects nothing until then", expr, err)
		return false
	}
	return sel.Match(selector.Map(labels))
}

// expand adds a session with everyone that the peer describes.
func (f *family) expand(b *api.BGPPeer, kind Kind) {
	local := f.asOf(f.self)
	if b.Spec.LocalASNumber != nil {
		local = *b.Spec.LocalASNumber
	}
	switch {
	case b.Spec.LocalWorkloadSelector != "":
		f.workloads(b, local)
	case b.Spec.PeerSelector != "":
		for _, n := range f.Nodes {
			if t, ok := f.nodeTarget(n); ok && f.matches(b, b.Spec.PeerSelector, n) {
				f.add(b, kind, t, local)
			}
		}
	default:
		if t, ok := f.parse(b); ok {
			f.add(b, kind, t, local)
		}
	}
}

// workloads adds a session with each local pod that the peer selects.
func (f *family) workloads(b *api.BGPPeer, local api.ASN) {
	for _, e := range f.Endpoints {
		if !f.matchLabels(b, b.Spec.LocalWorkloadSelector, e.Metadata.Labels) {
			continue
		}
		for _, p := range e.Spec.IPNetworks {
			if p.IsValid() && p.Addr().Is6() == f.v6 {
				f.add(b, Workload, target{addr: p.Addr(), as: b.Spec.ASNumber}, local)
			}
		}
	}
}

func (f *family) nodeTarget(n *api.Node) (target, bool) {
	addr, ok := n.Address(f.v6)
	return target{addr: addr.Addr(), as: f.asOf(n), node: n}, ok
}

// parse reads the peer's address. One of a node's with the node's AS number means that node.
func (f *family) parse(b *api.BGPPeer) (target, bool) {
	addr, port, err := api.ParsePeerIP(b.Spec.PeerIP)
	if err != nil {
		f.problem("BGPPeer("+b.Metadata.Name+")", "%v; it has no session until it is corrected", err)
		return target{}, false
	}
	t := target{addr: addr, port: port, as: b.Spec.ASNumber}
	if t.as == 0 {
		t.as = f.globalAS()
	}
	for _, n := range f.Nodes {
		if a, ok := n.Address(f.v6); ok && a.Addr() == addr && f.asOf(n) == t.as {
			t.node = n
		}
	}
	return t, addr.Is6() == f.v6
}

// add adds the session, unless its address has one already.
func (f *family) add(b *api.BGPPeer, kind Kind, t target, local api.ASN) {
	if t.addr == f.own {
		return
	}
	object := "BGPPeer(" + b.Metadata.Name + ")"
	prefix := map[Kind]string{Global: "Global_", ForNode: "Node_", Workload: "Local_Workload_"}[kind]
	s := f.session(prefix, kind, t, local)
	if have, ok := f.at[t.addr]; ok {
		if have.Port != s.Port {
			f.problem(object, "%v has a session on port %d already, and one address has one session; port %d is left out", t.addr, have.Port, s.Port)
		}
		return
	}
	spec := b.Spec
	s.Passive = kind != ForNode && t.node != nil && f.waitsFor(t.addr)
	if spec.SourceAddress == "None" || t.addr.Zone() != "" {
		s.Source = netip.Addr{}
	}
	if !f.password(object, spec.Password, &s) {
		return
	}
	if spec.MaxRestartTime != nil {
		s.Restart = spec.MaxRestartTime.Round(time.Second)
	}
	if spec.KeepaliveTime != nil {
		s.Keepalive = spec.KeepaliveTime.Round(time.Second)
	}
	if n := spec.NumAllowedLocalASNumbers; n != nil {
		s.AllowOwnAS = uint8(min(max(*n, 0), 255))
	}
	if spec.TTLSecurity != nil {
		s.TTLHops = *spec.TTLSecurity
	}
	if via, err := netip.ParseAddr(spec.ReachableBy); err == nil && via.Is6() == f.v6 && spec.PeerIP != "" && t.node != f.self {
		f.out.Reach = append(f.out.Reach, Via{Peer: t.addr, Gateway: via})
	}
	s.Import, s.Export = f.imports(b, s), f.exports(b, s)
	f.at[t.addr] = s
	if t.node == nil && kind != Workload {
		f.routers[t.addr] = b
	}
}

// session is one with everything that no BGPPeer has a say in.
func (f *family) session(prefix string, kind Kind, t target, local api.ASN) Session {
	s := Session{Kind: kind, Peer: t.addr, Port: t.port, PeerAS: t.as, LocalAS: local, Source: f.own, Restart: defaultRestart}
	s.Name = prefix + strings.NewReplacer(".", "_", ":", "_", "%", "_").Replace(t.addr.String())
	switch {
	case t.port != 0:
		s.Name += "_port_" + strconv.Itoa(int(t.port))
	case t.node != nil:
		s.Port = f.portOf(t.node)
	default:
		s.Port = defaultPort
	}
	if own := clusterOf(f.self); own != "" && s.Internal() && clusterOf(t.node) != own {
		s.ClusterID = f.cluster(own)
	}
	return s
}

// cluster reads the node's own cluster id.
func (f *family) cluster(id string) netip.Addr {
	a, err := netip.ParseAddr(id)
	if err != nil || !a.Is4() {
		f.problem("Node("+f.name+")", "spec.bgp.routeReflectorClusterID %q is not of the form of an IPv4 address; the router id is used", id)
		return f.out.Speaker.RouterID
	}
	return a
}

// waitsFor tells which of two nodes waits for the other to dial. The addresses are compared as strings, so that of a pair with a
// Calico node exactly one dials.
func (f *family) waitsFor(peer netip.Addr) bool { return peer.String() > f.own.String() }

// password sets the session's password. A session that shall have one is not attempted without.
func (f *family) password(object string, ref *api.BGPPassword, s *Session) bool {
	if ref == nil || ref.SecretKeyRef == nil {
		return true
	}
	k := Secret{Name: ref.SecretKeyRef.Name, Key: ref.SecretKeyRef.Key}
	pw, ok := f.Passwords[k]
	if !ok || pw == "" {
		f.problem(object, "its password, key %s of Secret %s, is not there; no session with %v until it is", k.Key, k.Name, s.Peer)
		return false
	}
	s.Password = pw
	return true
}

// mesh adds a session with every other node. Route reflectors take no part, and nobody counts on them to.
func (f *family) mesh() {
	spec := f.config.Spec
	if spec.NodeToNodeMeshEnabled != nil && !*spec.NodeToNodeMeshEnabled || clusterOf(f.self) != "" {
		return
	}
	for _, n := range f.Nodes {
		t, ok := f.nodeTarget(n)
		if _, taken := f.at[t.addr]; !ok || taken || n == f.self || t.addr == f.own || clusterOf(n) != "" {
			continue
		}
		s := f.session("Mesh_", Mesh, t, f.asOf(f.self))
		s.Passive = f.waitsFor(t.addr)
		if !f.password("BGPConfiguration(default)", spec.NodeMeshPassword, &s) {
			continue
		}
		if r := spec.NodeMeshMaxRestartTime; r != nil {
			s.Restart = r.Round(time.Second)
		}
		none := &api.BGPPeer{}
		s.Import, s.Export = f.imports(none, s), f.exports(none, s)
		f.at[t.addr] = s
	}
}

// pools lists the pools of the family.
func (f *family) pools() []*api.IPPool {
	return slices.DeleteFunc(slices.Clone(f.Pools), func(p *api.IPPool) bool {
		return !p.Spec.CIDR.IsValid() || p.Spec.CIDR.Addr().Is6() != f.v6
	})
}
