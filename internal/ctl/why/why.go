// Package why says why packets pass or do not: what the policies in etcd make of a packet, and which of them dropped those that a node has dropped.
//
// Both answers come from the model that agents enforce (internal/policy), so that what is explained is what is done.
package why

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/spf13/cobra"

	"github.com/muslin-cni/muslin/internal/ctl/cli"
	"github.com/muslin-cni/muslin/internal/policy"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// Command is "policy" with its verbs.
func Command(env cli.Env) *cobra.Command {
	c := &cobra.Command{Use: "policy", Short: "Say what network policies do", Args: cobra.NoArgs}
	c.AddCommand(explainCommand(env))
	return c
}

// page is how many keys a request asks for.
const page = 1000

// facts are what etcd says, at one revision.
type facts struct {
	all       policy.Delta
	workloads []*api.WorkloadEndpoint
	hosts     []*api.HostEndpoint
	nodes     []*api.Node
	bad       []error              // values that cannot be read; agents go by what they held before, or leave them out too
	lost      []policy.ServiceName // that policies name, and nobody was asked about
}

// kinds are what policy depends on, and the nodes, whose addresses it may be asked about.
func kinds() []api.Kind {
	var out []api.Kind
	for _, o := range []api.Object{
		(*api.WorkloadEndpoint)(nil), (*api.HostEndpoint)(nil), (*api.NetworkSet)(nil), (*api.GlobalNetworkSet)(nil),
		(*api.Profile)(nil), (*api.Tier)(nil), (*api.NetworkPolicy)(nil), (*api.GlobalNetworkPolicy)(nil),
		(*api.StagedNetworkPolicy)(nil), (*api.StagedGlobalNetworkPolicy)(nil), (*api.StagedKubernetesNetworkPolicy)(nil),
		(*api.Node)(nil),
	} {
		out = append(out, o.KindOf())
	}
	return out
}

// read reads everything that policies depend on.
func read(ctx context.Context, c *store.Client) (*facts, error) {
	var ranges []store.Range
	byPrefix := map[string]api.Kind{}
	for _, k := range kinds() {
		ranges = append(ranges, store.Range{Key: k.Prefix(), Prefix: true})
		byPrefix[k.Prefix()] = k
	}
	kvs, _, err := c.ReadAll(ctx, page, ranges...)
	if err != nil {
		return nil, err
	}
	f := &facts{}
	for _, kv := range kvs {
		for prefix, k := range byPrefix {
			if len(kv.Key) > len(prefix) && kv.Key[:len(prefix)] == prefix {
				f.take(k, kv)
			}
		}
	}
	return f, nil
}

func (f *facts) take(k api.Kind, kv store.KV) {
	o, err := k.Decode(kv.Value)
	if err != nil {
		f.bad = append(f.bad, &store.UnreadableError{Key: kv.Key, Err: err})
		return
	}
	switch v := o.(type) {
	case *api.Node:
		f.nodes = append(f.nodes, v)
		return
	case *api.WorkloadEndpoint:
		f.workloads = append(f.workloads, v)
	case *api.HostEndpoint:
		f.hosts = append(f.hosts, v)
	}
	f.all.Objects = append(f.all.Objects, policy.Change{Key: kv.Key, Object: o})
}

// warn tells what of etcd's contents is left out.
func (f *facts) warn(env cli.Env) {
	for _, err := range f.bad {
		_, _ = fmt.Fprintf(env.Err, "left out, though agents that know an earlier version of it go by that: %v\n", err)
	}
	for _, s := range f.lost {
		_, _ = fmt.Fprintf(env.Err, "not known: where the service %v is, which policies name; rules that name it match nothing here, unless --kubeconfig says whom to ask\n", s)
	}
}

// workloadKey names a workload's endpoint in the model.
func workloadKey(w *api.WorkloadEndpoint) policy.EndpointKey {
	return policy.EndpointKey{Kind: policy.Workload, Namespace: w.Metadata.Namespace, Name: w.Metadata.Name}
}

// podName is what people call a workload: its pod, or where there is none what its orchestrator calls it.
func podName(w *api.WorkloadEndpoint) string {
	name := w.Metadata.Name
	switch {
	case w.Spec.Pod != "":
		name = w.Spec.Pod
	case w.Spec.Workload != "":
		name = w.Spec.Workload
	}
	return w.Metadata.Namespace + "/" + name
}

// addresses are those of a workload.
func addresses(w *api.WorkloadEndpoint) (out []netip.Addr) {
	for _, p := range w.Spec.IPNetworks {
		if p.IsValid() {
			out = append(out, p.Addr().Unmap())
		}
	}
	return out
}

// nodeWith is the node that has an address, by what nodes say of themselves and hosts' endpoints of their hosts; "" if none has.
func (f *facts) nodeWith(a netip.Addr) string {
	for _, n := range f.nodes {
		for _, own := range nodeAddresses(n) {
			if own == a {
				return n.Metadata.Name
			}
		}
	}
	for _, h := range f.hosts {
		for _, text := range h.Spec.ExpectedIPs {
			if own, err := netip.ParseAddr(text); err == nil && own.Unmap() == a {
				return h.Spec.Node
			}
		}
	}
	return ""
}

func nodeAddresses(n *api.Node) []netip.Addr {
	out := []netip.Addr{n.Spec.IPv4VXLANTunnelAddr, n.Spec.IPv6VXLANTunnelAddr}
	if b := n.Spec.BGP; b != nil {
		out = append(out, b.IPv4Address.Addr(), b.IPv6Address.Addr(), b.IPv4IPIPTunnelAddr)
	}
	for _, a := range n.Spec.Addresses {
		if p, err := netip.ParsePrefix(a.Address); err == nil {
			out = append(out, p.Addr())
		} else if addr, err := netip.ParseAddr(a.Address); err == nil {
			out = append(out, addr)
		}
	}
	for i := range out {
		out[i] = out[i].Unmap()
	}
	return out
}
