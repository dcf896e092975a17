package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/peering"
	"github.com/muslin-cni/muslin/internal/plan"
	"github.com/muslin-cni/muslin/internal/rtnl"
)

func TestRoutesThatCannotBeMadeAreProblemsAndNoFailures(t *testing.T) {
	theirs := &kernel.Failure[kernel.RouteKey]{Err: &rtnl.OccupiedError{Route: "192.0.2.0/24 via 10.0.0.1", There: "192.0.2.0/24 dev eth0"}}
	broken := errors.New("no buffer space available")
	key := kernel.RouteKey{Dst: netip.MustParsePrefix("203.0.113.0/24"), Metric: 1024}
	learned := &plan.Learned{Routes: []peering.KernelRoute{{Dst: key.Dst, Metric: key.Metric}}}
	odd := &kernel.Failure[kernel.RouteKey]{Key: key, Err: fmt.Errorf("add route: %w", unix.EINVAL)}
	own := &kernel.Failure[kernel.RouteKey]{Key: kernel.RouteKey{Dst: key.Dst}, Err: errors.Join(broken, unix.EINVAL)}
	for _, c := range []struct {
		what     string
		err      error
		problems int
		fails    bool
	}{
		{"nothing", nil, 0, false},
		{"one", theirs, 1, false},
		{"two in a table", errors.Join(theirs, theirs), 2, false},
		{"one beside a failure", errors.Join(broken, errors.Join(theirs, fmt.Errorf("add route: %w", broken))), 1, true},
		{"a failure", broken, 0, true},
		{"one that a peer has sent and the kernel does not take", errors.Join(errors.Join(odd)), 1, false},
		{"one of our own that the kernel does not take", errors.Join(own), 0, true},
	} {
		problems, rest := refused(c.err, learned)
		if len(problems) != c.problems || (rest != nil) != c.fails || c.fails && !errors.Is(rest, broken) {
			t.Errorf("%s: problems %q, error %v", c.what, problems, rest)
		}
		for _, p := range problems {
			if !strings.Contains(p, "192.0.2.0/24 dev eth0") && !strings.Contains(p, "peers have sent") {
				t.Errorf("%s: the route in the way is not named: %s", c.what, p)
			}
		}
	}
}
