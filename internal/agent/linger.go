package agent

import (
	"fmt"
	"time"

	"github.com/muslin-cni/muslin/internal/config"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/plan"
)

// lingerTime is for how long a node receives by an encapsulation that no pool asks for any more: device, tunnel address and accept
// rules stay. Nodes change over when the change of a pool reaches them, and until then they send by the old mode. That takes
// milliseconds where all is well. A minute covers an agent that is just being restarted, and one that has lost its connection to
// etcd: it tries again every few seconds at worst. What stays so long does little harm: only nodes of the cluster are let in.
const lingerTime = time.Minute

// lingerVar sets lingerTime in the environment, as a duration such as 90s. 0 is no time at all.
const lingerVar = "MUSLIN_LINGER"

// linger remembers which encapsulations were in use, and since when they are. It is for one goroutine.
//
// An agent that starts has forgotten. It goes by the devices that it finds: each may have been in use until just now, so it counts as
// left at the start. A pool that asks for it makes that good at once, and what nobody asks for goes when the time is over. Whatever pools ask
// for then may have begun just now.
type linger struct {
	time  time.Duration
	now   func() time.Time // with a monotonic clock
	modes [modes]lingering // in the order of plan.Modes
	begun time.Time        // until when other nodes may not know that IP-in-IP is asked for
	kept  plan.Modes       // as keep said last
	early bool             // as ipipBegun said last
	timer *time.Timer      // fires when a time is over; nil: none runs
}

// modes is how many encapsulations there are.
const modes = 5

// each is a value for each encapsulation, in the order of plan.Modes.
func each(m plan.Modes) [modes]bool {
	return [modes]bool{m.IPIP, m.VXLAN, m.VXLAN6, m.WireGuard, m.WireGuard6}
}

// which is what each takes apart.
func (l *linger) which(is func(lingering) bool) plan.Modes {
	var b [modes]bool
	for i, m := range l.modes {
		b[i] = is(m)
	}
	return plan.Modes{IPIP: b[0], VXLAN: b[1], VXLAN6: b[2], WireGuard: b[3], WireGuard6: b[4]}
}

// lingering is what is known of one encapsulation.
type lingering struct {
	asked bool      // in the last round
	until time.Time // it stays, if it is not asked for; zero: it was not in use
}

// newLinger begins with the devices that the host has.
func newLinger(length time.Duration, now func() time.Time, h kernel.Host) *linger {
	l := &linger{time: length, now: now}
	for i, name := range [modes]string{kernel.IPIPDevice, kernel.VXLANDevice, kernel.VXLAN6Device, kernel.WireGuardDevice, kernel.WireGuard6Device} {
		if _, up := h.Dev(name); up {
			l.modes[i].until = now().Add(length)
		}
	}
	return l
}

// lingerFrom reads the time from the environment.
func lingerFrom(env config.Env) (time.Duration, error) {
	text := env(lingerVar)
	if text == "" {
		return lingerTime, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%s=%s: want a duration such as 90s", lingerVar, text)
	}
	return d, nil
}

// keep says which encapsulations go on receiving: those of the last round, whether or not a pool still asks for them, and those that
// were left a short while ago.
func (l *linger) keep() plan.Modes {
	now := l.now()
	l.kept = l.which(func(m lingering) bool { return m.asked || now.Before(m.until) })
	return l.kept
}

// left says which encapsulations go on receiving though nobody asks for them.
func (l *linger) left() plan.Modes {
	now := l.now()
	return l.which(func(m lingering) bool { return !m.asked && now.Before(m.until) })
}

// ipipBegun tells whether other nodes may not know yet that pools ask for IP-in-IP: for as long as after the end of an encapsulation nodes are let
// in by it. The round in which a pool asks for it first is part of that.
func (l *linger) ipipBegun() bool {
	l.early = l.time > 0 && (!l.modes[0].asked || l.now().Before(l.begun))
	return l.early
}

// saw takes note of what pools ask for now. What this round has gone by wakes the loop when its time is over, also where that has been while the round went on.
func (l *linger) saw(m plan.Modes) {
	now := l.now()
	var next time.Duration
	soon := func(at time.Time, goneBy bool) {
		left := at.Sub(now)
		if goneBy {
			left = max(left, time.Nanosecond)
		}
		if left > 0 && (next == 0 || left < next) {
			next = left
		}
	}
	kept := each(l.kept)
	if m.IPIP && !l.modes[0].asked {
		l.begun = now.Add(l.time)
	}
	for i, asked := range each(m) {
		x := &l.modes[i]
		if x.asked && !asked {
			x.until = now.Add(l.time)
		}
		if x.asked = asked; !asked {
			soon(x.until, kept[i])
		}
	}
	if m.IPIP {
		soon(l.begun, l.early)
	}
	l.wake(next)
}

// wake sets the timer, or stops it if there is nothing to wait for.
func (l *linger) wake(after time.Duration) {
	if l.timer != nil {
		l.timer.Stop()
		l.timer = nil
	}
	if after > 0 {
		l.timer = time.NewTimer(after)
	}
}

// over receives when an encapsulation has been kept long enough, or is known to all. It is another channel after every round.
func (l *linger) over() <-chan time.Time {
	if l.timer == nil {
		return nil
	}
	return l.timer.C
}
