package e2e

import (
	"bytes"
	"flag"
	"fmt"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/muslin-cni/muslin/internal/fault"
	"github.com/muslin-cni/muslin/internal/lab"
)

var (
	suiteOperations = flag.Int("operations", 0, "how many pods are to come or go while every part of a cluster breaks; 0: the short form, which leaves out what other tests have")
	suiteSeed       = flag.Uint64("faultseed", 0, "of what comes and goes; 0: by the clock, and printed")
)

const (
	suiteMembers = 3
	suiteQuota   = 48 << 20
	suiteVictim  = "node-3" // whose agent and kernel are broken: no chat leads there
	heldFor      = 12       // commands of the bustle while a fault lasts
)

// suite is a cluster on real parts in which one part after the other breaks while pods come and go on every node.
type suite struct {
	t      *testing.T
	lab    *lab.Lab
	bin    string
	etcd   *clientv3.Client
	bustle *bustle
	chats  []*chat
	books  books
	guest  *guest
	costs  []cost

	before int // the complaints that the victim had made of its kernel before the fault at hand
}

// breakage is a fault that begins, lasts while the bustle gives some commands, and ends.
type breakage struct {
	name       string
	begin, end func()
	lasts      int // commands; 0: none
}

// cost is what a breakage has cost.
type cost struct {
	name     string
	bustle   tally
	recovery time.Duration // from its end until every node takes pods and every other one reaches them
	silence
}

// partsBreakWhilePodsComeAndGo is the fault suite. After each fault every address has one owner, nothing is leaked, every route leads somewhere, and what two
// pods said to each other all the while, by nodes that the fault does not reach, has gone on without a loss.
func partsBreakWhilePodsComeAndGo(t *testing.T, bin string) {
	s := newSuite(t, bin)
	defer s.report()
	for _, b := range s.etcdBreaks() {
		s.endures(b)
	}
	s.endures(s.kernelFailsEverywhere())
	if *suiteOperations == 0 {
		return
	}
	for _, b := range s.agentsDie() {
		s.endures(b)
	}
	for _, p := range fault.Points() {
		s.cutAt(p)
	}
	for _, p := range applyPoints() {
		s.failsAt(p)
	}
	if left := *suiteOperations - s.bustle.count().done; left > 0 {
		s.endures(breakage{name: "nothing", begin: func() {}, end: func() {}, lasts: left})
	}
}

func newSuite(t *testing.T, bin string) *suite {
	t.Helper()
	seed := *suiteSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("pods come and go by -faultseed %d", seed)
	t.Setenv(fault.Variable, "@"+agentOrders) // for the plugins, which are started from here
	l := upWith(t, bin, func(o *lab.Options) {
		o.DualStack, o.Members, o.EtcdQuota = true, suiteMembers, suiteQuota
		// What no event tells is found soon, and what is not wanted any more goes at once.
		o.AgentEnv = append(withRules(), fault.Variable+"=@"+agentOrders, "MUSLIN_LINGER=0s", "FELIX_ROUTEREFRESHINTERVAL=2", "FELIX_IPTABLESREFRESHINTERVAL=2", "FELIX_IPSETSREFRESHINTERVAL=2")
	})
	allWell(t, l)
	s := &suite{t: t, lab: l, bin: bin, etcd: dialEtcd(t, l, etcdEndpoints()...)}
	withoutWaiting(t, l, suiteVictim)
	s.guest = newGuest(t, l, bin)
	s.books = openBooks(t, l)
	for from, to := range map[string]string{"a1": "b1", "b2": "a1"} {
		s.chats = append(s.chats, startChat(t, l, from, to, pod(t, l, to).Addr, 5*time.Millisecond))
	}
	s.bustle = startBustle(t, l, seed)
	return s
}

// endures has a fault come and go as a test of its own, and holds the cluster to what it must be afterwards.
func (s *suite) endures(b breakage) {
	all := s.t
	defer func() { s.t = all }()
	all.Run(b.name, func(t *testing.T) {
		s.t = t
		s.endure(b)
	})
}

func (s *suite) endure(b breakage) {
	s.t.Helper()
	before := s.bustle.count()
	for _, c := range s.chats {
		c.mark()
	}
	b.begin()
	if b.lasts > 0 {
		s.bustle.works(s.t, b.lasts)
	}
	b.end()
	ended := time.Now()
	serves(s.t, s.lab)
	out := cost{name: b.name, recovery: time.Since(ended)}
	for _, c := range s.chats {
		one := c.goesOn(s.t)
		out.gap, out.lost = max(out.gap, one.gap), out.lost+one.lost
		if one.lost > 0 {
			s.t.Errorf("%s: %s lost %d datagrams, the longest gap was %v", b.name, c.name, one.lost, one.gap)
		}
	}
	now := s.bustle.count()
	out.bustle = tally{now.done - before.done, now.failed - before.failed}
	s.costs = append(s.costs, out)
	s.bustle.still(s.t, true, func() { s.books.balance(s.t, s.lab, s.bustle.pods()) })
}

// report prints what each fault has cost.
func (s *suite) report() {
	var text bytes.Buffer
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "recovery\tcommands\tof them failed\tlongest gap\tlost\t  fault")
	for _, c := range s.costs {
		fmt.Fprintf(w, "%v\t%d\t%d\t%v\t%d\t  %s\n", c.recovery.Round(time.Millisecond), c.bustle.done, c.bustle.failed, c.gap.Round(time.Millisecond), c.lost, c.name)
	}
	_ = w.Flush() // into memory
	all := s.bustle.count()
	s.t.Logf("%d pods came or went, %d commands failed\n%s", all.done, all.failed, strings.TrimRight(text.String(), "\n"))
}
