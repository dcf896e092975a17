package ipam

import (
	"context"
	"errors"
	"net/netip"
	"strings"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
	"github.com/muslin-cni/muslin/pkg/store"
)

// Facts is what is known of the cluster and of one node when an address is asked for. An entry that does not exist has no Value.
type Facts struct {
	Node         store.Entry[api.Node]
	Cluster      store.Entry[api.ClusterInformation]
	Config       store.Entry[api.IPAMConfig]
	Identity     store.Entry[api.NodeIdentity]    // of the node's name; Rev 0 where none was written
	Pools        []store.Entry[api.IPPool]        // all of them, by name
	Affinities   []store.Entry[api.Affinity]      // the node's own, of both families; one that cannot be read has a Rev and no Value
	Reservations []store.Entry[api.IPReservation] // all of them
	Bad          []error                          // why pools and reservations could not be read, which are missing above
	Err          error                            // why Node, Config or Identity could not be read, without which nothing is given out
}

// Source supplies what a Plan starts from. What it says may be out of date: the commit finds out. All methods may be
// called concurrently.
type Source interface {
	// Facts returns what concerns the node.
	Facts(ctx context.Context, node string) (Facts, error)
	// Blocks returns the blocks of these ranges in the same order. One that does not exist has Rev 0; one that cannot be
	// read, or that block.CheckKey refuses, has a Rev and no Value.
	Blocks(ctx context.Context, cidrs ...netip.Prefix) ([]store.Entry[api.Block], error)
	// Affinity returns a node's claim to a block; one that cannot be read has a Rev and no Value.
	Affinity(ctx context.Context, node string, cidr netip.Prefix) (store.Entry[api.Affinity], error)
	// Survey returns what there is of a family.
	Survey(ctx context.Context, v6 bool) (Survey, error)
}

// Survey is the blocks of a family and the addresses that are in use, all as of one revision.
type Survey struct {
	Blocks []store.Entry[api.Block] // all of them, as Source.Blocks returns them
	InUse  map[netip.Addr]string    // that endpoints have, and nodes for their tunnels: the etcd key of whoever has it
}

// AddEndpoint adds the addresses of an endpoint, if they are of the family.
func (s *Survey) AddEndpoint(v6 bool, e store.Entry[api.WorkloadEndpoint]) {
	for _, n := range e.Value.Spec.IPNetworks {
		s.use(v6, n.Addr(), e.Key)
	}
}

// AddNode adds the tunnel addresses of a node, if they are of the family.
func (s *Survey) AddNode(v6 bool, e store.Entry[api.Node]) {
	for _, t := range TunnelAddrs(e.Value) {
		s.use(v6, t.Addr, e.Key)
	}
}

func (s *Survey) use(v6 bool, a netip.Addr, key string) {
	if !a.IsValid() || a.Is6() != v6 {
		return
	}
	if s.InUse == nil {
		s.InUse = map[netip.Addr]string{}
	}
	s.InUse[a] = key
}

// Etcd is the Source that reads etcd itself each time. Each call sees one revision.
type Etcd struct{ Client *store.Client }

// ClusterKey is the key of the ClusterInformation.
func ClusterKey() string { return (*api.ClusterInformation)(nil).KindOf().Key("", "default") }

// Facts implements Source.
func (s Etcd) Facts(ctx context.Context, node string) (Facts, error) {
	got, _, err := s.Client.Read(ctx, store.Range{Key: api.NodeKey(node)}, store.Range{Key: ClusterKey()}, store.Range{Key: api.IPAMConfigKey},
		below[api.IPPool](), store.Range{Key: api.AffinitiesPrefix(node), Prefix: true}, below[api.IPReservation](), store.Range{Key: api.IdentityKey(node)})
	if err != nil {
		return Facts{}, err
	}
	var f Facts
	if f.Cluster, err = one[api.ClusterInformation](ClusterKey(), got[1]); err != nil {
		return Facts{}, err
	}
	var errs [3]error
	f.Node, errs[0] = one[api.Node](api.NodeKey(node), got[0])
	f.Config, errs[1] = one[api.IPAMConfig](api.IPAMConfigKey, got[2])
	f.Identity, errs[2] = one[api.NodeIdentity](api.IdentityKey(node), got[6])
	f.Err = errors.Join(errs[:]...)
	f.Pools = readable[api.IPPool](got[3], &f.Bad)
	f.Reservations = readable[api.IPReservation](got[5], &f.Bad)
	for _, kv := range got[4] {
		e, _ := store.Decode[api.Affinity](kv) // unreadable: an entry without a Value
		f.Affinities = append(f.Affinities, e)
	}
	return f, nil
}

// below is the range of all objects of a kind.
func below[T any, P interface {
	*T
	api.Object
}]() store.Range {
	return store.Range{Key: P(nil).KindOf().Prefix(), Prefix: true}
}

// readable decodes what can be, and adds why the rest cannot.
func readable[T api.Value](kvs []store.KV, bad *[]error) []store.Entry[T] {
	var out []store.Entry[T]
	for _, kv := range kvs {
		e, err := store.Decode[T](kv)
		if err != nil {
			*bad = append(*bad, err)
			continue
		}
		out = append(out, e)
	}
	return out
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

// claimsPage is how many claims are read at a time.
const claimsPage = 5000

// blocksPage is how many blocks are read at a time: 200 of the largest are below 256 MB, of the usual ones 4 MB.
const blocksPage = 200

// AllBlocks returns every block of the family, as Blocks does, at one revision.
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

// Affinity implements Source.
func (s Etcd) Affinity(ctx context.Context, node string, cidr netip.Prefix) (store.Entry[api.Affinity], error) {
	key := api.AffinityKey(node, cidr)
	got, _, err := s.Client.Read(ctx, store.Range{Key: key})
	if err != nil {
		return store.Entry[api.Affinity]{Key: key}, err
	}
	e, _ := store.One[api.Affinity](key, got[0]) // unreadable: an entry without a Value
	return e, nil
}

// Survey implements Source. It reads every block, endpoint and node: only claims of blocks pay for it.
func (s Etcd) Survey(ctx context.Context, v6 bool) (Survey, error) {
	nodes, endpoints := below[api.Node](), below[api.WorkloadEndpoint]()
	got, _, err := s.Client.ReadAll(ctx, blocksPage, store.Range{Key: api.BlocksPrefix(v6), Prefix: true}, endpoints, nodes)
	if err != nil {
		return Survey{}, err
	}
	var out Survey
	for _, kv := range got {
		switch {
		case strings.HasPrefix(kv.Key, nodes.Key):
			if e, err := store.Decode[api.Node](kv); err == nil {
				out.AddNode(v6, e)
			}
		case strings.HasPrefix(kv.Key, endpoints.Key):
			if e, err := store.Decode[api.WorkloadEndpoint](kv); err == nil {
				out.AddEndpoint(v6, e)
			}
		default:
			out.Blocks = append(out.Blocks, blockOf(kv))
		}
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

// one is store.One, but that what cannot be read is as if it did not exist: the caller says so, and a transaction that rests on it conflicts.
func one[T api.Value](key string, kvs []store.KV) (store.Entry[T], error) {
	e, err := store.One[T](key, kvs)
	if err != nil {
		return store.Entry[T]{Key: key}, err
	}
	return e, nil
}
