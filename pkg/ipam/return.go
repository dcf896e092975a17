package ipam

import (
	"context"
	"fmt"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
	"github.com/muslin-cni/muslin/pkg/store"
)

// Unused is an empty block of a node, and what makes it the node's.
type Unused struct {
	Block    store.Entry[api.Block]
	Affinity store.Entry[api.Affinity]
	Identity store.Entry[api.NodeIdentity] // of the node's name
}

// ReturnBlock gives an empty block back: block and affinity are deleted in one transaction, if all three entries are still what was
// read. It returns what was written. The error is the store's; store.ErrConflict means that somebody uses the block.
func ReturnBlock(ctx context.Context, c *store.Client, u Unused) ([]store.KV, error) {
	if !block.Empty(u.Block.Value) {
		return nil, fmt.Errorf("return block %v: it is not empty", u.Block.Value.CIDR)
	}
	var t store.Txn
	t.Delete(u.Block.Key, u.Block.Rev)
	t.Expect(u.Affinity.Key, u.Affinity.Rev)
	if u.Affinity.Exists() {
		t.Delete(u.Affinity.Key, u.Affinity.Rev)
	}
	t.Expect(u.Identity.Key, u.Identity.Rev)
	changed, err := c.Commit(ctx, &t)
	if err != nil {
		return nil, fmt.Errorf("return block %v: %w", u.Block.Value.CIDR, err)
	}
	return changed, nil
}
