package agent

import (
	"errors"
	"fmt"
	"slices"

	"github.com/muslin-cni/muslin/internal/kube"
	"github.com/muslin-cni/muslin/internal/policy"
)

// locator says where the endpoints of a Kubernetes service are: kube.Node, or a test's.
type locator interface {
	Members(namespace, name string) ([]policy.PortMember, kube.Knowledge)
}

// located is what the engine has been told of services.
type located struct {
	from  locator // nil: there is no Kubernetes
	at    map[policy.ServiceName][]policy.PortMember
	stale bool     // from, or what policies name, may say something else
	lost  []string // services that policies name and nobody knows, for the log
}

// errLocating says that Kubernetes has been asked where services are and has not answered yet.
var errLocating = errors.New("wait for Kubernetes to say where the services are that policies name")

// locate tells the engine where the services are that policies name, and no others. The error is errLocating for some seconds at most, so that an agent
// that starts takes nothing from rules that are in force; after that the rules match what was known before, or nothing.
func (g *guard) locate() error {
	if !g.services.stale {
		return nil
	}
	news, err := g.services.news(g.engine.Services())
	if err != nil || len(news) == 0 {
		return err
	}
	g.compute(policy.Delta{Services: news})
	return nil
}

// news are the services of which the engine has to be told something else.
func (l *located) news(named []policy.ServiceName) (out []policy.Service, err error) {
	at := make(map[policy.ServiceName][]policy.PortMember, len(named))
	var lost []string
	for _, s := range named {
		members, known := l.find(s)
		switch known {
		case kube.Coming:
			return nil, errLocating
		case kube.Unknown:
			members = l.at[s]
			lost = append(lost, s.String())
		}
		at[s] = members
		if !slices.Equal(l.at[s], members) {
			out = append(out, policy.Service{Namespace: s.Namespace, Name: s.Name, Members: members})
		}
	}
	for s := range l.at {
		if _, still := at[s]; !still {
			out = append(out, policy.Service{Namespace: s.Namespace, Name: s.Name})
		}
	}
	l.at, l.lost, l.stale = at, lost, len(lost) > 0
	return out, nil
}

func (l *located) find(s policy.ServiceName) ([]policy.PortMember, kube.Knowledge) {
	if l.from == nil {
		return nil, kube.Unknown
	}
	return l.from.Members(s.Namespace, s.Name)
}

// relocate has the next round ask where services are.
func (g *guard) relocate() { g.services.stale = true }

// troubles are rules that match less than they say.
func (l *located) troubles() (out []string) {
	for _, s := range l.lost {
		why := "Kubernetes does not say where its endpoints are"
		if l.from == nil {
			why = "this node has no access to Kubernetes; give it a kubeconfig, or a service account"
		}
		out = append(out, fmt.Sprintf("policies name the service %s: %s, and rules that name it match what was known before, or nothing", s, why))
	}
	return out
}
