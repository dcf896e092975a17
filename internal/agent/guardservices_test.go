package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/muslin-cni/muslin/internal/kube"
	"github.com/muslin-cni/muslin/internal/policy"
	"github.com/muslin-cni/muslin/pkg/store"
)

// catalogue is a locator that says what it is told to.
type catalogue struct {
	known kube.Knowledge
	at    map[string][]policy.PortMember
	asked []string
}

func (p *catalogue) Members(namespace, name string) ([]policy.PortMember, kube.Knowledge) {
	p.asked = append(p.asked, namespace+"/"+name)
	return p.at[namespace+"/"+name], p.known
}

func member(addr string) []policy.PortMember {
	return []policy.PortMember{{Addr: netip.MustParseAddr(addr), Protocol: 6, Port: 80}}
}

// naming stores a policy that lets workloads send to services, or deletes it if it names none.
func (g *guarded) naming(services ...string) {
	g.rev++
	kv := store.KV{Key: "/calico/resources/v3/projectcalico.org/networkpolicies/default/default.out", Rev: g.rev}
	var rules []string
	for _, s := range services {
		rules = append(rules, fmt.Sprintf(`{"action":"Allow","source":{},"destination":{"services":{"name":%q}}}`, s))
	}
	if len(rules) > 0 {
		kv.Value = fmt.Appendf(nil, `{"kind":"NetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"default.out","namespace":"default"},
			"spec":{"types":["Egress"],"egress":[%s]}}`, strings.Join(rules, ","))
	}
	g.feed.Commit([]store.KV{kv})
}

// held are the members of services in the model that is laid out.
func (g *guarded) held() string {
	var out []string
	for _, s := range g.engine.Model().Sets {
		if strings.HasPrefix(s.Text, "service ") {
			out = append(out, fmt.Sprint(s.Text, s.Ports))
		}
	}
	slices.Sort(out)
	return strings.Join(out, "; ")
}

func TestRulesThatNameServicesFollowWhereTheyAre(t *testing.T) {
	g := newGuarded(t)
	p := &catalogue{known: kube.Coming, at: map[string][]policy.PortMember{"default/web": member("10.0.0.9"), "default/db": member("10.0.0.8")}}
	g.services.from = p
	g.believe()
	g.workload("a", "c1", "10.0.0.1")
	if _, err := g.round(); err != nil || len(p.asked) != 0 {
		t.Errorf("asked for %v, %v, and no policy names a service", p.asked, err)
	}
	g.naming("web")
	before := g.table.applied
	if _, err := g.round(); !errors.Is(err, errLocating) || g.table.applied != before {
		t.Errorf("error %v, applied %d times; want to wait", err, g.table.applied-before)
	}
	p.known = kube.Known
	if _, err := g.round(); err != nil || g.held() != "service default/web[{10.0.0.9 6 80}]" {
		t.Errorf("%v, %s", err, g.held())
	}
	p.at["default/web"] = member("10.0.0.7")
	p.asked = nil
	if _, err := g.round(); err != nil || len(p.asked) != 0 {
		t.Errorf("asked for %v, %v, and nobody has said that services changed", p.asked, err)
	}
	g.relocate()
	g.naming("web", "db")
	if _, err := g.round(); err != nil || g.held() != "service default/db[{10.0.0.8 6 80}]; service default/web[{10.0.0.7 6 80}]" {
		t.Errorf("%v, %s", err, g.held())
	}
	p.known = kube.Unknown
	p.at["default/web"] = nil
	g.relocate()
	if _, err := g.round(); err != nil || g.held() != "service default/db[{10.0.0.8 6 80}]; service default/web[{10.0.0.7 6 80}]" {
		t.Errorf("while Kubernetes is away: %v, %s", err, g.held())
	}
	if got := strings.Join(g.troubles(), "\n"); !strings.Contains(got, "service default/web: Kubernetes does not say") {
		t.Errorf("troubles %q", got)
	}
	g.naming()
	if _, err := g.round(); err != nil || g.held() != "" || len(g.services.at) != 0 {
		t.Errorf("no policy names a service any more: %v, %s, %v", err, g.held(), g.services.at)
	}
}

func TestRulesThatNameServicesMatchNothingWithoutKubernetes(t *testing.T) {
	g := newGuarded(t)
	g.believe()
	g.workload("a", "c1", "10.0.0.1")
	g.naming("web")
	if _, err := g.round(); err != nil || g.held() != "service default/web[]" {
		t.Errorf("%v, %s", err, g.held())
	}
	if got := strings.Join(g.troubles(), "\n"); !strings.Contains(got, "service default/web: this node has no access to Kubernetes") {
		t.Errorf("troubles %q", got)
	}
}
