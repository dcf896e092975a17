package register_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
	"pgregory.net/rapid"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/ipamtest"
	"github.com/muslin-cni/muslin/internal/register"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
)

// fleet is a cluster in a handful of addresses, with what each container was told.
type fleet struct {
	rt       *rapid.T
	w        *world
	handlers []*register.Handler // two for each node: as two processes at work there
	zones    [fleetNodes]string
	pools    [2]poolState
	told     map[string]netip.Addr // by container
	homes    map[string]int        // by container: its node
	podOf    map[string]string     // by container: its pod, "" for most
	gone     []string              // containers that were deleted
	serial   int
}

const fleetNodes = 4

// poolState is what a pool allows now.
type poolState struct {
	cidr     netip.Prefix
	bits     int
	disabled bool
	zone     string // of the nodes that it serves; "": all
}

// TestFleetKeepsItsBooks has the handlers of several nodes fight for a few addresses, while pools and labels change, and holds every answer
// against what was told before and what the pools allow.
func TestFleetKeepsItsBooks(t *testing.T) {
	w := newWorld(t)
	follow := w.follow()
	rapid.Check(t, func(rt *rapid.T) {
		f := &fleet{rt: rt, w: w, told: map[string]netip.Addr{}, homes: map[string]int{}, podOf: map[string]string{}}
		f.wipe()
		f.pools = [2]poolState{{cidr: netip.MustParsePrefix("10.0.0.0/28"), bits: 30}, {cidr: netip.MustParsePrefix("10.1.0.0/29"), bits: 31}}
		for n := range fleetNodes {
			f.relabel(n, "a")
			name := fmt.Sprint("node-", n)
			f.handlers = append(f.handlers,
				register.New(register.Config{Client: w.c, Node: name}),
				register.New(register.Config{Client: w.c, Node: name, Source: register.FromFeed(follow), Committed: follow.Commit}))
		}
		f.setPool(0)
		f.setPool(1)
		for range rapid.IntRange(10, 60).Draw(rt, "turns") {
			f.turn()
		}
		f.settle()
	})
}

func (f *fleet) ctx() context.Context { return f.w.t.Context() }

func (f *fleet) must(err error) {
	f.rt.Helper()
	if err != nil {
		f.rt.Fatalf("%v", err)
	}
}

// wipe removes all but the cluster's ready flag.
func (f *fleet) wipe() {
	f.rt.Helper()
	got, _, err := f.w.c.ReadAll(f.ctx(), 100, store.Range{Key: "/", Prefix: true})
	f.must(err)
	var t store.Txn
	for _, kv := range got {
		if kv.Key != ipam.ClusterKey() {
			t.Delete(kv.Key, kv.Rev)
		}
	}
	if !t.Empty() {
		_, err = f.w.c.Commit(f.ctx(), &t)
		f.must(err)
	}
}

// write makes v what a key holds.
func write[T api.Value](f *fleet, key string, v *T) {
	f.rt.Helper()
	_, err := store.Mutate(f.ctx(), f.w.c, key, func(now *T, _ bool) (bool, error) {
		*now = *v
		return true, nil
	})
	f.must(err)
}

func (f *fleet) relabel(n int, zone string) {
	f.zones[n] = zone
	node := &api.Node{}
	node.Metadata.Name, node.Metadata.Labels = fmt.Sprint("node-", n), map[string]string{"zone": zone}
	write(f, api.KeyOf(node), node)
}

func (f *fleet) setPool(i int) {
	s := f.pools[i]
	p := &api.IPPool{Spec: api.IPPoolSpec{CIDR: s.cidr, BlockSize: s.bits, Disabled: s.disabled}}
	if s.zone != "" {
		p.Spec.NodeSelector = fmt.Sprintf("zone == %q", s.zone)
	}
	p.Metadata.Name = fmt.Sprint("pool-", i)
	write(f, api.KeyOf(p), p)
}

// turn is one thing that happens.
func (f *fleet) turn() {
	f.rt.Helper()
	switch rapid.IntRange(0, 11).Draw(f.rt, "what") {
	case 0, 1, 2, 3, 4:
		f.serial++
		f.add(fmt.Sprint("c", f.serial), "", rapid.IntRange(0, fleetNodes-1).Draw(f.rt, "node"))
	case 5, 6, 7:
		if id, ok := f.pick(slices.Sorted(maps.Keys(f.told))); ok {
			f.del(id)
		}
	case 8:
		if id, ok := f.pick(slices.Sorted(maps.Keys(f.told))); ok {
			f.add(id, f.podOf[id], f.homes[id])
		}
	case 9:
		if id, ok := f.pick(f.gone); ok {
			f.del(id)
		}
	case 10:
		f.serial++
		pod := rapid.IntRange(0, 2).Draw(f.rt, "pod") // a new container of a pod that may have one already
		f.add(fmt.Sprint("p", f.serial), fmt.Sprint("pod-", pod), pod)
	case 11:
		f.change()
	}
	f.check(ipamtest.View.Sound, ipam.NoEndpoint)
}

func (f *fleet) pick(from []string) (string, bool) {
	if len(from) == 0 {
		return "", false
	}
	return rapid.SampledFrom(from).Draw(f.rt, "container"), true
}

// change is what an operator does.
func (f *fleet) change() {
	zones := rapid.SampledFrom([]string{"a", "b"})
	i := rapid.IntRange(0, len(f.pools)-1).Draw(f.rt, "pool")
	switch rapid.IntRange(0, 3).Draw(f.rt, "change") {
	case 0:
		f.relabel(rapid.IntRange(0, fleetNodes-1).Draw(f.rt, "node"), zones.Draw(f.rt, "zone"))
	case 1:
		f.pools[i].disabled = !f.pools[i].disabled
		f.setPool(i)
	case 2:
		f.pools[i].zone = rapid.SampledFrom([]string{"", "a", "b"}).Draw(f.rt, "selects")
		f.setPool(i)
	case 3:
		cfg := api.DefaultIPAMConfig()
		cfg.StrictAffinity = rapid.Bool().Draw(f.rt, "strict")
		write(f, api.IPAMConfigKey, &cfg)
	}
}

func (f *fleet) request(id string) attach.Request {
	r := request(id)
	if pod := f.podOf[id]; pod != "" {
		r.Pod = attach.Pod{Namespace: "default", Name: pod}
	}
	return r
}

func (f *fleet) handler(n int) *register.Handler {
	return f.handlers[2*n+rapid.IntRange(0, 1).Draw(f.rt, "process")]
}

// add holds the answer of an ADD against all that is known.
func (f *fleet) add(id, pod string, n int) {
	f.rt.Helper()
	f.homes[id], f.podOf[id] = n, pod
	reply, err := f.handler(n).Add(f.ctx(), f.request(id))
	before, again := f.told[id]
	switch {
	case err != nil && again:
		f.rt.Fatalf("repeated ADD of %s: %v", id, err)
	case err != nil && (errors.Is(err, ipam.ErrNoAddress) || errors.Is(err, ipam.ErrNoPool)):
		f.gone = append(f.gone, id)
		return
	case err != nil:
		f.rt.Fatalf("ADD of %s: %v", id, err)
	case len(reply.Addrs) != 1:
		f.rt.Fatalf("ADD of %s returned %v", id, reply.Addrs)
	}
	got := reply.Addrs[0]
	if again && got != before {
		f.rt.Fatalf("ADD of %s returned %v and then %v", id, before, got)
	}
	for other, a := range f.told {
		if other != id && a == got {
			f.rt.Fatalf("%v was given to %s and to %s", got, other, id)
		}
	}
	if !again && !slices.ContainsFunc(f.pools[:], func(p poolState) bool { return p.serves(f.zones[n]) && p.cidr.Contains(got) }) {
		f.rt.Fatalf("%s in zone %s was given %v, and pools are %v", id, f.zones[n], got, f.pools)
	}
	f.told[id] = got
}

func (p poolState) serves(zone string) bool { return !p.disabled && (p.zone == "" || p.zone == zone) }

func (f *fleet) del(id string) {
	f.rt.Helper()
	f.must(f.handler(f.homes[id]).Del(f.ctx(), f.request(id)))
	delete(f.told, id)
	f.gone = append(f.gone, id)
}

// check holds what etcd says against a rule, against what was told, and against the audit, which may find these kinds: between two containers
// of a pod, the older one's address has no endpoint.
func (f *fleet) check(rule func(ipamtest.View) error, but ...ipam.FindingKind) {
	f.rt.Helper()
	v, err := ipamtest.Read(f.ctx(), f.w.c)
	f.must(err)
	f.must(rule(v))
	f.must(audited(f.ctx(), f.w.c, but...))
	if v.Allocated() != len(f.told) {
		f.rt.Fatalf("%d addresses are held, %d were given", v.Allocated(), len(f.told))
	}
	for id, a := range f.told {
		if got := v.Holder(a); got != api.PodHandle("net", id) {
			f.rt.Fatalf("%s was given %v, which belongs to %q", id, a, got)
		}
	}
}

// settle deletes the containers that were replaced in their pods, looks at the books, and then deletes the rest.
func (f *fleet) settle() {
	f.rt.Helper()
	v, err := ipamtest.Read(f.ctx(), f.w.c)
	f.must(err)
	current := map[string]bool{}
	for _, e := range v.Endpoints {
		current[e.Spec.ContainerID] = true
	}
	for _, id := range slices.Sorted(maps.Keys(f.told)) {
		if f.podOf[id] != "" && !current[id] {
			f.del(id)
		}
	}
	f.check(func(v ipamtest.View) error { return v.Exact("net") })
	for _, id := range slices.Sorted(maps.Keys(f.told)) {
		f.del(id)
	}
	f.check(ipamtest.View.Nothing)
}

// audited is the error of all that the audit finds but these kinds.
func audited(ctx context.Context, c *store.Client, but ...ipam.FindingKind) error {
	v, err := ipam.LoadView(ctx, c)
	if err != nil {
		return err
	}
	var errs []error
	for _, finding := range ipam.Audit(v) {
		if !slices.Contains(but, finding.Kind) {
			errs = append(errs, errors.New(finding.String()))
		}
	}
	return errors.Join(errs...)
}

// crowd is many nodes whose handlers work at the same time, and who was given what.
type crowd struct {
	t       *testing.T
	w       *world
	mu      sync.Mutex
	taken   map[netip.Addr]string // guarded by mu
	unknown int                   // commits whose outcome nobody knew; guarded by mu
}

const crowdNodes = 20

func newCrowd(t *testing.T) *crowd {
	t.Helper()
	w := newWorld(t)
	w.pool("pool", "10.0.0.0/22", 28)
	for n := range crowdNodes {
		w.node(fmt.Sprint("node-", n), nil)
	}
	return &crowd{t: t, w: w, taken: map[netip.Addr]string{}}
}

func (c *crowd) view() ipamtest.View {
	c.t.Helper()
	v, err := ipamtest.Read(c.w.ctx(), c.w.c)
	if err != nil {
		c.t.Fatal(err)
	}
	return v
}

// given notes that a container was given an address.
func (c *crowd) given(id string, reply attach.Reply) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(reply.Addrs) != 1 {
		return fmt.Errorf("%s was given %v", id, reply.Addrs)
	}
	a := reply.Addrs[0]
	if other, taken := c.taken[a]; taken && other != id {
		return fmt.Errorf("%v was given to %s and to %s", a, other, id)
	}
	c.taken[a] = id
	return nil
}

// left notes that a container relies on no address any more.
func (c *crowd) left(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.taken, func(_ netip.Addr, owner string) bool { return owner == id })
}

// TestManyNodesAtOnceKeepTheBooks has 20 handlers with 5 callers each connect and disconnect 500 containers.
func TestManyNodesAtOnceKeepTheBooks(t *testing.T) {
	c := newCrowd(t)
	f := c.w.follow()
	const callers, each = 5, 5
	handlers := make([]*register.Handler, crowdNodes)
	for n := range handlers {
		handlers[n] = register.New(register.Config{Client: c.w.c, Node: fmt.Sprint("node-", n), Source: register.FromFeed(f), Committed: f.Commit})
	}
	all := func(do func(h *register.Handler, id string) error) {
		t.Helper()
		var g errgroup.Group
		for caller := range crowdNodes * callers {
			g.Go(func() error {
				for i := range each {
					if err := do(handlers[caller%crowdNodes], fmt.Sprintf("c%d.%d", caller, i)); err != nil {
						return err
					}
				}
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	all(func(h *register.Handler, id string) error {
		reply, err := h.Add(ctx, request(id))
		if err != nil {
			return err
		}
		return c.given(id, reply)
	})
	v := c.view()
	if err := errors.Join(v.Exact("net"), audited(ctx, c.w.c)); err != nil || v.Allocated() != crowdNodes*callers*each {
		t.Errorf("%d addresses for %d containers; %v", v.Allocated(), crowdNodes*callers*each, err)
	}
	all(func(h *register.Handler, id string) error { return h.Del(ctx, request(id)) })
	if err := errors.Join(c.view().Nothing(), audited(ctx, c.w.c)); err != nil {
		t.Errorf("after every DEL: %v", err)
	}
}

// TestRaceForTheLastBlockHasOneWinner has two nodes claim the only block at the same moment, again and again: one gets it, and the other borrows of
// it, or is refused where nothing may be borrowed.
func TestRaceForTheLastBlockHasOneWinner(t *testing.T) {
	w := newWorld(t)
	w.pool("pool", "10.0.0.0/31", 31)
	handlers := []*register.Handler{w.handler("node-0"), w.handler("node-1")}
	for n := range handlers {
		w.node(fmt.Sprint("node-", n), nil)
	}
	etcd := w.etcd.Etcd()
	for round := range 1000 {
		strict := round%2 == 1
		if _, err := etcd.Put(w.ctx(), api.IPAMConfigKey, fmt.Sprintf(`{"strict_affinity":%t,"auto_allocate_blocks":true}`, strict)); err != nil {
			t.Fatal(err)
		}
		got := make([]netip.Addr, len(handlers))
		refused := make([]error, len(handlers))
		var g errgroup.Group
		for n, h := range handlers {
			g.Go(func() error {
				reply, err := h.Add(w.ctx(), request(fmt.Sprint("c", n)))
				if errors.Is(err, ipam.ErrNoAddress) {
					refused[n] = err
					return nil
				}
				if err == nil {
					got[n] = reply.Addrs[0]
				}
				return err
			})
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		if lost := refused[0] != nil || refused[1] != nil; lost != strict || got[0] == got[1] {
			t.Fatalf("round %d, strict %v: %v, %v", round, strict, got, refused)
		}
		if err := audited(w.ctx(), w.c); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		for n, h := range handlers {
			w.del(h, request(fmt.Sprint("c", n)))
		}
		for _, root := range []string{api.BlocksRoot, api.HostsRoot} {
			if _, err := etcd.Delete(w.ctx(), root, clientv3.WithPrefix()); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestCutConnectionsLeaveNothingBehind cuts the connections to etcd again and again, so that nobody knows what was done, while runtimes
// repeat their ADDs and DELs or give an ADD up.
func TestCutConnectionsLeaveNothingBehind(t *testing.T) {
	c := newCrowd(t)
	cut := newScissors(t, strings.TrimPrefix(c.w.etcd.Endpoint(), "http://"))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var all errgroup.Group
	for n := range crowdNodes {
		client, err := store.New(store.Config{Endpoints: []string{"http://" + cut.addr}, Timeout: 2 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := client.Close(); err != nil {
				t.Errorf("close the etcd client: %v", err)
			}
		})
		h := register.New(register.Config{Client: client, Node: fmt.Sprint("node-", n)})
		for i := range 5 {
			all.Go(func() error { return c.life(ctx, h, fmt.Sprintf("c%d.%d", n, i)) })
		}
	}
	if err := all.Wait(); err != nil {
		t.Fatal(err)
	}
	if cut.cuts() < crowdNodes || c.unknown == 0 {
		t.Errorf("only %d connections were cut, and %d commits were in doubt", cut.cuts(), c.unknown)
	}
	v := c.view()
	if err := errors.Join(v.Exact("net"), v.Nothing(), audited(ctx, c.w.c)); err != nil {
		t.Errorf("after every DEL: %v", err)
	}
}

// failed notes why a command failed.
func (c *crowd) failed(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if errors.Is(err, store.ErrUnknown) {
		c.unknown++
	}
}

// life is five times an ADD, which is repeated until it succeeds or given up at once, and a DEL until it succeeds.
func (c *crowd) life(ctx context.Context, h *register.Handler, id string) error {
	for round := range 5 {
		req := request(fmt.Sprint(id, ".", round))
		err := errUndone
		for patience := rand.IntN(5); err != nil && patience >= 0; patience-- {
			var reply attach.Reply
			if reply, err = h.Add(ctx, req); err == nil {
				if err := c.given(req.ContainerID, reply); err != nil {
					return err
				}
			}
			c.failed(err)
		}
		c.left(req.ContainerID)
		for err = errUndone; err != nil; {
			if err = h.Del(ctx, req); err != nil && ctx.Err() != nil {
				return fmt.Errorf("DEL of %s never succeeded: %w", req.ContainerID, err)
			}
			c.failed(err)
		}
	}
	return nil
}

var errUndone = errors.New("not done yet")

// scissors passes bytes on between clients and a server, and cuts each connection after a random number of them.
type scissors struct {
	addr string
	mu   sync.Mutex
	n    int // connections that were cut; guarded by mu
}

// cuts is how many connections were cut.
func (s *scissors) cuts() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n
}

func newScissors(t *testing.T, to string) *scissors {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &scissors{addr: l.Addr().String()}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", to)
			if err != nil {
				client.Close()
				continue
			}
			wg.Go(func() { s.pass(server, client, 1000+rand.IntN(10000)) })
			wg.Go(func() { s.pass(client, server, 1000+rand.IntN(30000)) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return s
}

// pass copies so many bytes, or until either end closes, and then closes both.
func (s *scissors) pass(to, from net.Conn, limit int) {
	defer to.Close()
	defer from.Close()
	buf := make([]byte, 1<<12)
	for limit > 0 {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		limit -= n
		if _, err := to.Write(buf[:max(min(n, n+limit), 0)]); err != nil {
			return
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
}
