package ruleset

import (
	"strings"
	"testing"

	"github.com/muslin-cni/muslin/internal/nftable"
)

func TestEveryReasonIsExplained(t *testing.T) {
	for _, reason := range reasons {
		told, ok := Counter("r-" + reason)
		if !ok || told.Reason != reason || told.Why() == reason {
			t.Errorf("the counter of %s tells %+v: %q", reason, told, told.Why())
		}
	}
}

func TestWhatTheTableReportsIsUnderstood(t *testing.T) {
	denied, logged := Told{Rule: "0123456789abcdef"}, Told{Rule: "0123456789abcdef", Logged: true}
	for _, c := range []struct {
		prefix string
		want   Told
		ok     bool
	}{
		{"D:0123456789abcdef", denied, true},
		{"L:0123456789abcdef", logged, true},
		{"S:spoof", Told{Reason: reasonSpoof}, true},
		{"S:", Told{}, false},
		{"someone else's", Told{}, false},
		{"", Told{}, false},
	} {
		if got, ok := Prefix(c.prefix); got != c.want || ok != c.ok {
			t.Errorf("%q is read as %+v, %v, want %+v, %v", c.prefix, got, ok, c.want, c.ok)
		}
	}
	if got, ok := Counter("r-0123456789abcdef"); !ok || got != denied {
		t.Errorf("a rule's counter is read as %+v, %v", got, ok)
	}
	for _, other := range []string{"r-", "other"} {
		if got, ok := Counter(other); ok {
			t.Errorf("counter %s is read as %+v", other, got)
		}
	}
	// Whatever an empty table reports is a reason that can be read.
	l := New(Settings{Prefixes: []string{"cali"}, MarkMask: 0xffff0000, LogGroup: LogGroup})
	l.Take()
	seen := 0
	for name, c := range l.Table().Chains {
		for _, r := range c.Rules {
			for _, s := range r.Stmts {
				log, ok := s.(nftable.Log)
				if !ok {
					continue
				}
				seen++
				if told, ok := Prefix(log.Prefix); !ok || told.Reason != strings.TrimPrefix(name, "d-") {
					t.Errorf("chain %s reports %q, which is read as %+v, %v", name, log.Prefix, told, ok)
				}
			}
		}
	}
	if seen != len(reasons) {
		t.Errorf("%d reports, want %d", seen, len(reasons))
	}
}
