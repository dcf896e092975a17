package why

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/pkg/api"
)

// party is one end of a packet's way.
type party struct {
	workload *api.WorkloadEndpoint // nil: no pod's
	node     string                // where the workload is, or whose address it is; "": nobody's that is known
	addr     netip.Addr            // zero until a family is chosen
}

// String is the party as people know it: default/web (10.65.0.1, WorkloadEndpoint … on node-1).
func (p party) String() string {
	switch {
	case p.workload != nil:
		return fmt.Sprintf("%s (%v, %v on %s)", podName(p.workload), p.addr, workloadKey(p.workload), p.node)
	case p.node != "":
		return fmt.Sprintf("%v (node %s itself)", p.addr, p.node)
	}
	return fmt.Sprintf("%v (no pod's address, nor a node's)", p.addr)
}

// name is the party in short.
func (p party) name() string {
	if p.workload != nil {
		return podName(p.workload)
	}
	return p.addr.String()
}

// find finds whom a user means: an address, or a pod or WorkloadEndpoint with its namespace or without.
func (f *facts) find(text string) (party, error) {
	if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" {
		return f.at(a.Unmap())
	}
	namespace, name, both := strings.Cut(text, "/")
	if !both {
		namespace, name = "", text
	}
	if name == "" || strings.Contains(name, "/") {
		return party{}, errors.New("want NAMESPACE/POD, NAMESPACE/WORKLOADENDPOINT or an address")
	}
	var byEndpoint, byPod []*api.WorkloadEndpoint
	for _, w := range f.workloads {
		switch {
		case namespace != "" && w.Metadata.Namespace != namespace:
		case w.Metadata.Name == name:
			byEndpoint = append(byEndpoint, w)
		case w.Spec.Pod == name, w.Spec.Workload == name, w.Metadata.Namespace+"."+name == w.Spec.Workload:
			byPod = append(byPod, w)
		}
	}
	found := byEndpoint // whose name is exact
	if len(found) == 0 {
		found = byPod
	}
	if len(found) == 0 {
		return party{}, f.missing(namespace, name)
	}
	return one(found, "name one of these endpoints")
}

// missing says what is not there: the namespace's pods, or the pod.
func (f *facts) missing(namespace, name string) error {
	where := "in any namespace"
	if namespace != "" {
		where = "in namespace " + namespace
		if !slices.ContainsFunc(f.workloads, func(w *api.WorkloadEndpoint) bool { return w.Metadata.Namespace == namespace }) {
			return fmt.Errorf("no pod in namespace %s has a WorkloadEndpoint; pods on the network of their host have none", namespace)
		}
	}
	return fmt.Errorf("no pod or WorkloadEndpoint %s %s; pods on the network of their host have none", name, where)
}

// at is who has an address.
func (f *facts) at(a netip.Addr) (party, error) {
	var found []*api.WorkloadEndpoint
	for _, w := range f.workloads {
		if slices.Contains(addresses(w), a) {
			found = append(found, w)
		}
	}
	if len(found) == 0 {
		return party{addr: a, node: f.nodeWith(a)}, nil
	}
	p, err := one(found, "several endpoints have this address, name one of them")
	p.addr = a
	return p, err
}

// one is the only one of several that fit.
func one(found []*api.WorkloadEndpoint, otherwise string) (party, error) {
	if len(found) == 1 {
		return party{workload: found[0], node: found[0].Spec.Node}, nil
	}
	var names []string
	for _, w := range found {
		names = append(names, fmt.Sprintf("%s/%s on %s", w.Metadata.Namespace, w.Metadata.Name, w.Spec.Node))
	}
	slices.Sort(names)
	return party{}, fmt.Errorf("this is not one but %d; %s: %s", len(found), otherwise, strings.Join(names, ", "))
}

// family gives both parties an address of one family: the version that is asked for (4, 6; 0: any), else that of an address that was given, else
// IPv4 if both have it.
func family(from, to *party, version int) error {
	for _, v := range []int{4, 6} {
		if version != 0 && v != version {
			continue
		}
		a, b := from.ofFamily(v), to.ofFamily(v)
		if a.IsValid() && b.IsValid() {
			from.addr, to.addr = a, b
			return nil
		}
	}
	want := "an address of one family in common"
	if version != 0 {
		want = fmt.Sprintf("both an IPv%d address", version)
	}
	return fmt.Errorf("%s and %s do not have %s", cmp.Or(from.known(), "--from"), cmp.Or(to.known(), "--to"), want)
}

// known is name before an address is chosen.
func (p party) known() string {
	if p.workload != nil || p.addr.IsValid() {
		return p.name()
	}
	return ""
}

// ofFamily is the party's address of a family; zero if it has none.
func (p party) ofFamily(version int) netip.Addr {
	candidates := []netip.Addr{p.addr}
	if !p.addr.IsValid() && p.workload != nil {
		candidates = addresses(p.workload)
	}
	for _, a := range candidates {
		if a.IsValid() && a.Is4() == (version == 4) {
			return a
		}
	}
	return netip.Addr{}
}
