package modelcheck

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/muslin-cni/muslin/internal/memetcd"
	"github.com/muslin-cni/muslin/internal/register"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
	"github.com/muslin-cni/muslin/pkg/store"
)

// poolCIDR has room for two blocks of four addresses.
func poolCIDR() netip.Prefix { return netip.MustParsePrefix("10.0.0.0/29") }

func poolKey() string { return (*api.IPPool)(nil).KindOf().Key("", "pool") }

// The two blocks.
const (
	Low  = "10.0.0.0/30"
	High = "10.0.0.4/30"
)

// Start is what a cluster holds when the actors begin. Its zero value is three nodes and a pool.
type Start struct {
	Strict    bool              // no addresses are borrowed
	NoProfile bool              // the network's own is missing
	Tunnel    bool              // the pool's nodes have tunnel addresses
	Blocks    map[string]string // who has which block already, claimed an hour ago and empty but for what follows
	Fill      map[string]int    // addresses of a block that containers have, which stay and are alive: named after the block
	Pods      map[string]string // containers that were connected before, by node
}

// Nodes are every cluster's.
func Nodes() []string { return []string{"a", "b", "c"} }

// machineOf is the machine that has a node's name in the beginning.
func machineOf(node string) string { return "machine-" + node }

// builder fills an etcd.
type builder struct {
	ctx context.Context
	c   *store.Client
	err error
}

func put[T api.Value](b *builder, key string, v *T) {
	if b.err != nil {
		return
	}
	if _, err := store.Create(b.ctx, b.c, key, v); err != nil {
		b.err = fmt.Errorf("begin with %s: %w", key, err)
	}
}

// build is the etcd of a start, and the containers that are alive in it with their addresses.
func (s Start) build(ctx context.Context) (memetcd.State, map[string]string, error) {
	etcd := memetcd.New()
	b := &builder{ctx: ctx, c: etcd.Client()}
	ready := true
	info := &api.ClusterInformation{Spec: api.ClusterInformationSpec{DatastoreReady: &ready}}
	info.Metadata.Name = "default"
	put(b, ipam.ClusterKey(), info)
	pool := &api.IPPool{Spec: api.IPPoolSpec{
		CIDR: poolCIDR(), BlockSize: 30, IPIPMode: api.Never, VXLANMode: api.Never, NodeSelector: "all()", AssignmentMode: api.AssignAutomatic,
		AllowedUses: []api.Use{api.UseWorkload, api.UseTunnel},
	}}
	pool.Metadata.Name = "pool"
	if s.Tunnel {
		pool.Spec.VXLANMode = api.Always
	}
	put(b, poolKey(), pool)
	profile := &api.Profile{}
	profile.Metadata.Name = network
	if !s.NoProfile {
		put(b, api.KeyOf(profile), profile)
	}
	cfg := api.DefaultIPAMConfig()
	cfg.StrictAffinity = s.Strict
	put(b, api.IPAMConfigKey, &cfg)
	for _, name := range Nodes() {
		n := &api.Node{}
		n.Metadata.Name = name
		put(b, api.KeyOf(n), n)
		put(b, api.IdentityKey(name), &api.NodeIdentity{MachineID: machineOf(name)})
	}
	alive := map[string]string{}
	for _, cidr := range []string{Low, High} {
		s.block(b, cidr, alive)
	}
	for _, name := range Nodes() {
		s.pod(b, name, alive)
	}
	return etcd.State(), alive, b.err
}

// block makes one block.
func (s Start) block(b *builder, cidr string, alive map[string]string) {
	node, ok := s.Blocks[cidr]
	if !ok || b.err != nil {
		return
	}
	p := netip.MustParsePrefix(cidr)
	v, err := block.New(p, node, noon().Add(-time.Hour))
	if err != nil {
		b.err = err
		return
	}
	for i := range s.Fill[cidr] {
		container := fmt.Sprintf("old%d-%s", i, p.Addr())
		var addrs []netip.Addr
		addrs, v = block.Assign(v, 1, block.Owner{HandleID: handleOf(container), Attrs: map[string]string{api.AttrNode: node}})
		put(b, api.HandleKey(handleOf(container)), &api.Handle{Block: map[string]int{cidr: 1}})
		e := &api.WorkloadEndpoint{Spec: api.WorkloadEndpointSpec{
			Orchestrator: "cni", Node: node, ContainerID: container, Endpoint: "eth0", IPNetworks: []api.Prefix{api.HostPrefix(addrs[0])},
		}}
		e.Metadata.Namespace, e.Metadata.Name = "default", api.WorkloadEndpointName(e.Spec)
		put(b, api.KeyOf(e), e)
		alive[container] = addrs[0].String()
	}
	put(b, api.BlockKey(p), v)
	put(b, api.AffinityKey(node, p), &api.Affinity{State: api.AffinityConfirmed})
}

// pod connects a node's containers that were there before.
func (s Start) pod(b *builder, node string, alive map[string]string) {
	for _, container := range slices.Sorted(maps.Keys(s.Pods)) {
		if s.Pods[container] != node || b.err != nil {
			continue
		}
		reply, err := register.New(handlerConfig(b.c, node)).Add(b.ctx, attachRequest(container))
		if err != nil {
			b.err = err
			return
		}
		alive[container] = reply.Addrs[0].String()
	}
}
