package sim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/attachlock"
	"github.com/muslin-cni/muslin/internal/hostside"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/memkernel"
	"github.com/muslin-cni/muslin/internal/register"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// node is a host of the cluster, with the container runtime's view of its pods. The world's goroutine owns it, but for what its commands and agent do.
type node struct {
	w       *World
	name    string
	machine string
	addr    netip.Prefix
	addr6   netip.Prefix // zero: it has none
	locks   string       // folder of the attach locks
	turns   queues
	watches bool // it has a real feed
	kernel  *memkernel.Kernel
	agent   *process // nil: none runs
	cut     bool     // from etcd: connections are refused
	deaf    bool     // or say nothing
	off     bool     // it has no power until its Node is deleted
	meddled bool     // others have changed something that no event tells of
	bared   int      // how often they have taken away what leads pods' packets to their policies
	clad    int      // how often that was made good, if not more often
	life    context.Context
	halt    context.CancelFunc // ends all processes of the host
	pods    []*pod
	joins   bool      // its registration is under way
	lost    bool      // it is off, and no operator deletes its Node: the controllers have to
	back    bool      // it was lost, has power again, and has yet to register
	missed  time.Time // since when a host that lives has no node of Kubernetes; zero: it has one
	deletes bool      // so is the deletion of its Node
}

// state is where a pod is in its life.
type state uint8

const (
	absent state = iota
	begun        // its ADD or DEL is under way
	running
	broken // an ADD or a DEL has failed, so that a DEL is to come
)

// pod is one of the runtime's, and the container that it has had last.
type pod struct {
	n         *node
	slot, gen int
	state     state
	container string
	former    string // the container before
	addrs     []netip.Addr
	routed    bool               // it has had its route since its ADD
	kill      context.CancelFunc // kills its plugin
}

func (p *pod) name() string { return fmt.Sprintf("%s-pod-%d-%d", p.n.name, p.slot, p.gen) }

// iface is the host's side of the pod's interface.
func (p *pod) iface() string { return hostside.InterfaceName("default", p.name(), "") }

// network is the CNI network of all pods.
const network = "net"

func (p *pod) request(container string) attach.Request {
	six := p.n.addr6.IsValid() && p.slot%3 != 1
	r := attach.Request{
		Network: network, ContainerID: container, IfName: "eth0", HostIf: p.iface(), MAC: "02:00:00:00:00:01", Pod: attach.Pod{Namespace: "default", Name: p.name()},
		AssignIPv4: !six || p.slot%3 == 0, AssignIPv6: six, Labels: p.labels(),
	}
	if p.slot%5 == 4 {
		r.ForeignIPAM, r.Addrs = "host-local", []netip.Addr{p.n.w.brings(container)}
	}
	return r
}

// brought is where addresses are of another IPAM's.
var brought = netip.MustParsePrefix("100.64.0.0/10")

// brings is the address that a container brings along, which no other ever has.
func (w *World) brings(container string) netip.Addr {
	if a, ok := w.foreign[container]; ok {
		return a
	}
	n := len(w.foreign)
	a := netip.AddrFrom4([4]byte{100, 64 + byte(n>>16), byte(n >> 8), byte(n)})
	w.foreign[container] = a
	return a
}

// boot gives a host its kernel, as it is after power came back.
func (n *node) boot() {
	n.kernel = memkernel.New()
	n.kernel.AddDevice("eth0", 1500, "")
	n.kernel.AddAddr("eth0", n.addr)
	if n.addr6.IsValid() {
		n.kernel.AddAddr("eth0", n.addr6)
	}
	n.life, n.halt = context.WithCancel(n.w.life)
}

// lock takes the attach lock of an interface, in its turn among the commands of the host.
func (n *node) lock(ctx context.Context, iface string) (release func(), err error) {
	leave, err := n.turns.enter(ctx, iface)
	if err != nil {
		return nil, err
	}
	lock, err := attachlock.Acquire(ctx, n.locks, iface)
	if err != nil {
		leave()
		return nil, err
	}
	return func() { lock.Release(); leave() }, nil
}

// command is a call of the plugin for a container, as it was begun. The plugin lives as long as the context that its methods are called with.
type command struct {
	req   attach.Request
	door  door
	on    *memkernel.Kernel
	n     *node
	leave func() // gives back the attach lock; nil: the command has none
}

// command begins a call of the plugin for a container of the pod.
func (p *pod) command(life context.Context, container string) *command {
	return &command{req: p.request(container), door: p.n.door(life), on: p.n.kernel, n: p.n}
}

// lock takes the attach lock.
func (c *command) lock(ctx context.Context) (err error) {
	c.leave, err = c.n.lock(ctx, c.req.HostIf)
	return err
}

// end is the world's, which gives back the attach lock: commands that shared a transaction end at the same moment, beside an audit that may look for the lock of one.
func (c *command) end() {
	if c.leave != nil {
		c.n.w.stir(c.n)
		c.leave()
	}
}

// add is the plugin's ADD.
func (c *command) add(life context.Context) (attach.Reply, error) {
	ctx, cancel := context.WithTimeout(life, commandTime)
	defer cancel()
	if err := c.lock(ctx); err != nil {
		return attach.Reply{}, err
	}
	c.on.AddDevice(c.req.HostIf, 1500, "veth")
	reply, err := c.door.add(ctx, c.req)
	if killed := life.Err(); killed != nil { // it undoes nothing, and what it was told nobody has heard
		return attach.Reply{}, killed
	}
	if err == nil {
		return reply, nil
	}
	c.on.RemoveDevice(c.req.HostIf)
	undo, stop := context.WithTimeout(life, undoTime)
	defer stop()
	err = errors.Join(err, c.door.del(undo, c.req))
	if killed := life.Err(); killed != nil {
		return attach.Reply{}, killed
	}
	return attach.Reply{}, err
}

// again is an ADD for a container that has had one. It does nothing where a DEL was quicker.
func (c *command) again(life context.Context) (reply attach.Reply, err error) {
	ctx, cancel := context.WithTimeout(life, commandTime)
	defer cancel()
	if err := c.lock(ctx); err != nil {
		return reply, err
	}
	if !c.on.Names()[c.req.HostIf] {
		return reply, context.Canceled
	}
	return c.door.add(ctx, c.req)
}

// del is the plugin's DEL, which takes away the interface only if the container is the pod's present one.
func (c *command) del(life context.Context, present bool) error {
	ctx, cancel := context.WithTimeout(life, commandTime)
	defer cancel()
	if err := c.lock(ctx); err != nil {
		return err
	}
	if present {
		c.on.RemoveDevice(c.req.HostIf)
	}
	err := c.door.del(ctx, c.req)
	if killed := life.Err(); killed != nil {
		return killed
	}
	return err
}

// door is what carries commands out.
type door struct {
	h    *register.Handler
	wire *wire
}

// door is the agent's, or without one the executable's, which works straight against etcd.
func (n *node) door(life context.Context) door {
	if n.agent != nil && n.agent.up {
		return n.agent.door()
	}
	x := n.wire(life, n.name+"/module")
	x.cut, x.deaf = n.cut, n.deaf
	return door{register.New(register.Config{Client: x.client(), Node: n.name, Machine: n.machine, Now: n.w.now, UUID: n.w.uuids(n.name), Pause: x.again}), x}
}

func (p *process) door() door { return door{p.handler, p.wire} }

func (d door) add(ctx context.Context, r attach.Request) (attach.Reply, error) {
	if err := d.wire.enter(ctx, "add "+r.ContainerID); err != nil {
		return attach.Reply{}, err
	}
	return d.h.Add(ctx, r)
}

func (d door) del(ctx context.Context, r attach.Request) error {
	if err := d.wire.enter(ctx, "del "+r.ContainerID); err != nil {
		return err
	}
	return d.h.Del(ctx, r)
}

func (d door) free(ctx context.Context, o register.Orphan) ([]netip.Prefix, error) {
	if err := d.wire.enter(ctx, "free "+o.Endpoint.Key); err != nil {
		return nil, err
	}
	return d.h.FreeOrphan(ctx, o)
}

// join registers the node: Node and record of whose name it is, in one transaction, as internal/startup does.
func (n *node) join(ctx context.Context, c *store.Client, uuid string) error {
	nodeKey, recordKey := api.NodeKey(n.name), api.IdentityKey(n.name)
	got, _, err := c.Read(ctx, store.Range{Key: nodeKey}, store.Range{Key: recordKey})
	if err != nil {
		return err
	}
	is, err := store.One[api.Node](nodeKey, got[0])
	if err != nil {
		return err
	}
	record, err := store.One[api.NodeIdentity](recordKey, got[1])
	if err != nil {
		return err
	}
	var t store.Txn
	t.Expect(nodeKey, is.Rev)
	t.Expect(recordKey, record.Rev)
	node := is.Value
	if !is.Exists() {
		node = n.object(uuid)
		store.Put(&t, is, node)
	}
	if want := (api.NodeIdentity{MachineID: n.machine, NodeUID: node.Metadata.UID}); !record.Exists() || *record.Value != want {
		store.Put(&t, record, &want)
	}
	if t.Empty() {
		return nil
	}
	_, err = c.Commit(ctx, &t)
	return err
}

func (n *node) object(uuid string) *api.Node {
	o := &api.Node{Spec: api.NodeSpec{OrchRefs: []api.OrchRef{{NodeName: n.name, Orchestrator: "k8s"}}, BGP: &api.NodeBGP{IPv4Address: api.Prefix{Prefix: n.addr}, IPv6Address: api.Prefix{Prefix: n.addr6}}}}
	o.Metadata.Name = n.name
	api.Created(o, uuid, n.w.now())
	return o
}

// affinityOf reports whether a key is the affinity of a node to a block.
func affinityOf(key, node string) bool {
	return strings.HasPrefix(key, api.HostsRoot+node+"/")
}

// live lists the pods in a state, in order.
func (n *node) live(s state) []*pod {
	return slices.DeleteFunc(slices.Clone(n.pods), func(p *pod) bool { return p.state != s })
}

// hasRoutes tells whether the kernel leads to all addresses of a pod by its device.
func (p *pod) hasRoutes(routes map[kernel.RouteKey]kernel.Route) bool {
	for _, a := range p.addrs {
		r, ok := routes[kernel.RouteKey{Dst: netip.PrefixFrom(a, a.BitLen()), Metric: hostside.RouteMetric}]
		if !ok || r.Dev.Name != p.iface() {
			return false
		}
	}
	return true
}

// maxSubnet is how many nodes share a subnet at most.
const maxSubnet = 250

// newNode is a host that was never switched on.
func (w *World) newNode(i int) *node {
	n := &node{w: w, name: fmt.Sprintf("node-%04d", i), machine: fmt.Sprintf("machine-%d-0", i), watches: i < w.cfg.Feeds, locks: filepath.Join(w.dir, fmt.Sprint(i))}
	size := min(w.cfg.Nodes/4+1, maxSubnet)
	a := netip.AddrFrom4([4]byte{172, 16 + byte(i/size/256), byte(i / size), byte(i%size) + 1})
	n.addr = netip.PrefixFrom(a, 24)
	if w.dual() {
		six := netip.MustParseAddr("fd00:172::").As16()
		copy(six[5:8], a.AsSlice()[:3]) // the subnets are the same
		six[15] = a.AsSlice()[3]
		n.addr6 = netip.PrefixFrom(netip.AddrFrom16(six), 64)
	}
	for slot := range w.cfg.Pods {
		n.pods = append(n.pods, &pod{n: n, slot: slot})
	}
	n.boot()
	return n
}

// sortedRoutes are the keys of a host's routes, in order.
func sortedRoutes(routes map[kernel.RouteKey]kernel.Route) []kernel.RouteKey {
	return slices.SortedFunc(maps.Keys(routes), func(a, b kernel.RouteKey) int {
		if c := a.Dst.Compare(b.Dst); c != 0 {
			return c
		}
		return a.Metric - b.Metric
	})
}
