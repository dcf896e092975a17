package sim

import (
	"fmt"
	"net/netip"
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
	nodes   map[string]bool
}

func newRules() *rules {
	return &rules{pools: map[string]*api.IPPool{}, holders: map[string]string{}, nodes: map[string]bool{}}
}

// judge says what is wrong with a commit of a node, given what was so until it: that it gives addresses out while the datastore is locked, or from a pool that is out
// of use, or under the name of a node that is another machine's or of none. What only frees depends on less: a lock that the node has yet to see does not stop it.
func (r *rules) judge(x *wire, changes []store.KV, given []netip.Addr) error {
	if x.node == nil {
		return nil // the operator's own
	}
	for _, kv := range changes {
		if strings.HasPrefix(kv.Key, endpointsRoot()) && kv.Value != nil && r.locked {
			return fmt.Errorf("%s is written while the datastore is locked", kv.Key)
		}
		if strings.HasPrefix(kv.Key, endpointsRoot()) && kv.Value != nil && (!r.nodes[x.node.name] || r.holders[x.node.name] != x.machine) {
			return fmt.Errorf("%s is written by machine %s, and node %s is of %q", kv.Key, x.machine, x.node.name, r.holders[x.node.name])
		}
	}
	for _, a := range given {
		if r.locked {
			return fmt.Errorf("%v is given out while the datastore is locked", a)
		}
		if p := r.poolOf(a); p == nil || p.Spec.Disabled {
			return fmt.Errorf("%v is given out, and its pool is out of use", a)
		}
	}
	return nil
}

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
			if id, err = decode[api.NodeIdentity](kv); err == nil && id != nil {
				r.holders[strings.TrimPrefix(kv.Key, api.IdentitiesRoot)] = id.MachineID
			}
		case strings.HasPrefix(kv.Key, nodeKey("")):
			r.nodes[strings.TrimPrefix(kv.Key, nodeKey(""))] = kv.Value != nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}
