package sim

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
)

// rules are what etcd says of who may write addresses now, from the bytes of each commit.
type rules struct {
	locked  bool
	pools   map[string]*api.IPPool // by key
	holders map[string]string      // machines, by node
	leaving map[string]bool        // nodes that the controllers have begun to take back
	nodes   map[string]bool
	claims  map[string]bool // confirmed affinities, by key
	strict  bool

	profiles map[string]bool // by key
}

func newRules() *rules {
	return &rules{pools: map[string]*api.IPPool{}, holders: map[string]string{}, leaving: map[string]bool{}, nodes: map[string]bool{}, claims: map[string]bool{}, profiles: map[string]bool{}}
}

// judge says what is wrong with a commit, given what was so until it: that it changes anything about addresses while the datastore is locked; and of a node's, that
// it gives addresses out from a pool that is out of use, or under the name of a node that is another machine's or of none, or of a block that is not the node's for certain,
// or another's though affinity is strict.
func (r *rules) judge(x *wire, changes []store.KV, given []netip.Addr) error {
	for _, kv := range changes {
		isEndpoint := strings.HasPrefix(kv.Key, endpointsRoot())
		switch {
		case x.name == calico: // it knows of no lock
		case r.locked && (isEndpoint || strings.HasPrefix(kv.Key, api.IPAMRoot) && kv.Key != api.IPAMConfigKey):
			return fmt.Errorf("%s is written while the datastore is locked", kv.Key)
		case x.node == nil || kv.Value == nil:
		case isEndpoint && (!r.nodes[x.node.name] || r.holders[x.node.name] != x.machine):
			return fmt.Errorf("%s is written by machine %s, and node %s is of %q", kv.Key, x.machine, x.node.name, r.holders[x.node.name])
		case strings.HasPrefix(kv.Key, api.BlocksRoot):
			if err := r.block(x, changes, kv, given); err != nil {
				return err
			}
		case strings.HasPrefix(kv.Key, profilesRoot()) && r.profiles[kv.Key]:
			return fmt.Errorf("%s is written over", kv.Key)
		}
	}
	if x.node == nil {
		return nil // the operator's own
	}
	for _, a := range given {
		if p := r.poolOf(a); p == nil || p.Spec.Disabled {
			return fmt.Errorf("%v is given out, and its pool is out of use", a)
		}
	}
	return nil
}

// block judges the addresses that a node takes out of one.
func (r *rules) block(x *wire, changes []store.KV, kv store.KV, given []netip.Addr) error {
	b, err := decode[api.Block](kv)
	if err != nil || !slices.ContainsFunc(given, func(a netip.Addr) bool { return b.CIDR.Contains(a) }) {
		return err
	}
	if host, ok := b.Host(); !ok || host != x.node.name {
		if r.strict {
			return fmt.Errorf("%s is another's, gives an address to %s, and affinity is strict", kv.Key, x.node.name)
		}
		return nil
	}
	key := api.AffinityKey(x.node.name, b.CIDR)
	now := r.claims[key]
	for _, c := range changes {
		if c.Key == key {
			now = c.Value != nil
		}
	}
	if !now {
		return fmt.Errorf("%s gives an address out, and %s has no confirmed affinity to it", kv.Key, x.node.name)
	}
	return nil
}

// claimed reports whether a node has an affinity to any block.
func (r *rules) claimed(node string) bool {
	for key, is := range r.claims {
		if is && affinityOf(key, node) {
			return true
		}
	}
	return false
}

func profilesRoot() string { return (*api.Profile)(nil).KindOf().Prefix() }

func (r *rules) poolOf(a netip.Addr) *api.IPPool {
	for _, p := range r.pools {
		if p != nil && p.Spec.CIDR.Contains(a) {
			return p
		}
	}
	return nil
}

// enter takes in a commit.
func (r *rules) enter(changes []store.KV) error {
	for _, kv := range changes {
		var err error
		switch {
		case kv.Key == ipam.ClusterKey():
			var c *api.ClusterInformation
			if c, err = decode[api.ClusterInformation](kv); err == nil {
				r.locked = c == nil || !c.Ready()
			}
		case strings.HasPrefix(kv.Key, (*api.IPPool)(nil).KindOf().Prefix()):
			r.pools[kv.Key], err = decode[api.IPPool](kv)
		case strings.HasPrefix(kv.Key, api.IdentitiesRoot):
			var id *api.NodeIdentity
			name := strings.TrimPrefix(kv.Key, api.IdentitiesRoot)
			delete(r.holders, name)
			delete(r.leaving, name)
			if id, err = decode[api.NodeIdentity](kv); err == nil && id != nil {
				r.holders[name], r.leaving[name] = id.MachineID, id.Leaving
			}
		case strings.HasPrefix(kv.Key, api.HostsRoot):
			var a *api.Affinity
			if a, err = decode[api.Affinity](kv); err == nil {
				r.claims[kv.Key] = a != nil && a.Confirmed()
			}
		case kv.Key == api.IPAMConfigKey:
			var c *api.IPAMConfig
			if c, err = decode[api.IPAMConfig](kv); err == nil {
				r.strict = c != nil && c.StrictAffinity
			}
		case strings.HasPrefix(kv.Key, profilesRoot()):
			r.profiles[kv.Key] = kv.Value != nil
		case strings.HasPrefix(kv.Key, api.NodeKey("")):
			r.nodes[strings.TrimPrefix(kv.Key, api.NodeKey(""))] = kv.Value != nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}
