package e2e

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/muslin-cni/muslin/internal/fault"
	"github.com/muslin-cni/muslin/internal/lab"
)

var (
	suiteOperations = flag.Int("operations", 0, "how many ADDs and DELs of pods are to be given at least while something of a cluster is broken; 0: the short form, which leaves out what other tests have")
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
	seed   uint64

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
	bustle   tally         // from its begin until the recovery
	recovery time.Duration // from when it begins to be mended until every node takes pods and every other one reaches them
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
	for _, p := range suitePoints() {
		s.cutAt(p)
	}
	for _, p := range applyPoints() {
		s.failsAt(p)
	}
	s.again()
}

// again repeats what takes no long time, at random, until pods have come or gone as often as is asked, all of them while something was broken.
func (s *suite) again() {
	numbers := rand.New(rand.NewPCG(s.seed, suiteMembers))
	for s.underFaults().done() < *suiteOperations {
		all := append(s.quickBreaks(), s.agentsDie()...)
		b := all[numbers.IntN(len(all))]
		b.lasts *= 5
		if !s.endures(b) {
			return
		}
	}
}

// underFaults are the commands that were given while something was broken.
func (s *suite) underFaults() (out tally) {
	for _, c := range s.costs {
		out = out.plus(c.bustle)
	}
	return out
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
	s := &suite{t: t, lab: l, bin: bin, seed: seed, etcd: dialEtcd(t, l, etcdEndpoints()...)}
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
func (s *suite) endures(b breakage) (ok bool) {
	all := s.t
	defer func() { s.t = all }()
	return all.Run(b.name, func(t *testing.T) {
		s.t = t
		s.endure(b)
	})
}

func (s *suite) endure(b breakage) {
	s.t.Helper()
	s.makeRoom()
	before := s.bustle.count()
	for _, c := range s.chats {
		c.mark()
	}
	b.begin()
	if b.lasts > 0 {
		s.bustle.works(s.t, b.lasts)
	}
	mending := time.Now()
	b.end()
	serves(s.t, s.lab)
	out := cost{name: b.name, recovery: time.Since(mending), bustle: s.bustle.count().less(before)}
	for _, c := range s.chats {
		one := c.goesOn(s.t)
		out.gap, out.lost = max(out.gap, one.gap), out.lost+one.lost
		if one.lost > 0 {
			s.t.Errorf("%s: %s lost %d datagrams, the longest gap was %v", b.name, c.name, one.lost, one.gap)
		}
	}
	s.costs = append(s.costs, out)
	s.bustle.still(s.t, true, func() { s.books.balance(s.t, s.lab, s.bustle.pods()) })
}

// report prints what each fault has cost, and that pods came and went as often as was asked.
func (s *suite) report() {
	byName := map[string][]cost{}
	var names []string
	for _, c := range s.costs {
		if byName[c.name] == nil {
			names = append(names, c.name)
		}
		byName[c.name] = append(byName[c.name], c)
	}
	var text bytes.Buffer
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "recovery\tlargest\ttimes\tADD\tDEL\tfailed\tlongest gap\tlost\t  fault")
	for _, name := range names {
		fmt.Fprintln(w, rowOf(name, byName[name]))
	}
	fmt.Fprintln(w, rowOf("all", s.costs))
	_ = w.Flush() // into memory
	n := s.underFaults()
	s.t.Logf("%d pods came and %d went while something was broken; %d of these commands failed\n%s", n.adds, n.dels, n.failed, strings.TrimRight(text.String(), "\n"))
	if n.done() < *suiteOperations {
		s.t.Errorf("these are %d commands, %d are asked for", n.done(), *suiteOperations)
	}
}

// rowOf sums up what a fault has cost each time: of recoveries the median and the largest, of gaps the largest.
func rowOf(name string, costs []cost) string {
	var took []time.Duration
	var n tally
	var worst silence
	for _, c := range costs {
		took = append(took, c.recovery)
		n = n.plus(c.bustle)
		worst.gap, worst.lost = max(worst.gap, c.gap), worst.lost+c.lost
	}
	slices.Sort(took)
	median, largest := time.Duration(0), time.Duration(0)
	if len(took) > 0 {
		median, largest = took[len(took)/2], took[len(took)-1]
	}
	return fmt.Sprintf("%v\t%v\t%d\t%d\t%d\t%d\t%v\t%d\t  %s", median.Round(time.Millisecond), largest.Round(time.Millisecond), len(took), n.adds, n.dels, n.failed, worst.gap.Round(time.Millisecond), worst.lost, name)
}
