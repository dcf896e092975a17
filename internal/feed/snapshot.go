package feed

import (
	"iter"
	"maps"
	"net/netip"
	"slices"

	"github.com/tidwall/btree"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
	"github.com/muslin-cni/muslin/pkg/store"
)

// Snapshot is the followed part of the datastore at one moment. It never changes, costs nothing to copy, and may be used by any
// number of goroutines. Entries and what they point to are shared: do not modify them. The zero Snapshot is empty.
type Snapshot struct {
	// Rev is the revision that the watch has reached. What Feed.Commit added may be newer; each Entry has its own revision.
	Rev int64
	s   *state
}

// Bad is a key whose value cannot be used.
type Bad struct {
	Key string
	Rev int64 // of the value
	Err error
}

// Pools yields all IPPools. Like all that yields several entries, it does so in the order of their etcd keys, which come with them.
func (s Snapshot) Pools() iter.Seq2[string, store.Entry[api.IPPool]] {
	return each[api.IPPool](s, Pools, "")
}

// Nodes yields all Nodes.
func (s Snapshot) Nodes() iter.Seq2[string, store.Entry[api.Node]] {
	return each[api.Node](s, Nodes, "")
}

// Node is one node; the entry does not exist if there is none of that name.
func (s Snapshot) Node(name string) store.Entry[api.Node] {
	return one[api.Node](s, Nodes, api.NodeKey(name))
}

// Endpoints yields the WorkloadEndpoints of all nodes.
func (s Snapshot) Endpoints() iter.Seq2[string, store.Entry[api.WorkloadEndpoint]] {
	if s.s == nil {
		return nothing[store.Entry[api.WorkloadEndpoint]]
	}
	return s.s.endpoints().below("")
}

// EndpointsOn yields the WorkloadEndpoints whose spec names the node. Where that is not the Feed's local one, if it has one, all of the cluster are gone through.
func (s Snapshot) EndpointsOn(node string) iter.Seq2[string, store.Entry[api.WorkloadEndpoint]] {
	if s.s == nil {
		return nothing[store.Entry[api.WorkloadEndpoint]]
	}
	return s.s.endpoints().on(node)
}

// Endpoint is the WorkloadEndpoint under an etcd key; the entry does not exist if there is none.
func (s Snapshot) Endpoint(key string) store.Entry[api.WorkloadEndpoint] {
	if s.s == nil {
		return store.Entry[api.WorkloadEndpoint]{Key: key}
	}
	return s.s.endpoints().get(key)
}

// Blocks yields the address blocks of all nodes.
func (s Snapshot) Blocks() iter.Seq2[string, store.Entry[api.Block]] {
	return each[api.Block](s, Blocks, "")
}

// Block is one address block; the entry does not exist if there is none.
func (s Snapshot) Block(cidr netip.Prefix) store.Entry[api.Block] {
	return one[api.Block](s, Blocks, api.BlockKey(cidr))
}

// Affinities yields a node's claims to blocks, of both families; api.ParseAffinityKey tells which block each is for.
func (s Snapshot) Affinities(node string) iter.Seq2[string, store.Entry[api.Affinity]] {
	return each[api.Affinity](s, Affinities, api.AffinitiesPrefix(node))
}

// Affinity is a node's claim to a block; the entry does not exist if there is none.
func (s Snapshot) Affinity(node string, cidr netip.Prefix) store.Entry[api.Affinity] {
	return one[api.Affinity](s, Affinities, api.AffinityKey(node, cidr))
}

// Cluster is the cluster's description; the entry does not exist if none is stored.
func (s Snapshot) Cluster() store.Entry[api.ClusterInformation] {
	return one[api.ClusterInformation](s, Cluster, (*api.ClusterInformation)(nil).KindOf().Key("", "default"))
}

// IPAMConfig is the allocation settings; the entry does not exist if none are stored.
func (s Snapshot) IPAMConfig() store.Entry[api.IPAMConfig] {
	return one[api.IPAMConfig](s, IPAMConfig, api.IPAMConfigKey)
}

// Identity says which machine a node's name belongs to; the entry does not exist if none is recorded. It alone may be ahead of Rev, or
// behind it: the records are followed by a watch of their own.
func (s Snapshot) Identity(node string) store.Entry[api.NodeIdentity] {
	return one[api.NodeIdentity](s, Identities, api.IdentityKey(node))
}

// Reservations yields all IPReservations.
func (s Snapshot) Reservations() iter.Seq2[string, store.Entry[api.IPReservation]] {
	return each[api.IPReservation](s, Reservations, "")
}

// FelixConfig is the agent's settings of that name: "default" or "node.<name>". The entry does not exist if there are none.
func (s Snapshot) FelixConfig(name string) store.Entry[api.FelixConfiguration] {
	return one[api.FelixConfiguration](s, FelixConfigs, (*api.FelixConfiguration)(nil).KindOf().Key("", name))
}

// Profiles yields all Profiles.
func (s Snapshot) Profiles() iter.Seq2[string, store.Entry[api.Profile]] {
	return each[api.Profile](s, Profiles, "")
}

// Profile is one profile; the entry does not exist if there is none of that name.
func (s Snapshot) Profile(name string) store.Entry[api.Profile] {
	return one[api.Profile](s, Profiles, (*api.Profile)(nil).KindOf().Key("", name))
}

// Tiers yields all Tiers.
func (s Snapshot) Tiers() iter.Seq2[string, store.Entry[api.Tier]] {
	return each[api.Tier](s, Tiers, "")
}

// BGPConfigs yields all BGPConfigurations: the cluster's and those of nodes.
func (s Snapshot) BGPConfigs() iter.Seq2[string, store.Entry[api.BGPConfiguration]] {
	return each[api.BGPConfiguration](s, BGPConfigs, "")
}

// BGPPeers yields all BGPPeers.
func (s Snapshot) BGPPeers() iter.Seq2[string, store.Entry[api.BGPPeer]] {
	return each[api.BGPPeer](s, BGPPeers, "")
}

// BGPFilters yields all BGPFilters.
func (s Snapshot) BGPFilters() iter.Seq2[string, store.Entry[api.BGPFilter]] {
	return each[api.BGPFilter](s, BGPFilters, "")
}

// Object is what stands under an etcd key, of whatever kind that is an api.Object; nil if nothing does.
func (s Snapshot) Object(key string) api.Object {
	if s.s == nil {
		return nil
	}
	k := s.s.route.kind(key)
	if k == 0 {
		return nil
	}
	return s.s.tables.of(k).object(key)
}

// Objects yields all that stands under the etcd keys of some kinds, kind by kind, and is an api.Object.
func (s Snapshot) Objects(kinds Kinds) iter.Seq2[string, api.Object] {
	return func(yield func(string, api.Object) bool) {
		for k := Kinds(1); s.s != nil && k < all; k <<= 1 {
			if !kinds.Has(k) {
				continue
			}
			for key := range s.s.tables.of(k).keys() {
				if o := s.s.tables.of(k).object(key); o != nil && !yield(key, o) {
					return
				}
			}
		}
	}
}

// Bad yields the keys whose values cannot be used, in key order. Such a key is in no other part of the snapshot: the value that it
// had before is not kept, since a reader that starts now could not know it, and what a node does must follow from what etcd holds.
func (s Snapshot) Bad() []Bad {
	if s.s == nil {
		return nil
	}
	return s.s.bad.Values()
}

// BadAt tells whether, and why, the value of a key cannot be used.
func (s Snapshot) BadAt(key string) (Bad, bool) {
	if s.s == nil {
		return Bad{}, false
	}
	return s.s.bad.Get(key)
}

// Delta is what may have changed between two snapshots.
type Delta struct {
	Kinds Kinds
	All   bool     // too much changed to name it: any key may have
	Keys  []string // that changed, in no order, each once; nil if All
}

// Empty reports whether nothing changed.
func (d Delta) Empty() bool { return d.Kinds == 0 }

// Since tells what changed after old, an earlier snapshot of the same feed. A key that changed and changed back may be named.
// After the zero Snapshot everything changed.
func (s Snapshot) Since(old Snapshot) Delta {
	if s.s == nil {
		return Delta{}
	}
	if old.s == nil || !s.s.remembers(old.s.seq) {
		return Delta{Kinds: all, All: true}
	}
	var d Delta
	keys := map[string]bool{}
	for c := range s.s.log.since(old.s.seq + 1) {
		d.Kinds |= c.change.kind
		keys[c.change.key] = true
	}
	d.Keys = slices.Collect(maps.Keys(keys))
	return d
}

func each[T api.Value](s Snapshot, k Kinds, prefix string) iter.Seq2[string, store.Entry[T]] {
	if s.s == nil {
		return nothing[store.Entry[T]]
	}
	return s.s.tables.of(k).(*values[T]).below(prefix)
}

func one[T api.Value](s Snapshot, k Kinds, key string) store.Entry[T] {
	if s.s == nil {
		return store.Entry[T]{Key: key}
	}
	return s.s.tables.of(k).(*values[T]).get(key)
}

func nothing[V any](func(string, V) bool) {}

// state is what a snapshot holds. It is built by a writer and not changed afterwards.
type state struct {
	rev    int64 // that the watch has reached
	tables tables
	route  *router // of keys to tables
	bad    btree.Map[string, Bad]
	// graves holds the revisions of deletions that are newer than rev, so that what the watch still has to tell of these keys does not
	// bring them back.
	graves btree.Map[string, int64]
	seq    uint64   // number of the last change
	log    *history // nil: there was none
}

// newState is empty. Of all endpoints it indexes those of one node, or of all: "".
func newState(local string) *state {
	s := &state{route: prefixes()}
	for k, t := range empty(local) {
		*s.tables.at(k) = t
	}
	return s
}

// empty is the table of each kind, without values.
func empty(local string) map[Kinds]table {
	return map[Kinds]table{
		Pools:        object(func(v *api.IPPool) api.Object { return v }),
		Nodes:        object(func(v *api.Node) api.Object { return v }),
		Endpoints:    newEndpoints(local),
		Cluster:      object(func(v *api.ClusterInformation) api.Object { return v }),
		FelixConfigs: object(func(v *api.FelixConfiguration) api.Object { return v }),
		Profiles:     object(func(v *api.Profile) api.Object { return v }),
		Tiers:        object(func(v *api.Tier) api.Object { return v }),
		Blocks:       &values[api.Block]{check: block.CheckKey},
		Affinities:   &values[api.Affinity]{check: checkAffinity},
		IPAMConfig:   &values[api.IPAMConfig]{check: noCheck[api.IPAMConfig]},
		Identities:   &values[api.NodeIdentity]{check: noCheck[api.NodeIdentity]},
		Reservations: object(func(v *api.IPReservation) api.Object { return v }),

		HostEndpoints:                   object(func(v *api.HostEndpoint) api.Object { return v }),
		NetworkSets:                     object(func(v *api.NetworkSet) api.Object { return v }),
		GlobalNetworkSets:               object(func(v *api.GlobalNetworkSet) api.Object { return v }),
		NetworkPolicies:                 policies(func(v *api.NetworkPolicy) api.Object { return v }),
		GlobalNetworkPolicies:           policies(func(v *api.GlobalNetworkPolicy) api.Object { return v }),
		StagedNetworkPolicies:           policies(func(v *api.StagedNetworkPolicy) api.Object { return v }),
		StagedGlobalNetworkPolicies:     policies(func(v *api.StagedGlobalNetworkPolicy) api.Object { return v }),
		StagedKubernetesNetworkPolicies: policies(func(v *api.StagedKubernetesNetworkPolicy) api.Object { return v }),

		BGPConfigs: object(func(v *api.BGPConfiguration) api.Object { return v }),
		BGPPeers:   object(func(v *api.BGPPeer) api.Object { return v }),
		BGPFilters: object(func(v *api.BGPFilter) api.Object { return v }),
	}
}

func (s *state) endpoints() *endpoints { return s.tables.of(Endpoints).(*endpoints) }

// remembers reports whether the log holds every change after one.
func (s *state) remembers(seq uint64) bool {
	return seq == s.seq || s.log != nil && s.log.oldest <= seq+1
}
