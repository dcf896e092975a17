package agent

import (
	"time"

	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/internal/plan"
	"github.com/muslin-cni/muslin/pkg/ipam"
)

// How long what was not encrypted a moment before may go in clear once more, and from when it is encrypted.
const (
	// onsetTime is how long nodes have to make their devices and to tell their keys. It takes them a second or so; an agent whose connection to etcd is cut tries
	// again every two. What is not encrypted by then is refused, as by an agent that starts.
	onsetTime = 10 * time.Second
	// heardTime is how long after our key stood in etcd the others can be expected to have made us a peer. A handshake that comes earlier is dropped,
	// and WireGuard waits five seconds before it tries again (REKEY_TIMEOUT in its paper, section 6.1), while what is sent waits or is lost.
	heardTime = 2 * time.Second
)

// onset has a running node change over to encryption without a loss.
//
// All nodes learn of the setting at the same moment, and at that moment none has a key. If each refused what it cannot encrypt, the cluster's pods would be cut
// off from each other until all keys have been told: seconds, and longer where an agent is busy. So for onsetTime at the most what was sent in clear until then
// still is: to everybody while the others cannot know our key, then to those who have not told theirs.
//
// This gives nothing away that refusing at once would keep: until the setting reached the node the same packets went the same way, and who may not write the
// setting cannot have it begin anew. A node that starts with encryption on, after a reboot or a new agent, has no such time. Nor has one whose kernel has no WireGuard,
// a node whose key goes later, and what hosts say once wireguardHostEncryptionEnabled is added, for then there are keys. It is for one goroutine.
type onset struct {
	now   func() time.Time // with a monotonic clock
	ran   bool             // a round has gone by: what the first asks for was asked for before the agent started
	of    [2]beginning     // of IPv4 and IPv6
	asked time.Time        // when stages was called last
	timer *time.Timer      // fires when another step is due; nil: none is
}

// beginning is what is known of a family.
type beginning struct {
	on    bool      // in the last round
	until time.Time // it has begun until then
	heard time.Time // from then on the others know our key; zero: it was not told yet
}

func newOnset(now func() time.Time) *onset { return &onset{now: now} }

// stages says how far the families are whose encryption is enabled. told tells of which the Node has our key.
func (o *onset) stages(enabled, told [2]bool) (out [2]plan.Onset) {
	o.asked = o.now()
	for i := range o.of {
		b := &o.of[i]
		if told[i] && b.heard.IsZero() {
			b.heard = o.asked.Add(heardTime)
		}
		switch {
		case !enabled[i] || !o.ran:
		case !b.on:
			out[i] = plan.Silent // if this is the round in which it begins
		case !o.asked.Before(b.until):
		case b.heard.IsZero() || o.asked.Before(b.heard):
			out[i] = plan.Silent
		default:
			out[i] = plan.Partial
		}
	}
	return out
}

// saw takes note of what is to be encrypted now, and has the loop woken when another step is due.
func (o *onset) saw(m plan.Modes) {
	now := o.now()
	var next time.Time
	for i, on := range []bool{m.WireGuard, m.WireGuard6} {
		b := &o.of[i]
		if on && !b.on {
			b.heard, b.until = time.Time{}, time.Time{}
			if o.ran {
				b.until = now.Add(onsetTime)
			}
		}
		b.on = on
		if at := b.next(o.asked); on && !at.IsZero() && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	o.ran = true
	if o.timer != nil {
		o.timer.Stop()
		o.timer = nil
	}
	if !next.IsZero() {
		o.timer = time.NewTimer(next.Sub(now)) // one that is past fires at once: the round has taken that long
	}
}

// next is when the step after the one at a time is due; zero if that is the last.
func (b *beginning) next(at time.Time) time.Time {
	switch {
	case !at.Before(b.until):
		return time.Time{}
	case at.Before(b.heard) && b.heard.Before(b.until):
		return b.heard
	}
	return b.until
}

// due receives when another step is due. It is another channel after every round.
func (o *onset) due() <-chan time.Time {
	if o.timer == nil {
		return nil
	}
	return o.timer.C
}

// begin takes over into the plan's settings how far encryption is.
func (a *Agent) begin(w plan.WireGuard, snap feed.Snapshot) plan.WireGuard {
	var told [2]bool
	if n := snap.Node(a.node).Value; n != nil && (w.Enabled || w.Enabled6) {
		keys := a.wish().keys
		is := func(says, kind string) bool { return says != "" && says == keys[kind] }
		told = [2]bool{is(n.Status.WireguardPublicKey, ipam.TunnelWireGuard), is(n.Status.WireguardPublicKeyV6, ipam.TunnelWireGuard6)}
	}
	steps := a.onset.stages([2]bool{w.Enabled, w.Enabled6}, told)
	w.Onset, w.Onset6 = steps[0], steps[1]
	return w
}
