package agent

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/rtnl"
)

func TestOthersRoutesAreProblemsAndNoFailures(t *testing.T) {
	theirs := &kernel.Failure[kernel.RouteKey]{Err: &rtnl.OccupiedError{Route: "192.0.2.0/24 via 10.0.0.1", There: "192.0.2.0/24 dev eth0"}}
	broken := errors.New("no buffer space available")
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
	} {
		problems, rest := occupied(c.err)
		if len(problems) != c.problems || (rest != nil) != c.fails || c.fails && !errors.Is(rest, broken) {
			t.Errorf("%s: problems %q, error %v", c.what, problems, rest)
		}
		for _, p := range problems {
			if !strings.Contains(p, "192.0.2.0/24 dev eth0") {
				t.Errorf("%s: the route in the way is not named: %s", c.what, p)
			}
		}
	}
}
