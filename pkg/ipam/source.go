package ipam

import (
	"context"
	"errors"
	"net/netip"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
	"github.com/muslin-cni/muslin/pkg/store"
)

// Facts is what is known of the cluster and of one node when an address is asked for. An entry that does not exist has no Value.
type Facts struct {
	Node       store.Entry[api.Node]
	Cluster    store.Entry[api.ClusterInformation]
	Config     store.Entry[api.IPAMConfig]
	Identity   store.Entry[api.NodeIdentity] // of the node's name; Rev 0 where none was written
	Pools      []store.Entry[api.IPPool]     // all of them, by name
	Affinities []store.Entry[api.Affinity]   // the node's own, of both families; one that cannot be read has a Rev and no Value
	Bad        []error                       // why pools could not be read, which are missing above
}

// Source supplies what a Plan starts from. What it says may be out of date: the commit finds out. All methods may be
// called concurrently.
type Source interface {
	// Facts returns what concerns the node.
	Facts(ctx context.Context, node string) (Facts, error)
	// Blocks returns the blocks of these ranges in the same order. One that does not exist has Rev 0; one that cannot be
	// read, or that block.CheckKey refuses, has a Rev and no Value.
	Blocks(ctx context.Context, cidrs ...netip.Prefix) ([]store.Entry[api.Block], error)
	// AllBlocks returns every block of the family, likewise.
	AllBlocks(ctx context.Context, v6 bool) ([]store.Entry[api.Block], error)
}

// Etcd is the Source that reads etcd itself each time. Each call sees one revision.
type Etcd struct{ Client *store.Client }

// ClusterKey is the key of the ClusterInformation.
func ClusterKey() string { return (*api.ClusterInformation)(nil).KindOf().Key("", "default") }

// Facts implements Source.
func (s Etcd) Facts(ctx context.Context, node string) (Facts, error) {
	nodeKey, clusterKey := (*api.Node)(nil).KindOf().Key("", node), ClusterKey()
	got, _, err := s.Client.Read(ctx, store.Range{Key: nodeKey}, store.Range{Key: clusterKey}, store.Range{Key: api.IPAMConfigKey},
		store.Range{Key: (*api.IPPool)(nil).KindOf().Prefix(), Prefix: true}, store.Range{Key: api.AffinitiesPrefix(node), Prefix: true},
		store.Range{Key: api.IdentityKey(node)})
	if err != nil {
		return Facts{}, err
	}
	var f Facts
	var errs [4]error
	f.Node, errs[0] = one[api.Node](nodeKey, got[0])
	f.Cluster, errs[1] = one[api.ClusterInformation](clusterKey, got[1])
	f.Config, errs[2] = one[api.IPAMConfig](api.IPAMConfigKey, got[2])
	f.Identity, errs[3] = one[api.NodeIdentity](api.IdentityKey(node), got[5])
	if err := errors.Join(errs[:]...); err != nil {
		return Facts{}, err
	}
	for _, kv := range got[3] {
		pool, err := store.Decode[api.IPPool](kv)
		if err != nil {
			f.Bad = append(f.Bad, err)
			continue
		}
		f.Pools = append(f.Pools, pool)
	}
	for _, kv := range got[4] {
		e, _ := store.Decode[api.Affinity](kv) // unreadable: an entry without a Value
		f.Affinities = append(f.Affinities, e)
	}
	return f, nil
}

// maxRanges bounds the ranges of one read: etcd takes 128 operations in a transaction.
const maxRanges = 100

// Blocks implements Source. More than 100 ranges take several requests, and may be of several revisions.
func (s Etcd) Blocks(ctx context.Context, cidrs ...netip.Prefix) ([]store.Entry[api.Block], error) {
	out := make([]store.Entry[api.Block], 0, len(cidrs))
	for len(cidrs) > 0 {
		part := cidrs[:min(len(cidrs), maxRanges)]
		cidrs = cidrs[len(part):]
		ranges := make([]store.Range, len(part))
		for i, c := range part {
			ranges[i].Key = api.BlockKey(c)
		}
		got, _, err := s.Client.Read(ctx, ranges...)
		if err != nil {
			return nil, err
		}
		for i, kvs := range got {
			kv := store.KV{Key: ranges[i].Key}
			if len(kvs) > 0 {
				kv = kvs[0]
			}
			out = append(out, blockOf(kv))
		}
	}
	return out, nil
}

// blocksPage is how many blocks are read at a time: 200 of the largest are below 256 MB, of the usual ones 4 MB.
const blocksPage = 200

// AllBlocks implements Source.
func (s Etcd) AllBlocks(ctx context.Context, v6 bool) ([]store.Entry[api.Block], error) {
	got, _, err := s.Client.ReadAll(ctx, blocksPage, store.Range{Key: api.BlocksPrefix(v6), Prefix: true})
	if err != nil {
		return nil, err
	}
	out := make([]store.Entry[api.Block], len(got))
	for i, kv := range got {
		out[i] = blockOf(kv)
	}
	return out, nil
}

// blockOf decodes a block. One that cannot be read, or that belongs under another key, is an entry without a Value.
func blockOf(kv store.KV) store.Entry[api.Block] {
	e, err := store.Decode[api.Block](kv)
	if err != nil || e.Exists() && block.CheckKey(kv.Key, e.Value) != nil {
		return store.Entry[api.Block]{Key: kv.Key, Rev: kv.Rev}
	}
	return e
}

// one decodes the value of a single key, which may not exist.
func one[T api.Value](key string, kvs []store.KV) (store.Entry[T], error) {
	if len(kvs) == 0 {
		return store.Entry[T]{Key: key}, nil
	}
	return store.Decode[T](kvs[0])
}
