package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/selector"
	"github.com/muslin-cni/muslin/pkg/store"
)

// Request asks for one address.
type Request struct {
	Handle    string            // who owns it: see api.PodHandle
	Attrs     map[string]string // api.AttrNode and the like, kept with the address
	V6        bool              // the family
	Addr      netip.Addr        // the one address wanted; zero: any
	Use       api.Use           // what for; required
	Pools     []string          // names or CIDRs of the only pools to take it from; none: those that select the node
	Namespace map[string]string // labels of the pod's namespace, for pools that select namespaces; nil: none
	MaxBlocks int               // of the node in these pools, if the configuration does not allow even fewer; 0: as it says
}

// ready refuses to work on a datastore that is being migrated or has not been set up, and for a node that has no object.
func (f Facts) ready(node string) error {
	if err := Ready(f.Cluster); err != nil {
		return err
	}
	if f.Err != nil {
		return f.Err
	}
	if !f.Node.Exists() {
		return refuse(ErrNoNode, "the agent creates it at start: see whether muslin-node runs on this host and under this name", "node %s is not in the datastore", node)
	}
	return nil
}

// Ready refuses, with ErrNotReady, while the cluster's ready flag is not set.
func Ready(cluster store.Entry[api.ClusterInformation]) error {
	const msg = "the cluster is currently not ready to process requests"
	if !cluster.Exists() {
		return refuse(ErrNotReady, "the first agent that starts creates it; start one, then try again", "%s: there is no ClusterInformation", msg)
	}
	if !cluster.Value.Ready() {
		return refuse(ErrNotReady, "it is locked for a migration; try again once it is unlocked (calicoctl datastore migrate unlock)", "%s: datastoreReady is not true", msg)
	}
	return nil
}

// Unlocked refuses, with ErrNotReady, what only frees while the datastore is locked. Where there is no ClusterInformation at all, there
// is no migration to protect: an etcd that lost its data must not keep pods from going.
func Unlocked(cluster store.Entry[api.ClusterInformation]) error {
	if !cluster.Exists() {
		return nil
	}
	return Ready(cluster)
}

// choose returns the pools that serve the request, by name.
func (f Facts) choose(node string, r Request) ([]store.Entry[api.IPPool], error) {
	if r.Use == "" {
		return nil, refuse(ErrRequest, "set one of Workload, Tunnel, LoadBalancer", "must specify the intended use when assigning an IP")
	}
	enabled := f.enabled(r.V6)
	if len(enabled) == 0 {
		return nil, refuse(ErrNoPool, "create an IPPool of that family, or enable one"+badNote(f.Bad), "cannot find a qualified ippool: none of %d pools is an enabled %s pool", len(f.Pools), family(r.V6))
	}
	chosen, err := f.named(enabled, r)
	if err != nil {
		return nil, err
	}
	if len(r.Pools) == 0 {
		if chosen, err = f.selecting(enabled, node, r); err != nil {
			return nil, err
		}
	}
	allowed := slices.DeleteFunc(slices.Clone(chosen), func(e store.Entry[api.IPPool]) bool { return !e.Value.Allows(r.Use) })
	if len(allowed) == 0 {
		return nil, refuse(ErrNoPool, "add it to a pool's spec.allowedUses", "cannot find a qualified ippool, no pools match the required use (%s): %s", r.Use, list(chosen))
	}
	return allowed, nil
}

// enabled returns the pools of the family that may be allocated from.
func (f Facts) enabled(v6 bool) []store.Entry[api.IPPool] {
	var out []store.Entry[api.IPPool]
	for _, e := range f.Pools {
		if p := e.Value; !p.Spec.Disabled && p.Metadata.DeletionTimestamp == nil && p.Check() == nil && p.Spec.CIDR.Addr().Is6() == v6 {
			out = append(out, e)
		}
	}
	return out
}

// named returns the pools that the request names. Their node selectors and assignment modes do not matter.
func (f Facts) named(enabled []store.Entry[api.IPPool], r Request) ([]store.Entry[api.IPPool], error) {
	var out []store.Entry[api.IPPool]
	for _, e := range enabled {
		if slices.ContainsFunc(r.Pools, func(want string) bool { return names(e.Value, want) }) {
			out = append(out, e)
		}
	}
	for _, want := range r.Pools {
		if slices.ContainsFunc(out, func(e store.Entry[api.IPPool]) bool { return names(e.Value, want) }) {
			continue
		}
		for _, e := range f.Pools {
			if names(e.Value, want) && e.Value.Spec.CIDR.IsValid() && e.Value.Spec.CIDR.Addr().Is6() != r.V6 {
				return nil, refuse(ErrRequest, "name a pool of that family", "%q isn't an %s pool", want, family(r.V6))
			}
		}
		return nil, refuse(ErrRequest, "enabled "+family(r.V6)+" pools are "+list(enabled)+badNote(f.Bad), "the given pool (%s) does not exist, or is not enabled", want)
	}
	return out, nil
}

// names reports whether want is the pool's name or range.
func names(p *api.IPPool, want string) bool {
	cidr, err := netip.ParsePrefix(want)
	return p.Metadata.Name == want || (err == nil && cidr.Masked() == p.Spec.CIDR)
}

// selecting returns the pools that serve the node without being asked for.
func (f Facts) selecting(enabled []store.Entry[api.IPPool], node string, r Request) ([]store.Entry[api.IPPool], error) {
	labels := selector.Map(f.Node.Value.Metadata.Labels)
	var out []store.Entry[api.IPPool]
	var bad []error
	for _, e := range enabled {
		selects, err := matchBoth(e.Value.Spec, labels, selector.Map(r.Namespace))
		if err != nil {
			bad = append(bad, fmt.Errorf("pool %s: %w", e.Value.Metadata.Name, err))
			continue
		}
		if selects && e.Value.Spec.AssignmentMode == api.AssignAutomatic {
			out = append(out, e)
		}
	}
	if len(out) > 0 {
		return out, nil
	}
	remedy := "label the node, or change a pool's nodeSelector, namespaceSelector or assignmentMode"
	if len(bad) > 0 {
		remedy += " (" + errors.Join(bad...).Error() + ")"
	}
	return nil, refuse(ErrNoPool, remedy+badNote(f.Bad), "no configured Calico pools for node %s: none of %s selects it", node, list(enabled))
}

func matchBoth(s api.IPPoolSpec, node, namespace selector.Map) (bool, error) {
	byNode, err := selector.Parse(s.NodeSelector)
	if err != nil {
		return false, fmt.Errorf("nodeSelector: %w", err)
	}
	byNamespace, err := selector.Parse(s.NamespaceSelector)
	if err != nil {
		return false, fmt.Errorf("namespaceSelector: %w", err)
	}
	return byNode.Match(node) && byNamespace.Match(namespace), nil
}

// badNote names what could not be read, for a message that may be due to it.
func badNote(bad ...[]error) string {
	all := slices.Concat(bad...)
	if len(all) == 0 {
		return ""
	}
	return " (could not be read: " + errors.Join(all...).Error() + ")"
}

// list names pools for a message: [default-ipv4-ippool 10.244.0.0/16, …].
func list(pools []store.Entry[api.IPPool]) string {
	out := make([]string, len(pools))
	for i, e := range pools {
		out[i] = e.Value.Metadata.Name + " " + e.Value.Spec.CIDR.String()
	}
	return "[" + strings.Join(out, ", ") + "]"
}

// cidrs names pools by their ranges: [10.244.0.0/16 10.245.0.0/16].
func cidrs(pools []store.Entry[api.IPPool]) string {
	out := make([]string, len(pools))
	for i, e := range pools {
		out[i] = e.Value.Spec.CIDR.String()
	}
	return "[" + strings.Join(out, " ") + "]"
}

func family(v6 bool) string {
	if v6 {
		return "IPv6"
	}
	return "IPv4"
}
