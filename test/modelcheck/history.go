package modelcheck

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/anishathalye/porcupine"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/muslin-cni/muslin/internal/register"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
)

// Use is what one call of a history did to one address: a container took it, or gave it back.
type Use struct {
	Addr      netip.Addr
	Container string
	Gives     bool // it gives it back
}

// Allocator is what the history of an address may be: it is nobody's, or one container's, who alone takes it again and gives it back.
func Allocator() porcupine.Model {
	return porcupine.Model{
		Partition: func(history []porcupine.Operation) (out [][]porcupine.Operation) {
			at := map[netip.Addr]int{}
			for _, op := range history {
				a := op.Input.(Use).Addr
				if _, ok := at[a]; !ok {
					at[a] = len(out)
					out = append(out, nil)
				}
				out[at[a]] = append(out[at[a]], op)
			}
			return out
		},
		Init: func() any { return "" },
		Step: func(state, input, _ any) (bool, any) {
			holder, u := state.(string), input.(Use)
			if u.Gives {
				return holder == u.Container, ""
			}
			return holder == "" || holder == u.Container, u.Container
		},
		DescribeOperation: func(input, _ any) string { return fmt.Sprintf("%+v", input) },
	}
}

// Crowd is many nodes at work at once on one etcd.
type Crowd struct {
	Etcd  store.Services
	Nodes int
	For   time.Duration
	Seed  uint64
	Loss  float64 // the part of the commits that are lost, or whose replies are
}

// History is what a crowd's callers have seen.
type History struct {
	Ops                      []porcupine.Operation
	Added, Refused, Unknown  int
	Crashes                  int
	mu                       sync.Mutex
	began                    time.Time
	adds, refused, lost, die atomic.Int64
}

// lossy loses commits, and replies to them.
type lossy struct {
	pb.KVClient
	mu   sync.Mutex
	dice *rand.Rand
	loss float64
}

// Txn implements pb.KVClient.
func (l *lossy) Txn(ctx context.Context, r *pb.TxnRequest, opts ...grpc.CallOption) (*pb.TxnResponse, error) {
	l.mu.Lock()
	before, after := l.dice.Float64() < l.loss/2, l.dice.Float64() < l.loss/2
	l.mu.Unlock()
	if !(request{txn: r}).commits() {
		return l.KVClient.Txn(ctx, r, opts...)
	}
	if before {
		return nil, errLost
	}
	res, err := l.KVClient.Txn(ctx, r, opts...)
	if err == nil && after {
		return nil, errLost
	}
	return res, err
}

// Run has the nodes connect and disconnect containers until the time is up, and then disconnect all that there are. A caller that is not told whether a command was done
// asks again, in half of the cases a new process; or it lets the container go, whose address only etcd knows then.
func (c Crowd) Run(ctx context.Context) (*History, error) {
	h := &History{began: time.Now()}
	if err := c.prepare(ctx); err != nil {
		return nil, err
	}
	stop := time.After(c.For)
	done := make(chan struct{})
	go func() {
		<-stop
		close(done)
	}()
	var all errgroup.Group
	for i := range c.Nodes {
		m := &member{history: h, node: fmt.Sprintf("n%d", i), dice: rand.New(rand.NewPCG(c.Seed, uint64(i))), etcd: c.Etcd}
		m.lossy = &lossy{KVClient: c.Etcd.KV, dice: rand.New(rand.NewPCG(c.Seed, uint64(1000+i))), loss: c.Loss}
		m.restart()
		all.Go(func() error { return m.work(ctx, done) })
	}
	err := all.Wait()
	h.Added, h.Refused, h.Unknown, h.Crashes = int(h.adds.Load()), int(h.refused.Load()), int(h.lost.Load()), int(h.die.Load())
	return h, err
}

// prepare makes a cluster whose addresses are fewer than its nodes want: 16, in blocks of 4.
func (c Crowd) prepare(ctx context.Context) error {
	b := &builder{ctx: ctx, c: store.Over(c.Etcd, 0)}
	ready := true
	info := &api.ClusterInformation{Spec: api.ClusterInformationSpec{DatastoreReady: &ready}}
	info.Metadata.Name = "default"
	put(b, ipam.ClusterKey(), info)
	pool := &api.IPPool{Spec: api.IPPoolSpec{CIDR: netip.MustParsePrefix("10.0.0.0/28"), BlockSize: 30}}
	pool.Metadata.Name = "pool"
	put(b, poolKey(), pool)
	for i := range c.Nodes {
		n := &api.Node{}
		n.Metadata.Name = fmt.Sprintf("n%d", i)
		put(b, api.KeyOf(n), n)
	}
	return b.err
}

// member is one node of a crowd with its caller.
type member struct {
	history *History
	node    string
	dice    *rand.Rand
	etcd    store.Services
	lossy   *lossy
	handler *register.Handler
	client  *store.Client
	has     []held
	made    int
	away    int // how often etcd was out of reach, in a row
}

// patience is how often in a row etcd may be out of reach: a machine that is busy with other things keeps it waiting.
const patience = 20

// waits reports whether a command failed since etcd was out of reach, so that nothing was done, and is to be begun again.
func (m *member) waits(err error) bool {
	if !errors.Is(err, store.ErrUnavailable) {
		m.away = 0
		return false
	}
	m.away++
	return m.away <= patience
}

// held is a container that is connected, or may be.
type held struct {
	container string
	addr      netip.Addr // zero: nobody was told
	called    int64      // when it was first asked for
}

// hurried is a clock on which a minute, after which an empty block may be taken over, passes in a tenth of a second.
func (m *member) hurried() time.Time {
	return m.history.began.Add(600 * time.Since(m.history.began))
}

func (m *member) restart() {
	m.client = store.Over(store.Services{KV: m.lossy, Watch: m.etcd.Watch}, 0)
	m.handler = register.New(register.Config{Client: m.client, Node: m.node, Now: m.hurried})
}

func (m *member) work(ctx context.Context, done <-chan struct{}) error {
	for {
		select {
		case <-done:
			for len(m.has) > 0 {
				if err := m.del(ctx, 0); err != nil {
					return err
				}
			}
			return nil
		default:
		}
		var err error
		if n := len(m.has); n > 0 && m.dice.IntN(4) < n {
			err = m.del(ctx, m.dice.IntN(n))
		} else {
			err = m.add(ctx)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", m.node, err)
		}
	}
}

// now is when something happens, for the history.
func (m *member) now() int64 { return int64(time.Since(m.history.began)) }

func (m *member) note(u Use, called, returned int64) {
	m.history.mu.Lock()
	defer m.history.mu.Unlock()
	m.history.Ops = append(m.history.Ops, porcupine.Operation{Input: u, Call: called, Return: returned})
}

func (m *member) add(ctx context.Context) error {
	m.made++
	h := held{container: fmt.Sprintf("%s-%d", m.node, m.made), called: m.now()}
	for {
		reply, err := m.handler.Add(ctx, attachRequest(h.container))
		var refusal *ipam.Refusal
		switch {
		case m.waits(err):
			continue
		case err == nil:
			h.addr = reply.Addrs[0]
			m.note(Use{Addr: h.addr, Container: h.container}, h.called, m.now())
			m.history.adds.Add(1)
			m.has = append(m.has, h)
			return nil
		case errors.As(err, &refusal):
			m.history.refused.Add(1)
			return nil
		case !errors.Is(err, store.ErrUnknown):
			return err
		}
		m.history.lost.Add(1)
		if m.dice.IntN(2) == 0 {
			m.history.die.Add(1)
			m.restart()
		}
		if m.dice.IntN(3) == 0 {
			m.has = append(m.has, h) // its DEL will come
			return nil
		}
	}
}

// del disconnects one of the containers. What nobody was told of its address, etcd tells.
func (m *member) del(ctx context.Context, i int) error {
	h := m.has[i]
	if !h.addr.IsValid() {
		e, err := store.Get[api.WorkloadEndpoint](ctx, store.Over(m.etcd, 0), endpointKey(m.node, h.container))
		switch {
		case err == nil:
			h.addr = e.Value.Spec.IPNetworks[0].Addr()
			m.note(Use{Addr: h.addr, Container: h.container}, h.called, m.now())
		case !errors.Is(err, store.ErrNotFound):
			return err
		}
	}
	called := m.now()
	for {
		err := m.handler.Del(ctx, attachRequest(h.container))
		if m.waits(err) {
			continue
		}
		if err == nil {
			break
		}
		if !errors.Is(err, store.ErrUnknown) {
			return err
		}
		m.history.lost.Add(1)
		if m.dice.IntN(2) == 0 {
			m.history.die.Add(1)
			m.restart()
		}
	}
	if h.addr.IsValid() {
		m.note(Use{Addr: h.addr, Container: h.container, Gives: true}, called, m.now())
	}
	m.has = append(m.has[:i], m.has[i+1:]...)
	return nil
}

// Check holds the history against the allocator.
func (h *History) Check(within time.Duration) porcupine.CheckResult {
	return porcupine.CheckOperationsTimeout(Allocator(), h.Ops, within)
}
