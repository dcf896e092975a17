package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
)

const (
	handsPerNode = 2 // adding and removing pods at the same time
	podsPerHand  = 5 // at most
	breath       = 30 * time.Millisecond
)

// bustle adds pods and removes them, on every node, as the numbers of a seed say, until it is stopped. As a runtime does, it removes what an ADD or a DEL
// that failed may have left, until that succeeds.
type bustle struct {
	lab   *lab.Lab
	hands []*hand
	group errgroup.Group
	stop  context.CancelFunc

	work sync.RWMutex // each command is read-locked: who writes has the bustle stand still

	mu    sync.Mutex
	tally tally
}

// tally is how many commands a bustle has given, and how many of them have failed.
type tally struct{ adds, dels, failed int }

func (n tally) done() int { return n.adds + n.dels }

func (n tally) plus(o tally) tally {
	return tally{n.adds + o.adds, n.dels + o.dels, n.failed + o.failed}
}

func (n tally) less(o tally) tally {
	return tally{n.adds - o.adds, n.dels - o.dels, n.failed - o.failed}
}

// hand is what adds and removes the same pods of a node, one after the other.
type hand struct {
	name, node string
	numbers    *rand.Rand
	made       int
	pods       []string // that are there
	doubtful   []string // that may be left in part
}

func startBustle(t *testing.T, l *lab.Lab, seed uint64) *bustle {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	c := &bustle{lab: l, stop: stop}
	for _, n := range nodesOf(t, l) {
		for i := range handsPerNode {
			h := &hand{name: fmt.Sprintf("bustle-%s-%d", n.Name, i), node: n.Name}
			h.numbers = rand.New(rand.NewPCG(seed, uint64(len(c.hands))))
			c.hands = append(c.hands, h)
			c.group.Go(func() error { c.busy(ctx, h); return nil })
		}
	}
	t.Cleanup(c.finish)
	return c
}

// finish ends the bustle, whose pods stay. Twice is no harm.
func (c *bustle) finish() {
	c.stop()
	_ = c.group.Wait() // no hand fails: what commands do is counted
}

// busy is the work of one hand. It pauses after each command, and longer after one that failed, as runtimes do.
func (c *bustle) busy(ctx context.Context, h *hand) {
	for ctx.Err() == nil {
		c.work.RLock()
		given, err := h.next(c.lab)
		c.work.RUnlock()
		pause := breath
		if err != nil {
			given.failed = given.done()
			pause *= 5
		}
		c.mu.Lock()
		c.tally = c.tally.plus(given)
		c.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// next gives one command, or none where nothing is left of what was in doubt.
func (h *hand) next(l *lab.Lab) (given tally, err error) {
	switch {
	case len(h.doubtful) > 0:
		return h.clear(l)
	case len(h.pods) == 0, len(h.pods) < podsPerHand && h.numbers.IntN(2) == 0:
		h.made++
		name := fmt.Sprintf("%s-%d", h.name, h.made)
		if _, err := l.AddPod(context.Background(), lab.PodSpec{Name: name, Node: h.node}); err != nil {
			h.doubtful = append(h.doubtful, name)
			return tally{adds: 1}, err
		}
		h.pods = append(h.pods, name)
		return tally{adds: 1}, nil
	default:
		i := h.numbers.IntN(len(h.pods))
		name := h.pods[i]
		h.pods = slices.Delete(h.pods, i, i+1)
		if err := l.RemovePod(context.Background(), name); err != nil {
			h.doubtful = append(h.doubtful, name)
			return tally{dels: 1}, err
		}
		return tally{dels: 1}, nil
	}
}

// clear removes what the first doubtful pod has left, if the lab still knows it.
func (h *hand) clear(l *lab.Lab) (given tally, err error) {
	known, err := knows(l, h.doubtful[0])
	if known {
		given.dels, err = 1, l.RemovePod(context.Background(), h.doubtful[0])
	}
	if err == nil {
		h.doubtful = h.doubtful[1:]
	}
	return given, err
}

// forget removes what a pod whose ADD or DEL has failed may have left, if the lab still knows it.
func forget(l *lab.Lab, name string) error {
	known, err := knows(l, name)
	if !known {
		return err
	}
	return l.RemovePod(context.Background(), name)
}

func knows(l *lab.Lab, name string) (bool, error) {
	pods, err := l.Pods()
	return slices.ContainsFunc(pods, func(p lab.Pod) bool { return p.Name == name }), err
}

// pods counts them by node. Only for who has the bustle stand still.
func (c *bustle) pods() map[string]int {
	out := map[string]int{}
	for _, h := range c.hands {
		out[h.node] += len(h.pods)
	}
	return out
}

func (c *bustle) count() tally {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.tally
}

// works waits until the bustle has given so many commands more, whatever becomes of them.
func (c *bustle) works(t *testing.T, commands int) {
	t.Helper()
	begun := c.count()
	patiently(t, func() error {
		if now := c.count(); now.less(begun).done() < commands {
			return fmt.Errorf("the bustle gave %d of %d commands", now.less(begun).done(), commands)
		}
		return nil
	})
}

// still calls fn while no command is under way, and with nothing left in doubt if tidy.
func (c *bustle) still(t *testing.T, tidy bool, fn func()) {
	t.Helper()
	c.work.Lock()
	defer c.work.Unlock()
	if tidy {
		for _, h := range c.hands {
			patiently(t, func() error {
				for len(h.doubtful) > 0 {
					if _, err := h.clear(c.lab); err != nil {
						return err
					}
				}
				return nil
			})
		}
	}
	fn()
}

// patiently is nettest.Eventually for what takes as long as a fault's commands may: an ADD is given a minute and a half.
func patiently(t *testing.T, f func() error) {
	t.Helper()
	if err := insist(f); err != nil {
		t.Fatal(err)
	}
}

// insist is patiently for any goroutine: it returns f's last error.
func insist(f func() error) error { return insistFor(3*time.Minute, f) }

func insistFor(limit time.Duration, f func() error) error {
	limit = nettest.Patience(limit)
	for deadline := time.Now().Add(limit); ; <-time.After(20 * time.Millisecond) {
		err := f()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("still after %v: %w", limit, err)
		}
	}
}
