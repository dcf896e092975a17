package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
)

const (
	writesPerTxn = 128 // as many as etcd takes
	remotePrefix = "remote-"
	remoteSubnet = "172.30.1.1/12" // the lab node's address in a subnet that holds those of all remote nodes
)

// remoteBlocks is the part of the pool in which the remote nodes have their blocks.
func remoteBlocks() netip.Prefix { return netip.MustParsePrefix("10.128.0.0/9") }

// cluster writes remote nodes that exist only in etcd.
type cluster struct {
	etcd *clientv3.Client
	root string // before every key: where nobody looks, if not ""
	pods int    // addresses in use in each block
}

func dialEtcd() (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: strings.Split(os.Getenv("ETCD_ENDPOINTS"), ","), DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
}

func remoteName(i int) string { return fmt.Sprintf("%s%05d", remotePrefix, i) }

func remoteAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{172, 20, byte(i >> 8), byte(i)}) }

// tunnelAddr is out of a block that nobody has: it is heeded where there is a tunnel.
func tunnelAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 127, byte(i >> 8), byte(i)}) }

// remoteBlock is the i-th block of 64 addresses.
func remoteBlock(i int) netip.Prefix {
	at := i << 6
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 128 | byte(at>>16), byte(at >> 8), byte(at)}), 26)
}

// node is the write that makes the i-th node.
func (c cluster) node(i int) (clientv3.Op, error) {
	n := &api.Node{Spec: api.NodeSpec{BGP: &api.NodeBGP{IPv4Address: api.Prefix{Prefix: netip.PrefixFrom(remoteAddr(i), 12)}}}}
	n.Spec.IPv4VXLANTunnelAddr = tunnelAddr(i)
	n.Metadata.Name = remoteName(i)
	raw, err := api.Encode(n, nil)
	return clientv3.OpPut(c.root+api.KeyOf(n), string(raw)), err
}

// block is the write that makes a block of the i-th node.
func (c cluster) block(i int, cidr netip.Prefix) (clientv3.Op, error) {
	v, err := block.New(cidr, remoteName(i), time.Unix(1700000000, 0))
	if err != nil {
		return clientv3.Op{}, err
	}
	for pod := range c.pods {
		_, v = block.Assign(v, 1, block.Owner{HandleID: api.PodHandle("k8s-pod-network", fmt.Sprintf("%05d%02d%057d", i, pod, 0)), Attrs: map[string]string{
			api.AttrNode: remoteName(i), api.AttrNamespace: "default", api.AttrPod: fmt.Sprintf("web-%d-%d", i, pod), api.AttrTimestamp: "2026-01-01 00:00:00 +0000 UTC",
		}})
	}
	raw, err := api.Encode(v, nil)
	return clientv3.OpPut(c.root+api.BlockKey(cidr), string(raw)), err
}

// writes make so many nodes, and then their blocks.
func (c cluster) writes(n int) ([]clientv3.Op, error) {
	ops := make([]clientv3.Op, 2*n)
	for i := range n {
		var err error
		if ops[i], err = c.node(i); err != nil {
			return nil, err
		}
		if ops[n+i], err = c.block(i, remoteBlock(i)); err != nil {
			return nil, err
		}
	}
	return ops, nil
}

// endpoints make the endpoints of the pods of so many nodes.
func (c cluster) endpoints(n int) (ops []clientv3.Op, err error) {
	for i := range n {
		for pod := range c.pods {
			at := remoteBlock(i).Addr()
			for range pod {
				at = at.Next()
			}
			name := fmt.Sprintf("web-%d-%d", i, pod)
			e := &api.WorkloadEndpoint{Spec: api.WorkloadEndpointSpec{
				Node: remoteName(i), Orchestrator: "k8s", Endpoint: "eth0", Pod: name, ContainerID: fmt.Sprintf("%05d%02d%057d", i, pod, 0),
				InterfaceName: fmt.Sprintf("cali%05d%02d", i, pod), Profiles: []string{"kns.default", "ksa.default.default"}, IPNetworks: []api.Prefix{api.HostPrefix(at)},
			}}
			e.Metadata.Namespace, e.Metadata.Name = "default", fmt.Sprintf("%s-k8s-web--%d--%d-eth0", strings.ReplaceAll(remoteName(i), "-", "--"), i, pod)
			e.Metadata.Labels = map[string]string{"app": "web", "projectcalico.org/namespace": "default", "projectcalico.org/orchestrator": "k8s", "projectcalico.org/serviceaccount": "default"}
			raw, err := api.Encode(e, nil)
			if err != nil {
				return nil, err
			}
			ops = append(ops, clientv3.OpPut(c.root+api.KeyOf(e), string(raw)))
		}
	}
	return ops, nil
}

// commit makes writes one after the other, in transactions as large as etcd takes.
func (c cluster) commit(ctx context.Context, ops []clientv3.Op) error {
	for part := range slices.Chunk(ops, writesPerTxn) {
		if _, err := c.etcd.Txn(ctx).Then(part...).Commit(); err != nil {
			return err
		}
	}
	return nil
}

// clear removes all nodes with their blocks, the blocks first.
func (c cluster) clear(ctx context.Context) error {
	for _, prefix := range []string{api.BlocksPrefix(false), (*api.Node)(nil).KindOf().Prefix() + remotePrefix} {
		if _, err := c.etcd.Delete(ctx, c.root+prefix, clientv3.WithPrefix()); err != nil {
			return err
		}
	}
	return nil
}
