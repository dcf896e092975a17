package sim

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/nft"
	"github.com/muslin-cni/muslin/internal/nftable"
	"github.com/muslin-cni/muslin/internal/reconcile"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
)

var (
	seedFlag  = flag.Uint64("seed", 0, "of the one run of TestSeed; 0: it is skipped")
	nodesFlag = flag.Int("nodes", 40, "of that run")
	opsFlag   = flag.Int("ops", 20000, "of that run")
	logFlag   = flag.String("log", "", "file for all that happens in that run")
)

// run is a run as every test here and `make sim` make it, so that seed, nodes and operations are all that there is to say of it.
func run(seed uint64, nodes, ops int) Config {
	c := Config{Seed: seed, Nodes: nodes, Ops: ops, Feeds: 3, Rests: 4}
	if nodes > keepPlans {
		c.Rests = 2
	}
	return c
}

func (c Config) String() string {
	return fmt.Sprintf("SEED=%d NODES=%d OPS=%d", c.Seed, c.Nodes, c.Ops)
}

// play makes a run.
func play(t *testing.T, c Config) (out Outcome) {
	t.Helper()
	c.Dir = t.TempDir()
	synctest.Test(t, func(*testing.T) { out = Run(c) })
	return out
}

// holds fails the test unless all held, and says how to see it again.
func holds(t *testing.T, c Config, out Outcome) {
	t.Helper()
	if out.Err != nil {
		t.Fatalf("%v\n`make sim %v` shows it again. Before it (step, time, what happened):\n%s", out.Err, c, strings.Join(out.Trace, "\n"))
	}
	t.Logf("%v: %d operations in %d steps, %d commits (and %d conflicts), %v of the world's time, hash %x", c, out.Ops, out.Steps, out.Commits, out.Lost, out.Time, out.Hash)
}

// TestSeed makes the run that the flags name, for `make sim`.
func TestSeed(t *testing.T) {
	if *seedFlag == 0 {
		t.Skip("no -seed: this is for `make sim`")
	}
	c := run(*seedFlag, *nodesFlag, *opsFlag)
	if *logFlag != "" {
		f, err := os.Create(*logFlag)
		if err != nil {
			t.Fatal(err)
		}
		w := bufio.NewWriter(f)
		defer func() {
			if err := w.Flush(); err != nil {
				t.Error(err)
			}
			_ = f.Close()
		}()
		c.Log = func(line string) { _, _ = w.WriteString(line + "\n") }
	}
	t.Logf("%v", c)
	out := play(t, c)
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	t.Logf("%v, with %d MiB of memory", out.Seen, mem.Sys>>20)
	holds(t, c, out)
}

func TestNothingBreaksWhateverGoesWrong(t *testing.T) {
	seen, policies := map[string]int{}, 0
	for _, c := range []Config{run(101, 6, 3000), run(109, 40, 2500), run(103, 120, 1000)} {
		out := play(t, c)
		holds(t, c, out)
		for name, n := range out.Seen {
			seen[name] += n
		}
		policies += out.Policies
	}
	if policies == 0 {
		t.Error("no policy was ever written")
	}
	for _, o := range operations() {
		if seen[o.name] == 0 {
			t.Errorf("nothing was drawn of: %s", o.name)
		}
	}
}

func TestAThousandNodesComeToRest(t *testing.T) {
	c := run(104, 1000, 300)
	holds(t, c, play(t, c))
}

func TestSameSeedIsTheSameRun(t *testing.T) {
	c := run(105, 15, 4000)
	c.Feeds = 8
	first := twice(t, c, func() Spoil { return Spoil{} })
	holds(t, c, first)
	if other := play(t, run(106, 15, 100)); other.Hash == first.Hash {
		t.Error("another seed is the same run")
	}
}

// twice plays a run twice, the second time on one processor, and fails the test where that is another run, from the first line on that differs.
func twice(t *testing.T, c Config, spoil func() Spoil) Outcome {
	t.Helper()
	var logs [2][]string
	var outs [2]Outcome
	for i := range logs {
		c.Spoil, c.Log = spoil(), func(line string) { logs[i] = append(logs[i], line) }
		outs[i] = play(t, c)
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	}
	for i := range min(len(logs[0]), len(logs[1])) {
		if logs[0][i] != logs[1][i] {
			t.Errorf("%v: the seed is not the same run again: line %d is once %q and once %q, after\n%s", c, i, logs[0][i], logs[1][i], strings.Join(logs[0][max(0, i-10):i], "\n"))
			return outs[0]
		}
	}
	if outs[0].Hash != outs[1].Hash {
		t.Errorf("%v: the seed is not the same run again: it has %d lines, and %d", c, len(logs[0]), len(logs[1]))
	}
	return outs[0]
}

// goes is how many seeds in a row a spoilt world may need to be found out.
const goes = 60

// finds fails the test unless a spoilt world is found out, from the seed on that is given, by what is said, and by the same words when its seed is run again.
func finds(t *testing.T, c Config, spoil func() Spoil, what ...string) {
	t.Helper()
	found := func(out Outcome) bool {
		return out.Err != nil && slices.ContainsFunc(what, func(s string) bool { return strings.Contains(out.Err.Error(), s) })
	}
	for range goes {
		c.Spoil = spoil()
		if found(play(t, c)) {
			out := twice(t, c, spoil)
			if !found(out) {
				t.Errorf("%v: found at first, by %q, and then otherwise: %v", c, what, out.Err)
			}
			t.Logf("%v, after %d operations: %v\n%s", c, out.Ops, out.Err, strings.Join(out.Trace[max(0, len(out.Trace)-8):], "\n"))
			return
		}
		c.Seed++
	}
	t.Errorf("in %d runs up to seed %d nobody has noticed, by %q", goes, c.Seed, what)
}

func TestTransactionWithoutItsCompareIsFound(t *testing.T) {
	finds(t, run(107, 6, 4000), func() Spoil {
		return Spoil{Txn: func(r *pb.TxnRequest) {
			r.Compare = slices.DeleteFunc(r.Compare, func(c *pb.Compare) bool { return strings.HasPrefix(string(c.Key), api.BlocksRoot) })
		}}
	}, "is given to", "handle")
}

// TestCommitThatComesLateIsFound has DELs that find nothing leave alone what ADDs compare, so that one which comes behind them is carried out.
func TestCommitThatComesLateIsFound(t *testing.T) {
	finds(t, run(1001, 6, 4000), func() Spoil {
		return Spoil{Txn: func(r *pb.TxnRequest) {
			plans := slices.ContainsFunc(r.Compare, func(c *pb.Compare) bool { return string(c.Key) == ipam.ClusterKey() })
			r.Success = slices.DeleteFunc(r.Success, func(op *pb.RequestOp) bool {
				return plans && strings.HasPrefix(string(op.GetRequestPut().GetKey()), api.IdentitiesRoot)
			})
		}}
	}, "whose DEL has succeeded")
}

func TestLockThatIsNotComparedIsFound(t *testing.T) {
	finds(t, run(111, 6, 4000), func() Spoil {
		return Spoil{Txn: func(r *pb.TxnRequest) {
			r.Compare = slices.DeleteFunc(r.Compare, func(c *pb.Compare) bool { return string(c.Key) == ipam.ClusterKey() })
		}}
	}, "while the datastore is locked")
}

// TestControllersThatTrustTheirCacheAreFound has transactions not compare whose a node's name is, either: with that, what a cache gets wrong fails in etcd.
func TestControllersThatTrustTheirCacheAreFound(t *testing.T) {
	finds(t, run(1146, 6, 4000), func() Spoil {
		s := without(api.MuslinRoot, true)()
		s.Stale = true
		return s
	}, "the controllers delete", "of controllers: pod")
}

// without leaves the compares of keys with a prefix out of transactions; of keys that they write too only where always is true.
func without(prefix string, always bool) func() Spoil {
	return func() Spoil {
		return Spoil{Txn: func(r *pb.TxnRequest) {
			written := map[string]bool{}
			for _, op := range r.Success {
				written[string(op.GetRequestPut().GetKey())], written[string(op.GetRequestDeleteRange().GetKey())] = !always, !always
			}
			r.Compare = slices.DeleteFunc(r.Compare, func(c *pb.Compare) bool { return strings.HasPrefix(string(c.Key), prefix) && !written[string(c.Key)] })
		}}
	}
}

// Of these, the model and the simulation find both that they are missed; of blocks, the lock and the identity the tests above do.
func TestCompareOfNodeAffinityOrEndpointIsMissed(t *testing.T) {
	t.Run("node", func(t *testing.T) { finds(t, run(902, 6, 4000), without(api.NodeKey(""), false), "and node") })
	t.Run("affinity", func(t *testing.T) {
		finds(t, run(906, 6, 4000), without(api.HostsRoot, false), "no confirmed affinity")
	})
	t.Run("endpoint", func(t *testing.T) { finds(t, run(907, 6, 4000), without(endpointsRoot(), true), "lives with") })
}

// forgetful loses a route now and then, and says that it was written.
type forgetful struct {
	reconcile.Table[kernel.RouteKey, kernel.Route]
	count *int
}

func (f forgetful) Apply(ctx context.Context, changes []kernel.Change[kernel.RouteKey, kernel.Route]) error {
	kept := slices.DeleteFunc(slices.Clone(changes), func(c kernel.Change[kernel.RouteKey, kernel.Route]) bool {
		*f.count++
		return c.New != nil && *f.count%20 == 0
	})
	return f.Table.Apply(ctx, kept)
}

func TestTableThatLosesARouteIsFound(t *testing.T) {
	finds(t, run(108, 6, 2000), func() Spoil {
		return Spoil{Routes: func(right reconcile.Table[kernel.RouteKey, kernel.Route]) reconcile.Table[kernel.RouteKey, kernel.Route] {
			return forgetful{right, new(int)}
		}}
	}, "does not have in its kernel", "has taken its route", "without memory")
}

func TestRouteTakenFromALivingPodIsFound(t *testing.T) {
	finds(t, run(109, 6, 4000), func() Spoil {
		return Spoil{Routes: func(right reconcile.Table[kernel.RouteKey, kernel.Route]) reconcile.Table[kernel.RouteKey, kernel.Route] {
			return greedy{right, new(int)}
		}}
	}, "has taken its route")
}

// greedy takes away more than it is told to.
type greedy struct {
	reconcile.Table[kernel.RouteKey, kernel.Route]
	count *int
}

func (g greedy) Apply(ctx context.Context, changes []kernel.Change[kernel.RouteKey, kernel.Route]) error {
	if *g.count++; *g.count%10 == 0 {
		have, err := g.Table.List(ctx)
		if err != nil {
			return err
		}
		for _, key := range sortedRoutes(have) {
			if old := have[key]; old.Scope == kernel.LinkScope {
				changes = append(slices.Clone(changes), kernel.Change[kernel.RouteKey, kernel.Route]{Key: key, Old: &old})
			}
		}
	}
	return g.Table.Apply(ctx, changes)
}

// careless leaves elements of sets out of every tenth commit, and says that they were written.
type careless struct {
	nft.Rules
	count *int
}

func (c careless) Commit(ctx context.Context, table string, d nftable.Delta, gen uint32) error {
	if *c.count++; *c.count%10 == 0 {
		d.Elems = nil
	}
	return c.Rules.Commit(ctx, table, d, gen)
}

func TestPolicyThatIsNotWrittenIsFound(t *testing.T) {
	finds(t, run(112, 6, 4000), func() Spoil {
		return Spoil{Rules: func(right nft.Rules) nft.Rules { return careless{right, new(int)} }}
	}, "the table of policy differs", "does not lead to its policy")
}

func TestRouteBeforePolicyIsFound(t *testing.T) {
	finds(t, run(113, 6, 4000), func() Spoil { return Spoil{Hasty: true} }, "does not lead to its policy")
}
