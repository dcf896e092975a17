package feed

import (
	"strings"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// Kinds is a set of the kinds of values that are followed.
type Kinds uint32

// The kinds.
const (
	Pools Kinds = 1 << iota
	Nodes
	Endpoints
	Cluster
	FelixConfigs
	Profiles
	Tiers
	Blocks
	Affinities
	IPAMConfig
	Identities
	Reservations
	HostEndpoints
	NetworkSets
	GlobalNetworkSets
	NetworkPolicies
	GlobalNetworkPolicies
	StagedNetworkPolicies
	StagedGlobalNetworkPolicies
	StagedKubernetesNetworkPolicies
	BGPConfigs
	BGPPeers
	BGPFilters

	kinds = iota
	all   = 1<<kinds - 1
)

// ForPolicy are the kinds that network policy depends on.
const ForPolicy = Endpoints | HostEndpoints | NetworkSets | GlobalNetworkSets | Profiles | Tiers | NetworkPolicies | GlobalNetworkPolicies |
	StagedNetworkPolicies | StagedGlobalNetworkPolicies | StagedKubernetesNetworkPolicies

// ForBGP are the kinds that a node's BGP depends on.
const ForBGP = BGPConfigs | BGPPeers | BGPFilters | Pools | Nodes | Endpoints | Affinities

// Has reports whether the set holds at least one of some kinds.
func (k Kinds) Has(some Kinds) bool { return k&some != 0 }

// The range that holds every key that is followed, but for the identity records. Handles lie in it too, and are ignored.
const (
	rangeFrom = api.IPAMRoot
	rangeEnd  = "/calico/resources0" // behind everything below /calico/resources/
)

// The range of the identity records. What lies between the two ranges may be anybody's.
const (
	identitiesFrom = api.IdentitiesRoot
	identitiesEnd  = api.MuslinRoot + "nodes0"
)

// router finds the kind of a key.
type router struct {
	below     map[Kinds]store.Range
	resources map[string]Kinds // by what follows api.ResourcesRoot
	others    Kinds            // that are not below it
}

// prefixes are the keys that are followed, by kind.
func prefixes() *router {
	r := &router{below: ranges(), resources: map[string]Kinds{}}
	for k, below := range r.below {
		if plural, ok := strings.CutPrefix(below.Key, api.ResourcesRoot); ok {
			r.resources[strings.TrimSuffix(plural, "/")] = k
			continue
		}
		r.others |= k
	}
	return r
}

func ranges() map[Kinds]store.Range {
	below := func(k api.Kind) store.Range { return store.Range{Key: k.Prefix(), Prefix: true} }
	return map[Kinds]store.Range{
		Pools:        below((*api.IPPool)(nil).KindOf()),
		Nodes:        below((*api.Node)(nil).KindOf()),
		Endpoints:    below((*api.WorkloadEndpoint)(nil).KindOf()),
		Cluster:      below((*api.ClusterInformation)(nil).KindOf()),
		FelixConfigs: below((*api.FelixConfiguration)(nil).KindOf()),
		Profiles:     below((*api.Profile)(nil).KindOf()),
		Tiers:        below((*api.Tier)(nil).KindOf()),
		Blocks:       {Key: api.BlocksRoot, Prefix: true},
		Affinities:   {Key: api.HostsRoot, Prefix: true},
		IPAMConfig:   {Key: api.IPAMConfigKey},
		Identities:   {Key: api.IdentitiesRoot, Prefix: true},
		Reservations: below((*api.IPReservation)(nil).KindOf()),

		HostEndpoints:                   below((*api.HostEndpoint)(nil).KindOf()),
		NetworkSets:                     below((*api.NetworkSet)(nil).KindOf()),
		GlobalNetworkSets:               below((*api.GlobalNetworkSet)(nil).KindOf()),
		NetworkPolicies:                 below((*api.NetworkPolicy)(nil).KindOf()),
		GlobalNetworkPolicies:           below((*api.GlobalNetworkPolicy)(nil).KindOf()),
		StagedNetworkPolicies:           below((*api.StagedNetworkPolicy)(nil).KindOf()),
		StagedGlobalNetworkPolicies:     below((*api.StagedGlobalNetworkPolicy)(nil).KindOf()),
		StagedKubernetesNetworkPolicies: below((*api.StagedKubernetesNetworkPolicy)(nil).KindOf()),

		BGPConfigs: below((*api.BGPConfiguration)(nil).KindOf()),
		BGPPeers:   below((*api.BGPPeer)(nil).KindOf()),
		BGPFilters: below((*api.BGPFilter)(nil).KindOf()),
	}
}

// kind is 0 for a key that is not followed: of another kind, or a host's marker among the affinities.
func (r *router) kind(key string) Kinds {
	if rest, ok := strings.CutPrefix(key, api.ResourcesRoot); ok {
		plural, _, ok := strings.Cut(rest, "/")
		if !ok {
			return 0
		}
		return r.resources[plural]
	}
	for left := r.others; left != 0; left &= left - 1 {
		k := left & -left
		p := r.below[k]
		if key != p.Key && !(p.Prefix && strings.HasPrefix(key, p.Key)) {
			continue
		}
		if k == Affinities && !strings.Contains(key[len(p.Key):], "/") {
			return 0
		}
		return k
	}
	return 0
}

func (r *router) ranges() []store.Range {
	out := make([]store.Range, 0, len(r.below))
	for k := Kinds(1); k < all; k <<= 1 {
		out = append(out, r.below[k])
	}
	return out
}
