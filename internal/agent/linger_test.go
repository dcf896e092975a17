package agent

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/muslin-cni/muslin/internal/config"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/plan"
)

func TestEncapsulationReceivesOnForAWhileAfterTheLastPool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLinger(lingerTime, time.Now, kernel.Host{})
		both, ipip := plan.Modes{IPIP: true, VXLAN: true}, plan.Modes{IPIP: true}
		if l.keep() != (plan.Modes{}) {
			t.Errorf("keeps %+v at first", l.keep())
		}
		l.saw(both)
		if l.keep() != both || l.left() != (plan.Modes{}) {
			t.Errorf("in use: keeps %+v, left %+v", l.keep(), l.left())
		}
		time.Sleep(time.Hour)
		if l.keep() != both { // the round that finds a pool gone keeps what the last one used
			t.Errorf("after an hour of use: keeps %+v", l.keep())
		}
		l.saw(ipip)
		if l.keep() != both || l.left() != (plan.Modes{VXLAN: true}) {
			t.Errorf("just left: keeps %+v, left %+v", l.keep(), l.left())
		}
		time.Sleep(lingerTime / 2)
		l.saw(ipip) // a round for another reason does not put it off
		<-l.over()
		if l.keep() != ipip || l.left() != (plan.Modes{}) {
			t.Errorf("when the timer fires: keeps %+v, left %+v", l.keep(), l.left())
		}
		if l.saw(ipip); l.over() != nil {
			t.Error("a timer runs though nothing is left")
		}
	})
}

func TestTimeThatEndsWithinARoundWakesTheNextOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, length := range []time.Duration{lingerTime, 0} {
			l := newLinger(length, time.Now, kernel.Host{})
			l.saw(plan.Modes{VXLAN: true})
			l.keep()
			l.saw(plan.Modes{})
			time.Sleep(max(length-time.Second, 0))
			if length > 0 && !l.keep().VXLAN {
				t.Error("the encapsulation goes before its time is over")
			}
			time.Sleep(2 * time.Second) // the round takes as long
			l.saw(plan.Modes{})
			if l.over() == nil {
				t.Fatalf("%v: nothing wakes the round that is to take the encapsulation away", length)
			}
			<-l.over()
			if l.keep() != (plan.Modes{}) {
				t.Errorf("%v: keeps %+v when the timer has fired", length, l.keep())
			}
			if l.saw(plan.Modes{}); l.over() != nil {
				t.Errorf("%v: a timer runs though nothing is left", length)
			}
		}
	})
}

func TestBeginningThatEndsWithinARoundWakesTheNextOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLinger(lingerTime, time.Now, kernel.Host{})
		l.ipipBegun()
		l.saw(plan.Modes{IPIP: true})
		time.Sleep(lingerTime - time.Second)
		if !l.ipipBegun() {
			t.Error("the beginning is over before its time")
		}
		time.Sleep(2 * time.Second)
		if l.saw(plan.Modes{IPIP: true}); l.over() == nil {
			t.Fatal("nothing wakes the round that is to go by the end of the beginning")
		}
		<-l.over()
		if l.ipipBegun() {
			t.Error("it is the beginning still")
		}
		if l.saw(plan.Modes{IPIP: true}); l.over() != nil {
			t.Error("a timer runs though nothing is awaited")
		}
	})
}

func TestIPIPHasBegunUntilEveryNodeMustKnow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			time time.Duration
			want bool
		}{{lingerTime, true}, {0, false}} {
			l := newLinger(c.time, time.Now, kernel.Host{Links: map[string]kernel.HostLink{kernel.IPIPDevice: {Index: 2, Up: true}}})
			for range 2 { // once it is asked for at the start, and once anew
				if l.ipipBegun() != c.want { // which holds in the round that first finds it asked for
					t.Errorf("%v: begun %v before it is asked for", c.time, !c.want)
				}
				l.saw(plan.Modes{IPIP: true})
				time.Sleep(c.time / 2)
				if l.saw(plan.Modes{IPIP: true, VXLAN: true}); l.ipipBegun() != c.want || (l.over() != nil) != c.want {
					t.Errorf("%v: begun %v, timer %v half way", c.time, !c.want, l.over())
				}
				if c.want {
					<-l.over()
				}
				if l.saw(plan.Modes{IPIP: true}); l.ipipBegun() {
					t.Errorf("%v: begun still", c.time)
				}
				l.saw(plan.Modes{})
			}
		}
	})
}

func TestReturningToAnEncapsulationEndsItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLinger(lingerTime, time.Now, kernel.Host{})
		l.saw(plan.Modes{VXLAN6: true})
		l.saw(plan.Modes{})
		l.saw(plan.Modes{VXLAN6: true})
		if l.over() != nil || l.left() != (plan.Modes{}) {
			t.Errorf("timer %v, left %+v", l.over(), l.left())
		}
		time.Sleep(2 * lingerTime)
		if l.saw(plan.Modes{}); l.left() != (plan.Modes{VXLAN6: true}) {
			t.Errorf("left %+v: its time is not counted from the second leave", l.left())
		}
	})
}

func TestAgentThatStartsKeepsTheReceiversThatItFinds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := kernel.Host{Links: map[string]kernel.HostLink{
			kernel.IPIPDevice: {Index: 2}, kernel.VXLANDevice: {Index: 3, Up: true}, "eth0": {Index: 4, Up: true},
		}}
		l := newLinger(lingerTime, time.Now, h)
		if want := (plan.Modes{VXLAN: true}); l.keep() != want || l.left() != want {
			t.Errorf("keeps %+v, left %+v, want %+v: tunl0 is down", l.keep(), l.left(), want)
		}
		l.saw(plan.Modes{})
		<-l.over()
		if l.keep() != (plan.Modes{}) {
			t.Errorf("keeps %+v in the end", l.keep())
		}
	})
}

func TestLingerTimeIsReadOrRefused(t *testing.T) {
	for _, c := range []struct {
		text string
		want time.Duration
		ok   bool
	}{{"", lingerTime, true}, {"0", 0, true}, {"90s", 90 * time.Second, true}, {"90", 0, false}, {"-1s", 0, false}} {
		got, err := lingerFrom(config.Env(func(string) string { return c.text }))
		if got != c.want || (err == nil) != c.ok {
			t.Errorf("%q: %v, %v", c.text, got, err)
		}
	}
}

func TestWireGuardLingersAsTunnelsDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := kernel.Host{Links: map[string]kernel.HostLink{kernel.WireGuard6Device: {Index: 5, Up: true}}}
		l := newLinger(lingerTime, time.Now, host)
		if want := (plan.Modes{WireGuard6: true}); l.keep() != want || l.left() != want {
			t.Errorf("of an agent before: keeps %+v, left %+v", l.keep(), l.left())
		}
		both := plan.Modes{WireGuard: true, WireGuard6: true}
		l.saw(both)
		if l.keep() != both || l.left() != (plan.Modes{}) {
			t.Errorf("in use: keeps %+v, left %+v", l.keep(), l.left())
		}
		l.saw(plan.Modes{WireGuard6: true})
		if want := (plan.Modes{WireGuard: true}); l.keep() != both || l.left() != want {
			t.Errorf("just left: keeps %+v, left %+v", l.keep(), l.left())
		}
		<-l.over()
		if want := (plan.Modes{WireGuard6: true}); l.keep() != want {
			t.Errorf("when the time is over: keeps %+v", l.keep())
		}
	})
}
