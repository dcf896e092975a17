package policyjudge

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/internal/nft"
	"github.com/muslin-cni/muslin/internal/policy"
	"github.com/muslin-cni/muslin/internal/ruleset"
	"github.com/muslin-cni/muslin/pkg/api"
)

// kernelCases says how many packets TestKernelAgrees sends.
var kernelCases = flag.Int("kernel", 10_000, "packets to send through the kernel")

// kernelSeed is the first seed of TestKernelAgrees.
var kernelSeed = flag.Uint64("kernelseed", 0, "first seed of clusters in the kernel")

const packetsPerTable = 25

// TestKernelAgrees sends packets through a router that has each cluster's policy in force, and holds what arrives against the evaluator. One cluster follows on
// the other by the engine's updates and the table's deltas, as on a node.
func TestKernelAgrees(t *testing.T) {
	w := newWorld(t)
	n, arrived := 0, 0
	for seed := *kernelSeed; n < *kernelCases; seed++ {
		c := Generate(seed)
		w.install(c, seed)
		packets := firstOfFlows(Packets(c, seed, packetsPerTable))
		got := w.send(packets)
		for i, p := range packets {
			n++
			if got[i] {
				arrived++
			}
			if want := Evaluate(c, p); got[i] != want.Allowed {
				t.Fatal(w.disagreement(seed, c, p))
			}
		}
	}
	t.Logf("%d packets, of which %d arrived", n, arrived)
	if arrived*5 < n || arrived*5 > n*4 {
		t.Error("the cases are lopsided")
	}
}

// firstOfFlows leaves packets out that are of the flow of an earlier one, in either direction: what is judged are first packets.
func firstOfFlows(packets []Packet) []Packet {
	type flow struct {
		from, to netip.AddrPort
		protocol uint8
	}
	seen := map[flow]bool{}
	var out []Packet
	for _, p := range packets {
		f := flow{netip.AddrPortFrom(p.Source, p.SourcePort), netip.AddrPortFrom(p.Destination, p.DestinationPort), p.Protocol}
		if back := (flow{f.to, f.from, f.protocol}); seen[f] || seen[back] {
			continue
		}
		seen[f] = true
		out = append(out, p)
	}
	return out
}

// world is a router with the devices that clusters are made for. All other ends are in one namespace, away, that never answers: packets are written to and
// read from its devices as they are.
type world struct {
	t            *testing.T
	router, away *nettest.NS
	ends         map[string]*end // by the router's device
	out, in      int             // sockets: of the router, to barriers; of away, for all packets
	raw          map[bool]int    // by which the router itself sends; true: IPv6
	received     []int           // what the router itself receives
	conntrack    *netlink.Handle
	keeper       *nft.Keeper
	layout       *ruleset.Layout
	engine       *policy.Engine
	installed    policy.Delta
	nextID       uint32
}

// end is both ends of a pair of devices.
type end struct {
	router, away       int // indices
	routerMAC, awayMAC []byte
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, router: nettest.New(t), away: nettest.New(t), ends: map[string]*end{}, raw: map[bool]int{}, engine: policy.New(node), nextID: 1}
	for _, s := range []string{"net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1"} {
		w.away.Exec("sysctl", "-qw", s)
	}
	for _, s := range []string{
		"net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0",
		"net.ipv4.conf.all.send_redirects=0", "net.ipv4.conf.default.send_redirects=0", "net.ipv4.icmp_echo_ignore_all=1",
		"net.ipv6.conf.default.accept_dad=0", "net.ipv4.icmp_ratelimit=0",
	} {
		w.router.Exec("sysctl", "-qw", s)
	}
	for i := range devices {
		v4, v6 := localAddrs(i)
		w.join(device(i))
		w.lead(device(i), v4.String()+"/32", v4.String(), v6.String()+"/128", v6.String())
	}
	w.join(uplink)
	for _, a := range hostAddrs() {
		w.router.Exec("ip", "addr", "add", a.String(), "dev", uplink)
	}
	w.lead(uplink, "default", "169.254.1.1", "default", "fe80::1")
	w.sockets()
	w.nftables()
	return w
}

// join makes a device of the router and its other end.
func (w *world) join(dev string) {
	nettest.Pair(w.router, dev, w.away, dev)
	e := &end{router: w.router.Index(dev), away: w.away.Index(dev)}
	for _, side := range []struct {
		ns  *nettest.NS
		mac *[]byte
	}{{w.router, &e.routerMAC}, {w.away, &e.awayMAC}} {
		link, err := side.ns.Netlink().LinkByName(dev)
		if err != nil {
			w.t.Fatal(err)
		}
		*side.mac = link.Attrs().HardwareAddr
	}
	w.ends[dev] = e
}

// lead makes routes of the router by a device, with a neighbour that needs not be asked for.
func (w *world) lead(dev, to4, via4, to6, via6 string) {
	mac := fmt.Sprintf("%x", w.ends[dev].awayMAC)
	mac = fmt.Sprintf("%s:%s:%s:%s:%s:%s", mac[0:2], mac[2:4], mac[4:6], mac[6:8], mac[8:10], mac[10:12])
	w.router.Exec("ip", "route", "add", via4, "dev", dev)
	if to4 == "default" {
		w.router.Exec("ip", "route", "add", to4, "via", via4, "dev", dev)
		w.router.Exec("ip", "-6", "route", "add", to6, "via", via6, "dev", dev)
	} else {
		w.router.Exec("ip", "-6", "route", "add", to6, "dev", dev)
	}
	w.router.Exec("ip", "neigh", "add", via4, "lladdr", mac, "dev", dev)
	w.router.Exec("ip", "-6", "neigh", "add", via6, "lladdr", mac, "dev", dev)
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// barrierType is that of frames that nobody understands (IEEE 802, for experiments).
const barrierType = 0x88b5

func (w *world) sockets() {
	open := func(ns *nettest.NS, domain, typ, proto int) int {
		var fd int
		var err error
		ns.Do(func() { fd, err = unix.Socket(domain, typ|unix.SOCK_CLOEXEC, proto) })
		if err != nil {
			w.t.Fatalf("open socket: %v", err)
		}
		w.t.Cleanup(func() { _ = unix.Close(fd) })
		return fd
	}
	w.out = open(w.router, unix.AF_PACKET, unix.SOCK_RAW, 0)
	w.in = open(w.away, unix.AF_PACKET, unix.SOCK_RAW, int(htons(unix.ETH_P_ALL)))
	if err := unix.SetsockoptInt(w.in, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20); err != nil {
		w.t.Fatal(err)
	}
	if err := unix.SetsockoptTimeval(w.in, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}); err != nil {
		w.t.Fatal(err)
	}
	w.raw[false] = open(w.router, unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
	w.raw[true] = open(w.router, unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_RAW)
	for _, proto := range []int{tcp, udp, icmp, sctp, 47} {
		w.received = append(w.received, open(w.router, unix.AF_INET, unix.SOCK_RAW|unix.SOCK_NONBLOCK, proto))
	}
	for _, proto := range []int{tcp, udp, icmp6, sctp, 47} {
		w.received = append(w.received, open(w.router, unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_NONBLOCK, proto))
	}
}

func (w *world) nftables() {
	var err error
	if w.conntrack, err = netlink.NewHandleAt(w.router.Handle(), unix.NETLINK_NETFILTER); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(w.conntrack.Close)
	var conn *nft.Conn
	w.router.Do(func() { conn, err = nft.Open() })
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close() })
	w.keeper = nft.NewKeeper(conn, ruleset.Table)
	w.layout = ruleset.New(settings(&Cluster{}, 0))
	w.layout.SetDevices(map[string][]netip.Addr{uplink: hostAddrs()})
}

func settings(c *Cluster, seed uint64) ruleset.Settings {
	s := ruleset.Settings{Prefixes: []string{"cali"}, MarkMask: 0xffff0000, VXLANPort: vxlanPort, LogGroup: ruleset.LogGroup, Spoofing: true, ToHost: ruleset.DropToHost}
	if c.Host.ToHost == api.Allow {
		s.ToHost = ruleset.AcceptToHost
		if seed%2 == 0 {
			s.ToHost = ruleset.ReturnToHost // to a host without rules
		}
	}
	for _, f := range c.Host.FailIn {
		s.FailsafeIn = append(s.FailsafeIn, ruleset.Failsafe{Protocol: f.Protocol, Port: f.Port})
	}
	for _, f := range c.Host.FailOut {
		s.FailsafeOut = append(s.FailsafeOut, ruleset.Failsafe{Protocol: f.Protocol, Port: f.Port})
	}
	return s
}

// install puts a cluster in the place of the one before, and forgets all flows.
func (w *world) install(c *Cluster, seed uint64) {
	w.t.Helper()
	next := c.Input()
	var d policy.Delta
	for _, o := range w.installed.Objects {
		d.Objects = append(d.Objects, policy.Change{Key: o.Key})
	}
	for _, s := range w.installed.Services {
		d.Services = append(d.Services, policy.Service{Namespace: s.Namespace, Name: s.Name})
	}
	d.Objects, d.Services = append(d.Objects, next.Objects...), append(d.Services, next.Services...)
	w.installed = next
	w.layout.SetSettings(settings(c, seed))
	w.layout.Update(w.engine.Apply(d))
	change := w.layout.Take()
	if _, err := w.keeper.Apply(w.t.Context(), w.layout.Table(), change, false); err != nil {
		w.t.Fatalf("seed %d: %v\n%s", seed, err, c)
	}
	if err := w.conntrack.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
		w.t.Fatal(err)
	}
}

// send sends packets, all at once, and says which of them arrived. A packet that arrives elsewhere than it should ends the test.
//
// That one has not arrived is known without waiting. All is sent on one processor, which puts what comes to a device in a queue of its own and works that
// off in order. So a frame that is sent behind the packets, by the router to a device where nobody filters, arrives behind all that were in the queue then; a second
// one behind what those became, for a packet goes through the queue twice: into the router, and out of it.
func (w *world) send(packets []Packet) []bool {
	w.t.Helper()
	arrived := make([]bool, len(packets))
	first := w.nextID
	w.nextID += uint32(len(packets))
	note := func(dev string, source netip.Addr, protocol uint8, id uint32) error {
		i := int(id - first)
		if i < 0 || i >= len(packets) || packets[i].Source != source || packets[i].Protocol != protocol {
			return nil // an answer, or one of the kernel's own
		}
		if packets[i].Out != dev {
			return fmt.Errorf("packet %+v came out of %q", packets[i], dev)
		}
		arrived[i] = true
		return nil
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		done <- w.exchange(packets, first, note)
	}()
	if err := <-done; err != nil {
		w.t.Fatal(err)
	}
	return arrived
}

type noteFunc func(dev string, source netip.Addr, protocol uint8, id uint32) error

func (w *world) exchange(packets []Packet, first uint32, note noteFunc) error {
	var one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &one); err != nil {
		return err
	}
	for cpu, found := 0, false; cpu < len(one)*64; cpu++ {
		if one.IsSet(cpu) && found {
			one.Clear(cpu)
		}
		found = found || one.IsSet(cpu)
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return err
	}
	for i, p := range packets {
		if err := w.sendOne(p, first+uint32(i)); err != nil {
			return fmt.Errorf("send %+v: %w", p, err)
		}
	}
	for range 2 {
		if err := w.barrier(note); err != nil {
			return err
		}
	}
	return w.drain(note)
}

func (w *world) sendOne(p Packet, id uint32) error {
	b := frame(p, id)
	if p.In != "" {
		e := w.ends[p.In]
		return unix.Sendto(w.in, append(ethernet(e.routerMAC, e.awayMAC, etherType(p)), b...), 0, &unix.SockaddrLinklayer{Ifindex: e.away})
	}
	var to unix.Sockaddr = &unix.SockaddrInet6{Addr: p.Destination.As16()}
	if p.Destination.Is4() {
		to = &unix.SockaddrInet4{Addr: p.Destination.As4()}
	}
	err := unix.Sendto(w.raw[p.Destination.Is6()], b, 0, to)
	if errors.Is(err, unix.EPERM) {
		return nil // denied on its way out
	}
	return err
}

func ethernet(to, from []byte, typ uint16) []byte {
	b := append(append([]byte{}, to...), from...)
	return binary.BigEndian.AppendUint16(b, typ)
}

func etherType(p Packet) uint16 {
	if p.Source.Is4() {
		return unix.ETH_P_IP
	}
	return unix.ETH_P_IPV6
}

// barrier sends a frame and reads all that comes before it.
func (w *world) barrier(note noteFunc) error {
	id := w.nextID
	w.nextID++
	e := w.ends[uplink]
	b := binary.BigEndian.AppendUint32(ethernet(e.awayMAC, e.routerMAC, barrierType), id)
	if err := unix.Sendto(w.out, b, 0, &unix.SockaddrLinklayer{Ifindex: e.router}); err != nil {
		return fmt.Errorf("send barrier: %w", err)
	}
	devs := map[int]string{}
	for dev, e := range w.ends {
		devs[e.away] = dev
	}
	buf := make([]byte, 2048)
	for {
		n, from, err := unix.Recvfrom(w.in, buf, 0)
		if err != nil {
			return fmt.Errorf("wait for barrier: %w", err)
		}
		link, ok := from.(*unix.SockaddrLinklayer)
		if !ok || link.Pkttype == unix.PACKET_OUTGOING || n < 18 {
			continue
		}
		if binary.BigEndian.Uint16(buf[12:]) == barrierType && binary.BigEndian.Uint32(buf[14:]) == id {
			return nil
		}
		source, _, protocol, got, ok := parse(buf[14:n])
		if !ok {
			continue
		}
		if err := note(devs[link.Ifindex], source, protocol, got); err != nil {
			return err
		}
	}
}

// drain reads what the router itself has received.
func (w *world) drain(note noteFunc) error {
	protocols := []uint8{tcp, udp, icmp, sctp, 47, tcp, udp, icmp6, sctp, 47}
	buf := make([]byte, 2048)
	for i, fd := range w.received {
		for {
			n, from, err := unix.Recvfrom(fd, buf, 0)
			if errors.Is(err, unix.EAGAIN) {
				break
			}
			if err != nil {
				return fmt.Errorf("read what the router received: %w", err)
			}
			if n < 4 {
				continue
			}
			var source netip.Addr
			switch from := from.(type) {
			case *unix.SockaddrInet4:
				source = netip.AddrFrom4(from.Addr)
			case *unix.SockaddrInet6:
				source = netip.AddrFrom16(from.Addr)
			}
			if err := note("", source, protocols[i], binary.BigEndian.Uint32(buf[n-4:n])); err != nil {
				return err
			}
		}
	}
	return nil
}

// disagreement says what evaluator and kernel disagree about, in as small a cluster as does.
func (w *world) disagreement(seed uint64, c *Cluster, p Packet) string {
	small := Shrink(c, func(c *Cluster) bool {
		w.install(c, seed)
		return w.send([]Packet{p})[0] != Evaluate(c, p).Allowed
	})
	model := policy.Compute(small.Node, small.Input())
	_, walked := WalkModel(small, model, p)
	return fmt.Sprintf("seed %d, packet %+v\nevaluator: %+v, the kernel does otherwise\nmodel: %s\n%s\n%v", seed, p, Evaluate(small, p), describe(walked), small,
		ruleset.Of(settings(small, seed), small.Host.Devices, model).Text())
}
