package modelcheck

import (
	"context"
	"net/netip"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
)

// operator is an actor that makes the rules.
func operator(ops ...Op) Actor { return Actor{Node: "a", Operator: true, Ops: ops} }

// edit is an operator's change of one object. change reports false where it is made already.
func edit[T api.Value](name, key string, change func(*T) bool) Op {
	return Op{Name: name, edits: true, whole: true, run: func(ctx context.Context, p *process) ([]netip.Addr, error) {
		_, err := store.Mutate(ctx, p.client, key, func(v *T, exists bool) (bool, error) {
			return exists && change(v), nil
		})
		return nil, err
	}}
}

// Lock locks the datastore, as before a migration.
func Lock() Op {
	return setReady("lock", false)
}

// Unlock ends that.
func Unlock() Op {
	return setReady("unlock", true)
}

func setReady(name string, ready bool) Op {
	return edit(name, ipam.ClusterKey(), func(c *api.ClusterInformation) bool {
		was := c.Ready()
		c.Spec.DatastoreReady = &ready
		return was != ready
	})
}

// DisablePool has no more addresses given out.
func DisablePool() Op {
	return edit("disable the pool", poolKey(), func(p *api.IPPool) bool {
		was := p.Spec.Disabled
		p.Spec.Disabled = true
		return !was
	})
}

// BeStrict has nodes use their own blocks alone.
func BeStrict() Op {
	return edit("make affinity strict", api.IPAMConfigKey, func(c *api.IPAMConfig) bool {
		was := c.StrictAffinity
		c.StrictAffinity = true
		return !was
	})
}

// Adopt gives a node's name to another machine.
func Adopt(node string) Op {
	return edit("adopt "+node, api.IdentityKey(node), func(id *api.NodeIdentity) bool {
		was := id.MachineID
		id.MachineID = "another"
		return was != id.MachineID
	})
}

// DeleteNode deletes a Node and nothing else.
func DeleteNode(node string) Op {
	return Op{Name: "delete node " + node, run: func(ctx context.Context, p *process) ([]netip.Addr, error) {
		key := api.NodeKey(node)
		return nil, ipam.Retry(ctx, func(int) error {
			got, _, err := p.client.Read(ctx, store.Range{Key: key})
			if err != nil || len(got[0]) == 0 {
				return err
			}
			txn := &store.Txn{}
			txn.Delete(key, got[0][0].Rev)
			_, err = p.client.Commit(ctx, txn)
			return err
		})
	}}
}
