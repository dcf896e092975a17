package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/fault"
	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/pkg/api"
)

// passed is a file on the victim: beside it stands one with ".reached" once a program has passed the point that is broken.
const passed = "/run/fault-passed"

// refreshed is more than the two seconds after which the suite's agents look for what no event tells.
const refreshed = 6 * time.Second

// agentsDie are kill -9 of the agents that chats lead by.
func (s *suite) agentsDie() (out []breakage) {
	for _, n := range nodesOf(s.t, s.lab) {
		out = append(out, breakage{
			name: "agent of " + n.Name + ": killed", lasts: heldFor,
			begin: func() {
				if err := s.lab.KillAgent(s.t.Context(), n.Name); err != nil {
					s.t.Fatal(err)
				}
			},
			end: func() { s.startAgent(n.Name) },
		})
	}
	return out
}

func (s *suite) startAgent(node string) {
	s.t.Helper()
	if err := s.lab.StartAgent(s.t.Context(), node); err != nil {
		s.t.Fatal(err)
	}
}

// breaks has what becomes of the victim's programs at a point written down, so that it is seen that one passed.
func (s *suite) breaks(what string, points ...fault.Point) {
	s.t.Helper()
	var orders []string
	for _, p := range points {
		name := fault.Name(p)
		if p == fault.PluginUndoUnlinked { // an ADD has to fail first
			orders = append(orders, fault.Name(fault.PluginAddConfigured)+"=error")
		}
		orders = append(orders, name+"=pause:"+passed, name+"="+what)
	}
	err := s.lab.Within(suiteVictim, func() error {
		err := os.Remove(passed + ".reached")
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return errors.Join(err, os.WriteFile(passed, nil, 0o600))
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.before = s.complaints()
	order(s.t, s.lab, suiteVictim, strings.Join(orders, ","))
}

// complaints counts how often the victim's agent has said what the kernel answers where it is made to fail.
func (s *suite) complaints() int {
	s.t.Helper()
	return strings.Count(agentLog(s.t, s.lab, suiteVictim), unix.EBUSY.Error())
}

// mended takes the orders back, and starts the agent again if it is dead.
func (s *suite) mended() {
	s.t.Helper()
	order(s.t, s.lab, suiteVictim, "")
	s.mode6("Always")
	if isDead(s.t, s.lab, suiteVictim) {
		s.startAgent(suiteVictim)
	}
	patiently(s.t, func() error { return s.guest.del(s.guest.at) })
}

func (s *suite) wasPassed() bool {
	err := s.lab.Within(suiteVictim, func() error {
		_, err := os.Stat(passed + ".reached")
		return err
	})
	return err == nil
}

// cutAt kills whatever program of the victim passes the point, until one has.
func (s *suite) cutAt(p fault.Point) {
	s.t.Helper()
	s.endures(breakage{
		name:  "killed at " + fault.Name(p),
		begin: func() { s.breaks("kill", p); s.provokes(p) },
		end:   s.mended,
	})
}

// failsAt has the kernel, as the victim's agent sees it, answer with an error at a point. The agent has to live, and to end right by itself.
func (s *suite) failsAt(p fault.Point) {
	s.t.Helper()
	s.endures(breakage{
		name:  "EBUSY at " + fault.Name(p),
		begin: func() { s.breaks("error:EBUSY", p); s.provokes(p) },
		end:   s.livedThrough,
	})
}

// kernelFailsEverywhere is failsAt for all points of an apply at once.
func (s *suite) kernelFailsEverywhere() breakage {
	return breakage{
		name: "EBUSY at every point of an apply", lasts: heldFor,
		begin: func() { s.breaks("error:EBUSY", applyPoints()...); s.provokes(fault.ApplyBegun) },
		end:   s.livedThrough,
	}
}

func (s *suite) livedThrough() {
	s.t.Helper()
	if isDead(s.t, s.lab, suiteVictim) {
		s.t.Error("the agent died of an error of the kernel")
	}
	nettest.Eventually(s.t, func() error { // it says so at the end of the round
		if s.complaints() <= s.before {
			return errors.New("the agent did not say what the kernel answered")
		}
		return nil
	})
	s.mended()
}

// provokes has the victim's programs do all that they ever do, one thing after the other, until one has passed the point. The bustle goes on meanwhile. A point
// that nothing of this leads to fails the test.
func (s *suite) provokes(p fault.Point) {
	s.t.Helper()
	ways := []func(){
		func() { s.bustle.works(s.t, 3*heldFor) },
		s.collects,
		s.withoutAgent,
		s.spoils,
		func() { s.mode6("Never") },
		func() { s.mode6("Always") },
	}
	name := fault.Name(p)
	switch {
	case strings.HasPrefix(name, "apply."):
		ways = append(ways[3:], ways[0])
	case strings.HasPrefix(name, "module."):
		ways = ways[2:3]
	}
	for _, way := range ways {
		way()
		if s.reachesPoint() {
			return
		}
	}
	s.t.Errorf("nothing that the suite does leads by %s", name)
}

// reachesPoint waits for what was provoked: a refresh takes two seconds.
func (s *suite) reachesPoint() bool {
	return insistFor(refreshed, func() error {
		if !s.wasPassed() {
			return fmt.Errorf("not passed")
		}
		return nil
	}) == nil
}

// guest is a container on the victim, of a network of its own.
type guest struct {
	*runtime
	at container
}

func newGuest(t *testing.T, l *lab.Lab, bin string) *guest {
	t.Helper()
	r := newRuntime(t, l, suiteVictim, bin, "guests")
	warmUp(t, r)
	return &guest{r, r.container("guest", "guest")}
}

// collects has a runtime add a container and ask for what no longer lives. Either may be killed, and mended takes away what is left.
func (s *suite) collects() {
	_, _ = s.guest.add(s.guest.at)
	_ = s.guest.gc(nil)
}

// withoutAgent has pods come and go by the module, while there is no agent. The next one may be killed, and mended starts another.
func (s *suite) withoutAgent() {
	if err := s.lab.KillAgent(s.t.Context(), suiteVictim); err != nil {
		s.t.Fatal(err)
	}
	s.bustle.works(s.t, 3*heldFor)
	_ = s.lab.StartAgent(s.t.Context(), suiteVictim)
}

// spoils damages the victim's kernel, with its agent stopped so long that it does not mend one thing while another is being damaged.
func (s *suite) spoils() {
	s.t.Helper()
	s.bustle.still(s.t, false, func() {
		if isDead(s.t, s.lab, suiteVictim) {
			return // it has passed
		}
		at := slices.IndexFunc(nodesOf(s.t, s.lab), func(n lab.Node) bool { return n.Name == suiteVictim })
		pid := nodesOf(s.t, s.lab)[at].Agent.PID
		if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
			s.t.Fatal(err)
		}
		spoil(s.t, s.lab, suiteVictim)
		if err := unix.Kill(pid, unix.SIGCONT); err != nil {
			s.t.Fatal(err)
		}
	})
}

// mode6 is the mode of the IPv6 pool: chats are IPv4's.
func (s *suite) mode6(mode string) {
	s.t.Helper()
	for key, value := range values(s.t, s.lab, api.ResourcesRoot+"ippools/default-ipv6-ippool") {
		for _, other := range []string{"Never", "Always"} {
			value = strings.Replace(value, `"vxlanMode":"`+other+`"`, `"vxlanMode":"`+mode+`"`, 1)
		}
		put(s.t, s.lab, key, value)
	}
}
