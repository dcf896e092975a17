package ipam

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
	"github.com/muslin-cni/muslin/pkg/store"
)

// View is everything that says who holds which address, at one revision. Each list is in the order of its keys.
type View struct {
	Rev        int64
	Pools      []store.Entry[api.IPPool]
	Nodes      []store.Entry[api.Node]
	Endpoints  []store.Entry[api.WorkloadEndpoint]
	Blocks     []store.Entry[api.Block]
	Affinities []store.Entry[api.Affinity]
	Handles    []store.Entry[api.Handle]
	Unreadable []store.UnreadableError // values of these kinds that are missing above
}

// viewPage is how many keys are read at a time: endpoints and handles are a tenth of a block.
const viewPage = 500

// LoadView reads a View from etcd, page by page, at one revision. The error is the store's; store.ErrCompacted means that etcd was
// compacted meanwhile: begin again.
func LoadView(ctx context.Context, c *store.Client) (View, error) {
	below := func(prefix string) store.Range { return store.Range{Key: prefix, Prefix: true} }
	kvs, rev, err := c.ReadAll(ctx, viewPage,
		below((*api.IPPool)(nil).KindOf().Prefix()), below((*api.Node)(nil).KindOf().Prefix()),
		below((*api.WorkloadEndpoint)(nil).KindOf().Prefix()),
		below(api.BlocksRoot), below(api.HostsRoot), below(api.HandlesRoot))
	if err != nil {
		return View{}, fmt.Errorf("read what holds addresses: %w", err)
	}
	return ViewOf(rev, kvs), nil
}

// ViewOf is the View of what etcd held at a revision. Keys that say nothing of addresses are passed over.
func ViewOf(rev int64, kvs []store.KV) View {
	v := View{Rev: rev}
	for _, kv := range kvs {
		if err := v.add(kv); err != nil {
			v.Unreadable = append(v.Unreadable, store.UnreadableError{Key: kv.Key, Err: err})
		}
	}
	slices.SortFunc(v.Unreadable, func(a, b store.UnreadableError) int { return strings.Compare(a.Key, b.Key) })
	return v
}

// add decodes one value into its list. Keys of other kinds are passed over.
func (v *View) add(kv store.KV) error {
	under := func(prefix string) bool { return strings.HasPrefix(kv.Key, prefix) }
	switch {
	case under((*api.IPPool)(nil).KindOf().Prefix()):
		return addTo(&v.Pools, kv, func(p *api.IPPool) error { return p.Check() })
	case under((*api.Node)(nil).KindOf().Prefix()):
		return addTo(&v.Nodes, kv, nil)
	case under((*api.WorkloadEndpoint)(nil).KindOf().Prefix()):
		return addTo(&v.Endpoints, kv, nil)
	case under(api.BlocksRoot):
		return addTo(&v.Blocks, kv, func(b *api.Block) error { return block.CheckKey(kv.Key, b) })
	case under(api.HandlesRoot):
		return addTo(&v.Handles, kv, nil)
	case under(api.HostsRoot) && strings.Contains(kv.Key[len(api.HostsRoot):], "/"): // without: a marker that the host exists
		return addTo(&v.Affinities, kv, func(*api.Affinity) error {
			_, _, err := api.ParseAffinityKey(kv.Key)
			return err
		})
	}
	return nil
}

// addTo appends the decoded value, unless check finds that it cannot be used. A nil check finds nothing.
func addTo[T api.Value](list *[]store.Entry[T], kv store.KV, check func(*T) error) error {
	e, err := store.Decode[T](kv)
	if err == nil && check != nil {
		err = check(e.Value)
	}
	if err != nil {
		return err
	}
	*list = append(*list, e)
	return nil
}
