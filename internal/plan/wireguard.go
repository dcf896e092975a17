package plan

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/pkg/api"
)

// WireGuard is what settings say of encryption.
//
// A routing table of its own says what is encrypted, and a rule before that of the main table leads there: so it goes before any other
// mode, whose routes stay where they are. In that table is every range that another node uses: through the device where that node has told its public key, and else
// refused, so that with encryption on nothing goes out in clear that nobody has allowed to. WireGuard's own packets have a mark by which
// the rule passes them over.
type WireGuard struct {
	Enabled, Enabled6 bool
	Device, Device6   string // names
	Port, Port6       uint16 // UDP, the same on all nodes
	MTU, MTU6         int    // 0: from the host's devices
	Table             int    // for the routes; 0: there is none to be had
	Priority          int    // of the rule
	Mark              uint32 // one bit
	KeepAlive         time.Duration
	Threaded          bool
	Hosts             bool   // what goes between nodes is encrypted too
	Plain             bool   // what is for nodes without a key goes in clear, and is not refused
	Lacking           string // why the device could not be made; "": it was not tried, or could
	Onset, Onset6     Onset

	// With Hosts these go in clear, so that a node finds its way into the cluster: what hosts and servers on nodes say to each other by TCP, and what
	// comes to ports of this agent. Nothing else is: by etcd a node tells and learns keys, by the API server its kubelet starts the agent that does, and
	// all that comes after has keys to go by. Probes too go as the packets do whose way they test.
	Exempt []netip.AddrPort
	Own    []uint16
}

// Onset is how far a node is that was told to encrypt while its agent ran. The others are told at the same moment, and none of them can have a key yet. Refused
// at once, all that pods say would be lost until keys have been told. What goes in clear meanwhile is what did a moment before.
type Onset uint8

// The steps, from the last to the first. An agent that starts where encryption is on takes the last.
const (
	Strict  Onset = iota // what cannot be encrypted is refused
	Partial              // it goes in clear yet
	Silent               // all does: the others may not know this node's key yet, and who does not drops what is encrypted
)

// fallbackTable is used where settings leave none: without one, what is to be encrypted would go in clear.
const fallbackTable = 1

// encryption is WireGuard of a family.
type encryption struct {
	tunnel
	WireGuard
	v6       bool
	name     string // of the device
	port     uint16
	onset    Onset
	overhead int
	nodes    map[string]wgPeer // that can be encrypted to
}

// wgPeer is another node as a peer.
type wgPeer struct {
	key  kernel.PeerKey
	peer kernel.Peer
	own  []netip.Prefix // its addresses that are in no block
}

// allowed is a range that a peer may send from.
type allowed struct {
	key kernel.PeerKey
	dst netip.Prefix
}

func (w WireGuard) encryption(v6, asked, kept bool) encryption {
	e := encryption{WireGuard: w, v6: v6, name: w.Device, port: w.Port, onset: w.Onset, overhead: WireGuardOverhead, nodes: map[string]wgPeer{}}
	e.tunnel = tunnel{kind: "WireGuard", setting: "wireguardEnabled", mtu: w.MTU}
	if v6 {
		e.name, e.port, e.onset, e.overhead = w.Device6, w.Port6, w.Onset6, WireGuardOverheadV6
		e.tunnel = tunnel{kind: "IPv6 WireGuard", setting: "wireguardEnabledV6", mtu: w.MTU6}
	}
	if w.Lacking != "" {
		e.onset = Strict // there is no key to wait for
	}
	e.when(true, asked, kept)
	return e
}

// refusal is the route of what is not to go in clear. A throw leaves it to the main table.
func (e *encryption) refusal() kernel.Route {
	if e.Plain {
		return kernel.Route{Type: kernel.Throw}
	}
	return kernel.Route{Type: kernel.Prohibit}
}

// unencrypted is the route of what cannot be encrypted.
func (e *encryption) unencrypted() kernel.Route {
	if e.onset != Strict {
		return kernel.Route{Type: kernel.Throw}
	}
	return e.refusal()
}

// reaches tells whether a node is to be encrypted to by now.
func (e *encryption) reaches(node string) bool {
	_, ok := e.nodes[node]
	return ok && e.onset != Silent
}

// in names the encrypted route to a range.
func (e *encryption) in(dst netip.Prefix) kernel.RouteKey {
	k := keyOf(dst)
	k.Table = e.Table
	return k
}

// backstop names the route that is left when the device goes, and with it the encrypted one: until that is back, packets would find their way in clear.
func (e *encryption) backstop(dst netip.Prefix) kernel.RouteKey {
	k := e.in(dst)
	k.Metric = backstopMetric
	return k
}

const backstopMetric = 1 << 24

// ownTraffic is that of any tunnel. With hosts' encryption the node's own address is known to come through this one.
func (e *encryption) ownTraffic(self netip.Prefix) string {
	rule := ownTraffic(e.name)
	if e.Hosts && self.IsValid() {
		rule = "! -s " + netip.PrefixFrom(self.Addr(), self.Addr().BitLen()).String() + " " + rule
	}
	return rule
}

// wireGuard adds the family's device and its peers, and the rules that lead to its routes.
func (f *family) wireGuard() {
	if !f.wg.on {
		return
	}
	if f.wg.asked && f.wg.Table == 0 {
		f.problem("FelixConfiguration", "routeTableRanges leaves no routing table for WireGuard; name one between 1 and 252, or larger than 255. %d is used", fallbackTable)
		f.wg.Table = fallbackTable
	}
	f.wgDevice()
	if f.wg.ready {
		f.wgPeers()
	}
	if f.wg.asked {
		f.wgRules()
	}
	if f.wg.asked && f.wg.Hosts {
		f.wgHosts()
	}
}

// wgDevice adds the device. While it is not there, and where it cannot be, what would go through it is refused.
func (f *family) wgDevice() {
	me, name := f.nodes[f.Node], f.wg.name
	found, there := f.host.Links[name]
	if !there && f.wg.Lacking != "" {
		f.problem("Node("+f.Node+")", "cannot do what %s asks for: %s; what its pods send to other nodes %s", f.wg.setting, f.wg.Lacking, f.wg.fate())
		return
	}
	f.out.Links[name] = kernel.Link{Type: kernel.WireGuardLink, MTU: f.wg.mtu}
	if f.v6 && f.wg.mtu < leastMTU6 {
		f.problem("Node("+f.Node+")", "%s has an MTU of %d, and IPv6 needs %d: no IPv6 through it; raise the MTU of %s to %d",
			name, f.wg.mtu, leastMTU6, f.parent.Name, leastMTU6+WireGuardOverheadV6)
		return
	}
	if me != nil {
		f.wgAddress(wgAddr(me, f.v6))
	}
	dev, up := f.host.Dev(name)
	if f.wg.ready = up && found.Kind == "wireguard"; !f.wg.ready {
		return
	}
	f.wg.dev = dev
	f.out.WireGuard[dev] = kernel.WireGuard{Port: f.wg.port, Mark: f.wg.Mark, Keyed: true, Threaded: f.wg.Threaded}
}

// wgAddress gives the device the address that our Node says: the host talks to other nodes' pods from it.
func (f *family) wgAddress(a netip.Addr) {
	switch {
	case a.IsValid():
		f.out.Addrs[kernel.AddrKey{Link: f.wg.name, Addr: netip.PrefixFrom(a, a.BitLen())}] = struct{}{}
	case f.wg.asked:
		f.problem("Node("+f.Node+")", "has no %s address yet; it is allocated once an %v pool selects the node", f.wg.kind, f)
	}
}

// fate says what becomes of packets that cannot be encrypted.
func (e *encryption) fate() string {
	if e.Plain {
		return "goes in clear, as MUSLIN_WIREGUARD_PLAINTEXT says"
	}
	return "is refused; MUSLIN_WIREGUARD_PLAINTEXT=true would send it in clear"
}

// wgPeers finds the nodes that can be encrypted to. Of two that claim the same the first in the alphabet has it.
func (f *family) wgPeers() {
	keys, addrs := map[kernel.PublicKey]string{}, map[netip.Prefix]string{}
	for _, n := range f.Nodes {
		name := n.Metadata.Name
		at, ok := n.Address(f.v6)
		if name == f.Node || !ok || f.ours(at) {
			continue
		}
		key, ok := f.wgKey(n)
		if !ok {
			continue
		}
		if first, taken := keys[key]; taken {
			f.problem("Node("+name+")", "has the WireGuard key of %s, which keeps it; remove %s on one of the two, and its agent makes another", first, f.wg.name)
			continue
		}
		keys[key] = name
		p := wgPeer{
			key:  kernel.PeerKey{Dev: f.wg.dev, Key: key},
			peer: kernel.Peer{Endpoint: netip.AddrPortFrom(at.Addr(), f.wg.port), KeepAlive: f.wg.KeepAlive},
		}
		own := []netip.Addr{wgAddr(n, f.v6)}
		if f.wg.Hosts {
			own = append(own, at.Addr())
		}
		for _, a := range own {
			if !a.IsValid() {
				continue
			}
			dst := netip.PrefixFrom(a, a.BitLen())
			if first, taken := addrs[dst]; taken {
				f.problem("Node("+name+")", "has the address %v of %s, which keeps it: what comes from it is not taken by WireGuard; correct one of the two", a, first)
				continue
			}
			addrs[dst] = name
			p.own = append(p.own, dst)
		}
		f.wg.nodes[name] = p
	}
}

// wgKey is the public key that a node has told.
func (f *family) wgKey(n *api.Node) (kernel.PublicKey, bool) {
	text, field := n.Status.WireguardPublicKey, "wireguardPublicKey"
	if f.v6 {
		text, field = n.Status.WireguardPublicKeyV6, "wireguardPublicKeyV6"
	}
	if text == "" {
		if f.wg.asked && f.wg.onset == Strict {
			f.problem("Node("+n.Metadata.Name+")", "has told no %s yet: its agent does once %s is true for it and its kernel can; what goes there %s",
				field, f.wg.setting, f.wg.fate())
		}
		return kernel.PublicKey{}, false
	}
	key, err := kernel.ParsePublicKey(text)
	if err != nil {
		f.problem("Node("+n.Metadata.Name+")", "status.%s: %v; what goes there %s", field, err, f.wg.fate())
	}
	return key, err == nil
}

// wgRules adds the rule that leads to the encrypted routes.
func (f *family) wgRules() {
	priority := f.wg.Priority
	if f.wg.Hosts && priority < 2 { // those that are exempt come before it, and 0 is the kernel's
		f.problem("FelixConfiguration", "wireguardRoutingRulePriority %d leaves no place for the rules before it; 2 is used", priority)
		priority = 2
	}
	rule := func(r kernel.Rule) {
		r.V6, r.Protocol = f.v6, f.Ours.RouteProtocol()
		f.out.Rules[r] = struct{}{}
	}
	rule(kernel.Rule{Priority: priority, Invert: true, Mark: f.wg.Mark, Mask: f.wg.Mark, Table: f.wg.Table})
	if !f.wg.Hosts {
		return
	}
	exempt := func(r kernel.Rule) {
		r.Priority, r.IPProto, r.Table = priority-1, api.ProtoTCP, kernel.MainTable
		rule(r)
	}
	for _, x := range f.wg.Exempt {
		if _, node := f.nodeAt(x.Addr()); !node || x.Addr().Is6() != f.v6 {
			continue // it is not encrypted to anyway
		}
		server := netip.PrefixFrom(x.Addr(), x.Addr().BitLen())
		if server.Addr() != f.self.Addr() {
			exempt(kernel.Rule{Local: true, Dst: server, DstPort: x.Port()})
			continue
		}
		for _, subnet := range f.subnets() { // what pods are answered is encrypted
			exempt(kernel.Rule{Local: true, Src: server, SrcPort: x.Port(), Dst: subnet})
		}
	}
	for _, port := range f.wg.Own {
		if f.self.IsValid() {
			exempt(kernel.Rule{Local: true, Src: netip.PrefixFrom(f.self.Addr(), f.self.Addr().BitLen()), SrcPort: port})
		}
		for _, subnet := range f.subnets() {
			exempt(kernel.Rule{Local: true, Dst: subnet, DstPort: port})
		}
	}
}

// nodeAt returns the node that has an address.
func (f *family) nodeAt(a netip.Addr) (string, bool) {
	at, found := slices.BinarySearchFunc(f.hosts, a, func(h nodeAddr, a netip.Addr) int { return h.addr.Compare(a) })
	if !found {
		return "", false
	}
	return f.hosts[at].node, true
}

// subnets are those that nodes are on.
func (f *family) subnets() []netip.Prefix {
	all := map[netip.Prefix]struct{}{}
	for _, n := range f.Nodes {
		if a, ok := n.Address(f.v6); ok {
			all[a.Masked()] = struct{}{}
		}
	}
	return slices.SortedFunc(maps.Keys(all), netip.Prefix.Compare)
}

// wgHosts adds the routes to the nodes themselves. What a device gets by them comes from the address that others know the node by.
func (f *family) wgHosts() {
	if !f.v6 { // or strict filters by the way back (rp_filter) would drop WireGuard's own packets, whose senders are behind it
		f.out.Sysctls[kernel.SysctlKey{Path: "net/ipv4/conf/all/src_valid_mark"}] = "1"
	}
	for _, h := range f.hosts {
		if h.node == f.Node || h.addr == f.self.Addr() {
			continue
		}
		dst := netip.PrefixFrom(h.addr, h.addr.BitLen())
		put := func(k kernel.RouteKey, r kernel.Route) {
			r.Protocol = kernel.RouteProtocol
			f.out.Routes[k] = r
		}
		if !f.wg.reaches(h.node) {
			put(f.wg.in(dst), f.wg.unencrypted())
			continue
		}
		put(f.wg.in(dst), kernel.Route{Scope: kernel.LinkScope, Dev: f.wg.dev, Src: f.self.Addr()})
		put(f.wg.backstop(dst), f.wg.refusal())
	}
}

// encrypt adds the encrypted route to a range of another node, and that the node may send from it. It tells whether there is such a route.
func (r *routing) encrypt(dst netip.Prefix, owner string) bool {
	if !r.wg.on {
		return false
	}
	if p, ok := r.wg.nodes[owner]; ok {
		r.part.allowed = append(r.part.allowed, allowed{p.key, dst})
	}
	if !r.wg.asked {
		return false
	}
	if !r.wg.reaches(owner) {
		r.put(r.wg.in(dst), r.wg.unencrypted())
		return false
	}
	r.put(r.wg.in(dst), kernel.Route{Scope: kernel.LinkScope, Dev: r.wg.dev})
	r.put(r.wg.backstop(dst), r.wg.refusal())
	return true
}

// passBy keeps a pod of ours out of the encrypted route to the block that its address is from, which is another node's.
func (r *routing) passBy(a netip.Addr) {
	if _, here := r.local[a]; here && r.wg.asked {
		r.put(r.wg.in(netip.PrefixFrom(a, a.BitLen())), kernel.Route{Type: kernel.Throw})
	}
}

// peers puts together what each peer may send from. Each range is one peer's: the kernel would take it from one for the other, again and again.
func (c *computation) peers(blocks []allowed) map[kernel.PeerKey]kernel.Peer {
	out := map[kernel.PeerKey]kernel.Peer{}
	ranges, taken := map[kernel.PeerKey][]netip.Prefix{}, map[netip.Prefix]kernel.PeerKey{}
	add := func(k kernel.PeerKey, dst netip.Prefix) {
		if first, ok := taken[dst]; ok && first != k {
			return
		}
		taken[dst] = k
		ranges[k] = append(ranges[k], dst)
	}
	for _, f := range c.families {
		for _, name := range slices.Sorted(maps.Keys(f.wg.nodes)) {
			p := f.wg.nodes[name]
			out[p.key] = p.peer
			for _, dst := range p.own {
				add(p.key, dst)
			}
		}
	}
	for _, b := range blocks {
		add(b.key, b.dst)
	}
	for k, p := range out {
		p.Allowed = kernel.JoinPrefixes(ranges[k])
		out[k] = p
	}
	return out
}

// takesWireGuard notes whose packets the family's device takes: those of the other nodes.
func (f *family) takesWireGuard() {
	f.tunnels.WireGuardPeers = append(f.tunnels.WireGuardPeers, f.addresses(false)...)
	if f.v6 {
		f.tunnels.WireGuard6 = true
	} else {
		f.tunnels.WireGuard = true
	}
}

// wgAddr is the address of a node's WireGuard device; the zero Addr if it has none of the family.
func wgAddr(n *api.Node, v6 bool) netip.Addr {
	if n.Spec.Wireguard == nil {
		return netip.Addr{}
	}
	a := n.Spec.Wireguard.InterfaceIPv4Address
	if v6 {
		a = n.Spec.Wireguard.InterfaceIPv6Address
	}
	if a.Is6() != v6 {
		return netip.Addr{}
	}
	return a
}
