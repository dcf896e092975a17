package modelcheck

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/internal/memetcd"
	"github.com/muslin-cni/muslin/internal/register"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
	"github.com/muslin-cni/muslin/pkg/store"
	"github.com/muslin-cni/muslin/test/calicowriter"
)

// someUUID is every object's: they do not matter, and must not tell states apart.
func someUUID() string { return "00000000-0000-4000-8000-000000000000" }

const network = "net"

// noon is when everything happens. Blocks of the beginning were claimed an hour before.
func noon() time.Time { return time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC) }

// Actor is a process at work for a node, and whoever starts its commands and, when one fails without an answer, starts it again.
type Actor struct {
	Node string
	// Memory says that it is an agent: it plans on what its feed has in memory, which may be old, and remembers what it wrote. Otherwise each
	// command reads etcd, as muslin-ipam does.
	Memory bool
	// Operator says that it is no process of a node: it changes what nodes go by.
	Operator bool
	Ops      []Op // one after the other
}

// Op is a command.
type Op struct {
	Name      string
	Container string // whose address it is about; "": no container's
	gives     bool   // when it has succeeded, the container is alive
	takes     bool   // when it has begun, the container is not
	ends      bool   // when it has succeeded, nothing is left of the container, and nothing comes of it any more
	once      bool   // where its outcome is unknown, or its process has died, it is not begun again: the next op is
	foreign   bool   // a Calico writer's: it may fail, leave work undone, and is not started again
	edits     bool   // an operator's: where others are quicker all the time, it gives up
	whole     bool   // after a conflict it begins anew from nothing
	run       func(context.Context, *process) ([]netip.Addr, error)
}

// process is an actor's from its start to its death.
type process struct {
	actor   *Actor
	tape    *tape
	client  *store.Client
	handler *register.Handler
}

func newProcess(a *Actor, t *tape) *process {
	p := &process{actor: a, tape: t, client: t.client()}
	cfg := handlerConfig(p.client, a.Node)
	if a.Memory {
		cfg.Source = p.source
	}
	p.handler = register.New(cfg)
	return p
}

func handlerConfig(c *store.Client, node string) register.Config {
	return register.Config{Client: c, Node: node, Machine: machineOf(node), Now: noon, UUID: someUUID}
}

// source is what the agent has in memory, when it is asked for.
func (p *process) source() register.Source {
	s := p.tape.look()
	if s == nil {
		return nil
	}
	return register.Picture(feed.Listed(s.Rev(), keysOf(*s)))
}

func keysOf(s memetcd.State) (out []store.KV) {
	for kv := range s.All() {
		out = append(out, store.KV{Key: string(kv.Key), Value: kv.Value, Rev: kv.ModRevision})
	}
	return out
}

func attachRequest(container string) attach.Request {
	return attach.Request{Network: network, ContainerID: container, IfName: "eth0", HostIf: "cali" + container, MAC: "02:00:00:00:00:01"}
}

func handleOf(container string) string { return api.PodHandle(network, container) }

// Add connects a container.
func Add(container string) Op {
	return Op{Name: "ADD " + container, Container: container, gives: true, whole: true, run: func(ctx context.Context, p *process) ([]netip.Addr, error) {
		reply, err := p.handler.Add(ctx, attachRequest(container))
		return reply.Addrs, err
	}}
}

// AddOnce connects a container. Where nobody knows whether that was done, its caller goes on, as CNI asks of runtimes: no ADD behind another without a DEL between.
// An executable, which knows of no command before it, relies on that: of two ADDs of one container, the first could come late, behind the DEL of the second.
func AddOnce(container string) Op {
	op := Add(container)
	op.once = true
	return op
}

// AddBrought connects a container that has an address of another IPAM's: its endpoint is all that there is of it.
func AddBrought(container, addr string) Op {
	op := Add(container)
	op.Name += " with " + addr
	op.run = func(ctx context.Context, p *process) ([]netip.Addr, error) {
		req := attachRequest(container)
		req.Addrs = []netip.Addr{netip.MustParseAddr(addr)}
		reply, err := p.handler.Add(ctx, req)
		return reply.Addrs, err
	}
	return op
}

// Del disconnects a container.
func Del(container string) Op {
	return Op{Name: "DEL " + container, Container: container, takes: true, ends: true, whole: true, run: func(ctx context.Context, p *process) ([]netip.Addr, error) {
		return nil, p.handler.Del(ctx, attachRequest(container))
	}}
}

// FreeOrphan is the agent's audit: a container's interface is not there, so what it has is taken back.
func FreeOrphan(container string) Op {
	return Op{Name: "free orphan " + container, Container: container, takes: true, run: func(ctx context.Context, p *process) ([]netip.Addr, error) {
		return nil, freeOrphan(ctx, p.client, p.handler, endpointKey(p.actor.Node, container))
	}}
}

func endpointKey(node, container string) string {
	w := &api.WorkloadEndpoint{Spec: api.WorkloadEndpointSpec{Orchestrator: "cni", Node: node, ContainerID: container, Endpoint: "eth0"}}
	w.Metadata.Namespace, w.Metadata.Name = "default", api.WorkloadEndpointName(w.Spec)
	return api.KeyOf(w)
}

func freeOrphan(ctx context.Context, c *store.Client, h *register.Handler, key string) error {
	e, err := store.Get[api.WorkloadEndpoint](ctx, c, key)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = h.FreeOrphan(ctx, register.Orphan{Endpoint: e, Handle: handleOf(e.Value.Spec.ContainerID)})
	if errors.Is(err, register.ErrJudgedAnew) {
		return nil
	}
	return err
}

// Tunnels gives the actor's node its tunnel addresses.
func Tunnels() Op {
	return Op{Name: "tunnel addresses", whole: true, run: func(ctx context.Context, p *process) ([]netip.Addr, error) {
		_, _, err := ipam.EnsureTunnels(ctx, p.client, p.actor.Node, noon)
		return nil, err
	}}
}

// ReleaseNode takes from a node what it has, as the deletion of its Node does, and ends where somebody works under its name again.
func ReleaseNode(node string) Op {
	return Op{Name: "release node " + node, run: func(ctx context.Context, p *process) ([]netip.Addr, error) {
		n, nodeErr := store.Get[api.Node](ctx, p.client, api.NodeKey(node))
		id, idErr := store.Get[api.NodeIdentity](ctx, p.client, api.IdentityKey(node))
		for _, err := range []error{nodeErr, idErr} {
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				return nil, err
			}
		}
		gone, _, err := ipam.Depart(ctx, p.client, node, n, id)
		if err == nil {
			_, err = ipam.ReleaseNode(ctx, p.client, gone, noon)
		}
		if errors.Is(err, ipam.ErrCameBack) || errors.Is(err, store.ErrConflict) {
			return nil, nil
		}
		return nil, err
	}}
}

// ReleasePool disables the pool and releases its blocks, as its deletion does.
func ReleasePool() Op {
	return Op{Name: "release pool", run: func(ctx context.Context, p *process) ([]netip.Addr, error) {
		_, err := store.Mutate(ctx, p.client, poolKey(), func(pool *api.IPPool, _ bool) (bool, error) {
			was := pool.Spec.Disabled
			pool.Spec.Disabled = true
			return !was, nil
		})
		if err != nil {
			return nil, err
		}
		_, err = ipam.ReleasePool(ctx, p.client, poolCIDR())
		return nil, err
	}}
}

// ReturnBlocks gives back the actor's node's empty blocks, as its agent does with those that have been empty for long.
func ReturnBlocks() Op {
	return Op{Name: "return empty blocks", run: func(ctx context.Context, p *process) ([]netip.Addr, error) {
		src := ipam.Etcd{Client: p.client}
		facts, err := src.Facts(ctx, p.actor.Node)
		if err != nil {
			return nil, err
		}
		for _, a := range facts.Affinities {
			_, cidr, err := api.ParseAffinityKey(a.Key)
			if err != nil {
				return nil, err
			}
			found, err := src.Blocks(ctx, cidr)
			if err != nil {
				return nil, err
			}
			if found[0].Value == nil || !block.Empty(found[0].Value) {
				continue
			}
			_, err = ipam.ReturnBlock(ctx, p.client, ipam.Unused{Block: found[0], Affinity: a, Identity: facts.Identity, Cluster: facts.Cluster})
			if err != nil && !errors.Is(err, store.ErrConflict) {
				return nil, err
			}
		}
		return nil, nil
	}}
}

// calico makes an Op of one of Calico's step sequences.
func calico(name, container string, sequence func(calicowriter.Writer) *calicowriter.Sequence) Op {
	return Op{Name: "Calico: " + name, Container: container, foreign: true, run: func(ctx context.Context, p *process) ([]netip.Addr, error) {
		etcd := clientv3.NewCtxClient(ctx)
		etcd.KV = clientv3.NewKVFromKVClient(kv{tape: p.tape}, nil)
		s := sequence(calicowriter.Writer{Etcd: etcd, Node: p.actor.Node, Now: noon, UUID: someUUID})
		defer s.Abandon()
		err := s.Finish(ctx)
		return s.Addrs(), err
	}}
}

// CalicoAdd is the ADD of Calico's plugin. The container is a pod's: of others, Calico's DEL frees the address before it deletes the endpoint, and in between the two
// another endpoint may rightly get it, so that two have it.
func CalicoAdd(container string) Op {
	op := calico("ADD "+container, container, func(w calicowriter.Writer) *calicowriter.Sequence {
		return w.Add(calicowriter.Container{Network: network, ID: container, Pod: container})
	})
	op.gives = true
	return op
}

// CalicoDel is the DEL of Calico's plugin.
func CalicoDel(container string) Op {
	op := calico("DEL "+container, container, func(w calicowriter.Writer) *calicowriter.Sequence {
		return w.Del(calicowriter.Container{Network: network, ID: container, Pod: container})
	})
	op.takes = true
	return op
}

// CalicoClaim claims a block in Calico's three steps.
func CalicoClaim(cidr string) Op {
	return calico("claim "+cidr, "", func(w calicowriter.Writer) *calicowriter.Sequence { return w.Claim(netip.MustParsePrefix(cidr)) })
}

// CalicoReleaseAffinity gives a block back in Calico's three steps.
func CalicoReleaseAffinity(cidr string) Op {
	return calico("release "+cidr, "", func(w calicowriter.Writer) *calicowriter.Sequence {
		return w.ReleaseAffinity(netip.MustParsePrefix(cidr), true)
	})
}

// ran is how far a process has come.
type ran struct {
	at    int // the op that is under way; len(Ops): it has ended
	began int // how many replies there were when it began
	fresh bool
	told  []string // by op that has ended in this life: its addresses, "refused" or "failed"
	next  request  // none: it has ended
	err   error    // what no op may ever say
}

// run runs an actor's code from an op on, as far as the replies go.
func run(a *Actor, first int, replies []reply) ran {
	t := &tape{replies: replies}
	p := newProcess(a, t)
	out := ran{at: first}
	for out.at < len(a.Ops) {
		out.began = t.at
		addrs, err := a.Ops[out.at].run(context.Background(), p)
		if !t.next.none() {
			out.next, out.fresh = t.next, t.at == out.began
			return out
		}
		told, err := outcome(a.Ops[out.at], addrs, err)
		switch {
		case errors.Is(err, store.ErrUnknown) && a.Ops[out.at].once:
			told = failed
		case errors.Is(err, store.ErrUnknown):
			continue // whoever started it starts it again
		case err != nil:
			out.err = fmt.Errorf("%s on %s: %w", a.Ops[out.at].Name, a.Node, err)
			return out
		}
		out.told = append(out.told, told)
		out.at++
	}
	out.began, out.fresh = t.at, true
	return out
}

const (
	refused = "refused"
	failed  = "failed"
	done    = "done" // and there is nothing more to tell
)

// outcome is what the caller is told. An error that stays is one that must not be.
func outcome(op Op, addrs []netip.Addr, err error) (string, error) {
	var refusal *ipam.Refusal
	switch {
	case err != nil && op.foreign, op.edits && errors.Is(err, store.ErrConflict):
		return failed, nil
	case errors.As(err, &refusal) && !errors.Is(refusal, ipam.ErrBusy):
		return refused, nil
	case err != nil:
		return "", err
	}
	if len(addrs) == 0 {
		return done, nil
	}
	texts := make([]string, len(addrs))
	for i, a := range addrs {
		texts[i] = a.String()
	}
	return strings.Join(texts, ","), nil
}
