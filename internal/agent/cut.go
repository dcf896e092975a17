package agent

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/muslin-cni/muslin/internal/policy"
	"github.com/muslin-cni/muslin/internal/rtnl"
	"github.com/muslin-cni/muslin/pkg/api"
)

// cutter has the kernel forget connections of this node's pods that a change of policy denies: what it does not know it asks policy about again, as
// of the first packet. Without it, connections that exist go on, and only new ones are denied.
//
//  1. It goes by the very model that is enforced, and cuts only what the model denies.
//  2. It looks only at pods whose policy has changed, or a set that it refers to, and at most once a second, however often policy changes. All of
//     that is done beside the loop.
//  3. What goes through hosts' endpoints is left alone: by which device a connection goes, and so which endpoint judges it, the kernel does not say.
//
// A peer that is allowed to begin connections himself could take up a cut one from his end, since the kernel tracks TCP from the middle too. Settings.MidStream
// keeps him from that. With UDP nobody can tell.
type cutter struct {
	model func() policy.Model
	cut   func(func(rtnl.Tracked) bool) (int, error)
	pause time.Duration // between two looks
	log   *slog.Logger

	mu      sync.Mutex
	pending changedPolicy
	wake    chan struct{}
}

// changedPolicy is what policy has changed since the last look.
type changedPolicy struct {
	endpoints map[policy.EndpointKey]struct{}
	sets      map[policy.SetID]struct{}
	host      []netip.Addr // the host's own addresses
}

// cutPause is the time between two looks at the kernel's connections.
const cutPause = time.Second

func newCutter(model func() policy.Model, log *slog.Logger) *cutter {
	c := &cutter{model: model, cut: rtnl.CutFlows, pause: cutPause, log: log, wake: make(chan struct{}, 1)}
	c.pending = newChangedPolicy()
	return c
}

func newChangedPolicy() changedPolicy {
	return changedPolicy{endpoints: map[policy.EndpointKey]struct{}{}, sets: map[policy.SetID]struct{}{}}
}

// changed notes an update that is in force. It does not wait.
func (c *cutter) changed(u changedPolicy) {
	if len(u.endpoints)+len(u.sets) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.Copy(c.pending.endpoints, u.endpoints)
	maps.Copy(c.pending.sets, u.sets)
	c.pending.host = u.host
	poke(c.wake)
}

// note adds what an update of the model concerns.
func (p changedPolicy) note(u policy.Update) {
	for key, e := range u.Endpoints {
		if e != nil && key.Kind == policy.Workload {
			p.endpoints[key] = struct{}{}
		}
	}
	for id, s := range u.Sets {
		if s.Set == nil && !s.Gone {
			p.sets[id] = struct{}{}
		}
	}
}

// run looks after each change until ctx ends.
func (c *cutter) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.wake:
		}
		c.mu.Lock()
		changes := c.pending
		c.pending = newChangedPolicy()
		c.mu.Unlock()
		c.look(changes)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(c.pause):
		}
	}
}

// look cuts what is denied now.
func (c *cutter) look(changes changedPolicy) {
	j := newJudge(c.model(), changes)
	if len(j.affected) == 0 {
		return
	}
	start := time.Now()
	n, err := c.cut(j.denies)
	switch {
	case err != nil:
		c.log.Warn("cut connections that policy denies now", "error", err)
	case n > 0:
		c.log.Info("cut connections that policy denies now", "connections", n, "judged", j.judged, "took", time.Since(start))
	}
}

// judge says of tracked connections whether a model denies them.
type judge struct {
	model    policy.Model
	byAddr   map[netip.Addr]*policy.Endpoint
	affected map[netip.Addr]struct{} // addresses of endpoints whose policy has changed
	host     []netip.Addr
	judged   int
}

func newJudge(m policy.Model, changes changedPolicy) *judge {
	j := &judge{model: m, byAddr: map[netip.Addr]*policy.Endpoint{}, affected: map[netip.Addr]struct{}{}, host: changes.host}
	lists := listsWith(m, changes.sets)
	for key, e := range m.Endpoints {
		if key.Kind != policy.Workload {
			continue
		}
		_, changed := changes.endpoints[key]
		_, in := lists[e.Ingress]
		_, out := lists[e.Egress]
		for _, a := range e.Addrs {
			j.byAddr[a] = e
			if changed || in || out {
				j.affected[a] = struct{}{}
			}
		}
	}
	return j
}

// listsWith are the lists of a model whose rules refer to one of these sets.
func listsWith(m policy.Model, sets map[policy.SetID]struct{}) map[policy.ListID]struct{} {
	out := map[policy.ListID]struct{}{}
	if len(sets) == 0 {
		return out
	}
	refers := map[policy.PolicyID]bool{}
	for id, p := range m.Policies {
		refers[id] = slices.ContainsFunc(p.Rules, func(r policy.Rule) bool {
			return slices.ContainsFunc(r.Sets(), func(s policy.SetID) bool { _, ok := sets[s]; return ok })
		})
	}
	for id, l := range m.Lists {
		asked := slices.Clone(l.Profiles)
		for _, t := range l.Tiers {
			asked = append(asked, t.Policies...)
		}
		if slices.ContainsFunc(asked, func(p policy.PolicyID) bool { return refers[p] }) {
			out[id] = struct{}{}
		}
	}
	return out
}

// denies tells whether a connection is of a pod whose policy has changed, and would not be let through if it began now. Of ICMP, only requests
// for an echo are likely to be tracked, and the kernel's answer does not name the kind.
func (j *judge) denies(t rtnl.Tracked) bool {
	_, from := j.affected[t.Source]
	_, to := j.affected[t.Destination]
	if !from && !to {
		return false
	}
	j.judged++
	f := policy.Flow{In: j.byAddr[t.Source], Out: j.byAddr[t.Destination], Packet: policy.Packet{
		Source: t.Source, Destination: t.Destination, Protocol: t.Protocol, SourcePort: t.SourcePort, DestinationPort: t.DestinationPort,
	}}
	switch t.Protocol {
	case api.ProtoICMP:
		f.ICMPType = 8 // RFC 792
	case api.ProtoICMPv6:
		f.ICMPType = 128 // RFC 4443
	}
	switch {
	case slices.Contains(j.host, t.Source):
		return false // what a host sends to its pods no policy judges
	case slices.Contains(j.host, t.Destination):
		f.Way = policy.Received
	}
	return j.model.Walk(f).Verdict == api.Deny
}
