package modelcheck

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/internal/register"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
)

// judgement is what etcd's content says by itself.
type judgement struct {
	err       error
	holders   map[netip.Addr]string          // the handles
	endpoints map[string]map[netip.Addr]bool // by container
}

// foreign reports whether a Calico writer takes part: then what its steps may leave for a while is no violation.
func (e *explorer) foreign() bool {
	return slices.ContainsFunc(e.Actors, func(a Actor) bool {
		return slices.ContainsFunc(a.Ops, func(o Op) bool { return o.foreign })
	})
}

// judge says what is wrong with a state.
func (e *explorer) judge(n *node) error {
	for i := range e.Actors {
		if err := n.actors[i].ran.err; err != nil {
			return fmt.Errorf("an error that must not be: %w", err)
		}
	}
	if n.wrong != nil {
		return n.wrong
	}
	j := e.content(n.world)
	if j.err != nil {
		return j.err
	}
	live := e.live(n)
	if err := errors.Join(j.agrees(live), j.without(e.over(n))); err != nil {
		return err
	}
	if !slices.ContainsFunc(n.actors[:len(e.Actors)], func(l *local) bool { return !l.ended() }) {
		e.result.Ends++
	}
	return e.end(n.world, live)
}

func (e *explorer) content(w *world) *judgement {
	if j := e.judged[w.digest]; j != nil {
		return j
	}
	v := ipam.ViewOf(w.etcd.Rev(), keysOf(w.etcd))
	j := &judgement{holders: map[netip.Addr]string{}, endpoints: map[string]map[netip.Addr]bool{}, err: violations(v, e.foreign())}
	for _, b := range v.Blocks {
		for addr, by := range ipam.Allocated(b.Value) {
			if by.HandleID != nil {
				j.holders[addr] = block.Handle(*by.HandleID)
			}
		}
	}
	for _, p := range v.Endpoints {
		has := map[netip.Addr]bool{}
		for _, a := range p.Value.Spec.IPNetworks {
			has[a.Addr()] = true
		}
		j.endpoints[p.Value.Spec.ContainerID] = has
	}
	e.judged[w.digest] = j
	return j
}

// violations is every invariant that a view breaks; only those that nobody may ever break, where others take part.
func violations(v ipam.View, foreign bool) error {
	var errs []error
	for _, i := range ipam.Verify(v) {
		if foreign && i.Meanwhile != "" {
			continue
		}
		for _, f := range i.Violations {
			errs = append(errs, fmt.Errorf("%s (%s) is violated: %s", i.Name, i.Holds, f.Text))
		}
	}
	return errors.Join(errs...)
}

// agrees holds what containers were told against what etcd says.
func (j *judgement) agrees(live map[string]string) error {
	had := map[netip.Addr]string{}
	for _, container := range slices.Sorted(maps.Keys(live)) {
		for text := range strings.SplitSeq(live[container], ",") {
			a, err := netip.ParseAddr(text)
			switch {
			case err != nil:
				return fmt.Errorf("container %s was told that its address is %q", container, text)
			case had[a] != "":
				return fmt.Errorf("%v was given to container %s and to container %s", a, had[a], container)
			case poolCIDR().Contains(a) && j.holders[a] != handleOf(container):
				return fmt.Errorf("%v was given to container %s, and is held by %q", a, container, j.holders[a])
			case !j.endpoints[container][a]:
				return fmt.Errorf("%v was given to container %s, whose endpoint has %v", a, container, j.endpoints[container])
			}
			had[a] = container
		}
	}
	return nil
}

// without looks that there is nothing of containers that were disconnected.
func (j *judgement) without(over []string) error {
	for _, container := range over {
		for a, holder := range j.holders {
			if holder == handleOf(container) {
				return fmt.Errorf("the DEL of container %s has succeeded, and %v is its", container, a)
			}
		}
		if addrs, ok := j.endpoints[container]; ok {
			return fmt.Errorf("the DEL of container %s has succeeded, and it has an endpoint with %v", container, addrs)
		}
	}
	return nil
}

// over is the containers whose DEL has succeeded, and that nobody connects after it.
func (e *explorer) over(n *node) (out []string) {
	for i, a := range e.Actors {
		for k, op := range a.Ops {
			if op.ends && n.actors[i].told[k] == done && !e.connects(op.Container, i, k) {
				out = append(out, op.Container)
			}
		}
	}
	return out
}

// connects reports whether a container may be connected after an actor's op.
func (e *explorer) connects(container string, by, after int) bool {
	for i, a := range e.Actors {
		for k, op := range a.Ops {
			if op.gives && op.Container == container && (i != by || k > after) {
				return true
			}
		}
	}
	return false
}

// end has the audits run, as if nobody else ever did any more, and says what is left that should not be.
func (e *explorer) end(w *world, live map[string]string) error {
	var h maphash.Hash
	h.SetSeed(seed())
	put64(&h, w.digest)
	for _, c := range slices.Sorted(maps.Keys(live)) {
		fmt.Fprint(&h, c, live[c])
	}
	key := h.Sum64()
	err, known := e.ended[key]
	if !known {
		err = e.audited(w, live)
		e.ended[key] = err
	}
	return err
}

// audited is end, worked out. A datastore that is locked is unlocked before, and who audits is the machine that has the node's name then.
func (e *explorer) audited(w *world, live map[string]string) error {
	e.server.Restore(w.etcd)
	c, ctx := e.server.Client(), context.Background()
	if _, err := Unlock().run(ctx, &process{client: c}); err != nil {
		return err
	}
	for _, p := range ipam.ViewOf(0, keysOf(w.etcd)).Endpoints {
		s := p.Value.Spec
		if live[s.ContainerID] != "" || e.ofCalico(s.ContainerID) {
			continue
		}
		cfg := handlerConfig(c, s.Node)
		if id := valueIn[api.NodeIdentity](w.etcd, api.IdentityKey(s.Node)); id != nil {
			cfg.Machine = id.MachineID
		}
		if err := freeOrphan(ctx, c, register.New(cfg), p.Key); err != nil {
			return fmt.Errorf("the audit of %s: %w", s.Node, err)
		}
	}
	state := e.server.State()
	if err := violations(ipam.ViewOf(state.Rev(), keysOf(state)), e.foreign()); err != nil {
		return fmt.Errorf("after the audits: %w", err)
	}
	after := e.content(newWorld(state))
	for _, a := range slices.SortedFunc(maps.Keys(after.holders), netip.Addr.Compare) {
		container, isPod := strings.CutPrefix(after.holders[a], network+".")
		if isPod && live[container] == "" && !e.ofCalico(container) {
			return fmt.Errorf("after the audits %v leaks: %s holds it, which is not alive", a, after.holders[a])
		}
	}
	for kv := range state.All() {
		container, isPod := strings.CutPrefix(string(kv.Key), api.HandleKey(handleOf("")))
		if isPod && live[container] == "" && !e.ofCalico(container) {
			return fmt.Errorf("after the audits handle %s is left", kv.Key)
		}
	}
	return nil
}

// ofCalico reports whether a container is a Calico writer's: what that leaves behind when it dies is its own to find.
func (e *explorer) ofCalico(container string) bool {
	return slices.ContainsFunc(e.Actors, func(a Actor) bool {
		return slices.ContainsFunc(a.Ops, func(o Op) bool { return o.foreign && o.Container == container })
	})
}
