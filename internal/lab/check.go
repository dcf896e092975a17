package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const retryInterval = 100 * time.Millisecond

// pace is how a check goes about it.
type pace struct {
	pairsAtOnce int
	convergeFor time.Duration // an ADD does not wait for the routes of other nodes
	timeout     time.Duration // of it all
}

func newPace(o Options) pace {
	p := pace{pairsAtOnce: 64, convergeFor: patient(5 * time.Second), timeout: patient(2 * time.Minute)}
	if o.BGP {
		p.convergeFor = patient(30 * time.Second) // sessions wait seconds before they dial, and again
	}
	if patient(1) > 1 {
		p.pairsAtOnce = 4 // or each way waits for the others' processor time
	}
	return p
}

// Peer is one end of a Pair.
type Peer struct {
	Name   string     `json:"name"`
	Kind   string     `json:"kind"` // pod, node or outside
	Node   string     `json:"node,omitempty"`
	Subnet int        `json:"subnet,omitempty"`
	Addr   netip.Addr `json:"addr,omitzero"`
	Addr6  netip.Addr `json:"addr6,omitzero"`
}

// Pair is one way from one peer to another, as the last attempt found it.
type Pair struct {
	From     string        `json:"from"`
	To       string        `json:"to"`
	IPv6     bool          `json:"ipv6,omitempty"`
	OK       bool          `json:"ok"`
	Reached  bool          `json:"reached"`            // by TCP and UDP, whatever else is wrong
	Seen     netip.Addr    `json:"seen,omitzero"`      // the sender's address as the receiver saw it
	MTU      int           `json:"mtu,omitempty"`      // of the full-size datagram, between pods of different nodes
	Problem  string        `json:"problem,omitempty"`  // "" when OK
	Expected bool          `json:"expected,omitempty"` // the failure follows from the lab's mode
	Took     time.Duration `json:"took"`               // from the start of the check to the last attempt
}

// Report is a reachability matrix.
type Report struct {
	Mode  Mode          `json:"mode"`
	Peers []Peer        `json:"peers"` // pods, nodes, the outside host
	Pairs []Pair        `json:"pairs"`
	OK    bool          `json:"ok"`   // every pair is
	Took  time.Duration `json:"took"` // until the last pair that is OK was
}

// Check opens TCP and UDP sockets in every pod, every node and the outside host and tries the ways between them: pod and node to
// every pod, every node and the outside host. A receiver must see a pod's own address where it is another pod or the pod's own node, and
// the address of the pod's node where it is outside. Between pods of different nodes a mebibyte by TCP and a full-size
// datagram with DF must pass too. In a dual-stack lab all that holds for each family that both ends have. A way that does not work at first is tried again for five seconds, with BGP for thirty. What fails is in the report;
// an error means that the check could not be made.
func (l *Lab) Check(ctx context.Context) (Report, error) {
	s, err := l.load()
	if err != nil {
		return Report{}, err
	}
	pace := newPace(s.Options)
	ctx, cancel := context.WithTimeout(ctx, pace.timeout)
	defer cancel()
	peers := openEndpoints(ctx, s)
	var serving sync.WaitGroup
	defer serving.Wait()
	for _, e := range peers {
		defer e.close()
		if e.err == nil {
			serving.Go(e.serve)
		}
	}
	return runCheck(ctx, s, peers, pace)
}

// openEndpoints lists who takes part, once for each of its addresses. One that cannot listen takes part all the same, so that its ways are reported.
func openEndpoints(ctx context.Context, s *state) []*endpoint {
	var all []*endpoint
	add := func(e endpoint, place func() (*place, error), addrs ...netip.Addr) {
		if len(addrs) == 0 {
			addrs = []netip.Addr{{}}
		}
		for _, a := range addrs {
			one := e
			one.addr = a
			one.at, one.err = place()
			all = append(all, &one)
		}
	}
	for i := range s.Pods {
		p := &s.Pods[i]
		e := endpoint{name: p.Name, kind: kindPod, node: p.Node}
		if n, err := s.node(p.Node); err == nil {
			e.subnet = n.Subnet
		}
		add(e, func() (*place, error) { return p.place(s) }, p.Addrs()...)
	}
	for _, n := range s.Nodes {
		e := endpoint{name: n.Name, kind: kindNode, node: n.Name, subnet: n.Subnet}
		add(e, func() (*place, error) { return placeOf(s, n.Name) }, valid(n.Addr, n.Addr6)...)
	}
	var outside []netip.Addr
	for _, a := range s.Options.subnetAddrs(outsideSubnet, 1) {
		outside = append(outside, a.Addr())
	}
	add(endpoint{name: "outside", kind: kindOutside}, func() (*place, error) { return placeOf(s, "outside") }, outside...)
	for _, e := range all {
		if e.err == nil && !e.addr.IsValid() {
			e.err = errors.New("its ADD has not finished")
		}
		if e.err == nil {
			e.err = e.open(ctx)
		}
	}
	return all
}

func runCheck(ctx context.Context, s *state, peers []*endpoint, pace pace) (Report, error) {
	began := time.Now()
	c := &checker{state: s, began: began, settled: began.Add(pace.convergeFor), nodes: make(map[nodeKey]*endpoint)}
	report := Report{Mode: s.Options.Mode, OK: true}
	for _, e := range peers {
		if e.kind == kindNode {
			c.nodes[nodeKey{e.name, e.v6()}] = e
		}
		report.add(e)
	}
	var ways [][2]*endpoint
	for _, from := range peers {
		for _, to := range peers {
			if from != to && from.kind != kindOutside && from.v6() == to.v6() {
				ways = append(ways, [2]*endpoint{from, to})
			}
		}
	}
	report.Pairs = make([]Pair, len(ways))
	var group errgroup.Group
	group.SetLimit(pace.pairsAtOnce)
	for i, way := range ways {
		group.Go(func() error {
			report.Pairs[i] = c.settle(ctx, way[0], way[1])
			return ctx.Err()
		})
	}
	if err := group.Wait(); err != nil {
		return report, fmt.Errorf("check reachability: %w", err)
	}
	for _, p := range report.Pairs {
		report.OK = report.OK && p.OK
		if p.OK {
			report.Took = max(report.Took, p.Took)
		}
	}
	return report, nil
}

// checker is one run of a check. Its fields do not change while it runs.
type checker struct {
	state   *state
	began   time.Time
	settled time.Time // until then a failure may be one of timing
	nodes   map[nodeKey]*endpoint
}

type nodeKey struct {
	name string
	v6   bool
}

// add lists an endpoint among the peers. Those of one peer come one after another.
func (r *Report) add(e *endpoint) {
	if n := len(r.Peers); n == 0 || r.Peers[n-1].Name != e.name {
		r.Peers = append(r.Peers, Peer{Name: e.name, Kind: string(e.kind), Node: e.node, Subnet: e.subnet})
	}
	p := &r.Peers[len(r.Peers)-1]
	if e.v6() {
		p.Addr6 = e.addr
	} else {
		p.Addr = e.addr
	}
}

// settle tries until the way is as it should be, or the network has had its time.
func (c *checker) settle(ctx context.Context, from, to *endpoint) Pair {
	for {
		p := c.try(ctx, from, to)
		p.Took = time.Since(c.began).Round(time.Millisecond)
		if p.OK || p.Expected || time.Now().After(c.settled) || from.err != nil || to.err != nil {
			return p
		}
		select {
		case <-ctx.Done():
			return p
		case <-time.After(retryInterval):
		}
	}
}

// try makes one attempt of everything that the way must carry.
func (c *checker) try(ctx context.Context, from, to *endpoint) Pair {
	p := Pair{From: from.name, To: to.name, IPv6: from.v6()}
	for _, e := range []*endpoint{from, to} {
		if e.err != nil {
			p.Problem = fmt.Sprintf("%s cannot take part: %v", e.name, e.err)
			return p
		}
	}
	tcp, udp, tcpErr, udpErr := from.askBoth(ctx, to)
	p.Reached = tcpErr == nil && udpErr == nil
	p.Seen = tcp.Seen
	if !p.Reached {
		p.Problem, p.Expected = c.unreached(from, to, tcpErr, udpErr)
		return p
	}
	for _, seen := range []netip.Addr{tcp.Seen, udp.Seen} {
		if want, ok := c.wantSource(from, to, seen); !ok {
			p.Seen, p.Problem = seen, fmt.Sprintf("its source is seen as %s, not as %s", seen, want)
			return p
		}
	}
	if from.kind == kindPod && to.kind == kindPod && from.node != to.node {
		p.MTU = from.mtu
		p.Problem = c.fullSize(ctx, from, to)
	}
	p.OK = p.Problem == ""
	return p
}

// unreached words the failure, and says whether the mode explains it.
func (c *checker) unreached(from, to *endpoint, tcp, udp error) (problem string, expected bool) {
	if o := c.state.Options; o.mode(from.v6()) == Direct && !o.BGP && to.kind == kindPod && from.subnet != to.subnet {
		return "mode direct has no tunnel, and the router between the subnets knows no pod routes: use a mode with a tunnel, such as vxlan-crosssubnet, or --bgp", true
	}
	words := func(err error) string {
		if err == nil {
			return "ok"
		}
		return brief(err)
	}
	return fmt.Sprintf("TCP: %s; UDP: %s", words(tcp), words(udp)), false
}

// wantSource says what the receiver should see, in words, and whether seen is that.
func (c *checker) wantSource(from, to *endpoint, seen netip.Addr) (string, bool) {
	switch {
	case from.kind == kindNode:
		return "an address of the node", slices.Contains(from.own, seen)
	case to.kind == kindPod || to.node == from.node:
		return "the pod's " + from.addr.String(), seen == from.addr
	case to.kind == kindOutside:
		node := c.nodes[nodeKey{from.node, from.v6()}]
		return fmt.Sprintf("the node's %s (outgoing NAT)", node.addr), seen == node.addr
	}
	// Another node is outside the pools, so outgoing NAT applies; without it the node can still answer a pod.
	node := c.nodes[nodeKey{from.node, from.v6()}]
	return "the pod's or its node's", seen == from.addr || slices.Contains(node.own, seen)
}

// fullSize sends a stream, whose segments fill the MTU, and a datagram of exactly the MTU.
func (c *checker) fullSize(ctx context.Context, from, to *endpoint) string {
	if _, err := from.askTCP(ctx, to, bulkBytes); err != nil {
		return fmt.Sprintf("small messages pass, a stream of %d bytes does not: %s", bulkBytes, brief(err))
	}
	if _, err := from.askUDP(ctx, to, from.mtu-from.udpOverhead()); err != nil {
		return fmt.Sprintf("small messages pass, a datagram of its MTU %d with DF does not: %s", from.mtu, brief(err))
	}
	return ""
}
