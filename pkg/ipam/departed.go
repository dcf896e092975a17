package ipam

import (
	"context"
	"errors"
	"fmt"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// ErrCameBack means that a node was judged to be gone, and that somebody has worked under its name since.
var ErrCameBack = errors.New("somebody works under the node's name again")

// Departed is a node that is gone, as it was judged. What is taken from it is taken by transactions that compare that it still is, so that one which comes
// late fails: its agent, or another machine's, has registered meanwhile, or given out an address, or Kubernetes has the node again. Not safe for concurrent use.
type Departed struct {
	name     string
	uid      string // of its Node; "": it has none
	node     int64  // revision of the Node; 0: there is none
	identity int64  // revision of the record of whose the name is; 0: there is none
	anyway   bool   // whoever works under the name
}

// Depart begins to take back what a node had that was judged to be gone while Node and record were as given; they may not exist. It marks the record, which
// whoever works under the name then writes anew. changed is what was written. The error is a store.ErrConflict where something is not any more as it was judged.
func Depart(ctx context.Context, c *store.Client, name string, node store.Entry[api.Node], identity store.Entry[api.NodeIdentity]) (d *Departed, changed []store.KV, err error) {
	d = &Departed{name: name, node: node.Rev, identity: identity.Rev}
	if node.Exists() {
		d.uid = node.Value.Metadata.UID
	}
	if !identity.Exists() || identity.Value.Leaving {
		return d, nil, nil
	}
	mark := *identity.Value
	mark.Leaving = true
	var t store.Txn
	t.Expect(api.NodeKey(name), node.Rev)
	store.Put(&t, identity, &mark)
	if changed, err = c.Commit(ctx, &t); err != nil {
		return nil, nil, fmt.Errorf("begin to take back what node %s had: %w", name, err)
	}
	d.identity = changed[0].Rev
	return d, changed, nil
}

// DepartAnyway is Depart where an operator has said that the node goes, whoever works under its name. It writes nothing.
func DepartAnyway(ctx context.Context, c *store.Client, name string) (*Departed, error) {
	d := &Departed{name: name, anyway: true}
	return d, d.Renew(ctx, c)
}

// Expect makes a transaction rest on the node's being gone.
func (d *Departed) Expect(t *store.Txn) {
	t.Expect(api.NodeKey(d.name), d.node)
	t.Expect(api.IdentityKey(d.name), d.identity)
}

// Delete has a transaction delete the Node and the record of whose the name is, so far as they exist, and rest on the node's being gone.
func (d *Departed) Delete(t *store.Txn) {
	d.Expect(t)
	if d.node != 0 {
		t.Delete(api.NodeKey(d.name), d.node)
	}
	if d.identity != 0 {
		t.Delete(api.IdentityKey(d.name), d.identity)
	}
}

// Renew looks whether the node is still gone, after a transaction that rests on it was refused. The error is ErrCameBack where it is not.
func (d *Departed) Renew(ctx context.Context, c *store.Client) error {
	got, _, err := c.Read(ctx, store.Range{Key: api.NodeKey(d.name)}, store.Range{Key: api.IdentityKey(d.name)})
	if err != nil {
		return err
	}
	var node, identity int64
	uid := ""
	for _, kv := range got[0] {
		node = kv.Rev
		if e, err := store.Decode[api.Node](kv); err == nil {
			uid = e.Value.Metadata.UID
		}
	}
	for _, kv := range got[1] {
		identity = kv.Rev
	}
	if !d.anyway && (identity != d.identity || uid != d.uid || (node == 0) != (d.node == 0)) {
		return fmt.Errorf("take back what node %s had: %w", d.name, ErrCameBack)
	}
	d.node, d.identity, d.uid = node, identity, uid
	return nil
}

// Again is Renew before every attempt but the first: see Retry.
func (d *Departed) Again(ctx context.Context, c *store.Client, attempt int) error {
	if d == nil || attempt == 0 {
		return nil
	}
	return d.Renew(ctx, c)
}

// wrote takes in what a transaction that rests on the node's being gone has made of its Node.
func (d *Departed) wrote(changed []store.KV) {
	for _, kv := range changed {
		if kv.Key == api.NodeKey(d.name) {
			d.node = kv.Rev
		}
	}
}
