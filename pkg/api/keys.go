package api

import (
	"fmt"
	"net/netip"
	"strings"
)

// Roots of the key space.
const (
	Root          = "/calico/"
	ResourcesRoot = Root + "resources/v3/projectcalico.org/"
	IPAMRoot      = Root + "ipam/v2/"
	BlocksRoot    = IPAMRoot + "assignment/"
	HandlesRoot   = IPAMRoot + "handle/"
	HostsRoot     = IPAMRoot + "host/"
	IPAMConfigKey = IPAMRoot + "config"
)

// NodeKey is the etcd key of a Node.
func NodeKey(name string) string { return (*Node)(nil).KindOf().Key("", name) }

// BlockKey is the etcd key of a block.
func BlockKey(cidr netip.Prefix) string {
	return BlocksRoot + family(cidr.Addr()) + "/block/" + dashed(cidr)
}

// BlocksPrefix is the key prefix of all blocks of a family.
func BlocksPrefix(v6 bool) string { return BlocksRoot + familyName(v6) + "/block/" }

// AffinityKey is the etcd key of a node's claim to a block.
func AffinityKey(node string, cidr netip.Prefix) string {
	return AffinitiesPrefix(node) + family(cidr.Addr()) + "/block/" + dashed(cidr)
}

// OwnerKey is the etcd key of the claim that goes with a Block.Affinity, "host:<node>" or "virtual:<name>"; "" for any other text.
func OwnerKey(affinity string, cidr netip.Prefix) string {
	kind, name, ok := strings.Cut(affinity, ":")
	if !ok || name == "" || kind != "host" && kind != "virtual" {
		return ""
	}
	return IPAMRoot + kind + "/" + name + "/" + family(cidr.Addr()) + "/block/" + dashed(cidr)
}

// AffinitiesPrefix is the key prefix of a node's claims, of both families. The trailing slash keeps node-1 apart from node-10.
func AffinitiesPrefix(node string) string { return HostsRoot + node + "/" }

// HandleKey is the etcd key of a handle.
func HandleKey(id string) string { return HandlesRoot + id }

// WorkloadEndpointsPrefix is the key prefix of the endpoints of one workload on one node, whatever the interface.
// A pod "web" and a pod "web--1" share it: compare the parsed spec as well.
func WorkloadEndpointsPrefix(namespace, node, orchestrator, id string) string {
	return (*WorkloadEndpoint)(nil).KindOf().Key(namespace, endpointNamePrefix(node, orchestrator, id))
}

// ParseBlockKey is the inverse of BlockKey.
func ParseBlockKey(key string) (netip.Prefix, error) {
	rest, ok := strings.CutPrefix(key, BlocksRoot)
	if !ok {
		return netip.Prefix{}, fmt.Errorf("parse block key %q: not below %s", key, BlocksRoot)
	}
	return parseBlockPath(key, rest)
}

// ParseAffinityKey is the inverse of AffinityKey.
func ParseAffinityKey(key string) (node string, cidr netip.Prefix, err error) {
	rest, ok := strings.CutPrefix(key, HostsRoot)
	if !ok {
		return "", netip.Prefix{}, fmt.Errorf("parse affinity key %q: not below %s", key, HostsRoot)
	}
	node, rest, ok = strings.Cut(rest, "/")
	if !ok || node == "" {
		return "", netip.Prefix{}, fmt.Errorf("parse affinity key %q: no block in it", key)
	}
	cidr, err = parseBlockPath(key, rest)
	return node, cidr, err
}

// parseBlockPath reads "ipv4/block/10.0.0.0-26".
func parseBlockPath(key, path string) (netip.Prefix, error) {
	parts := strings.Split(path, "/")
	if len(parts) != 3 || parts[1] != "block" {
		return netip.Prefix{}, fmt.Errorf("parse key %q: no block in it", key)
	}
	i := strings.LastIndexByte(parts[2], '-')
	if i < 0 {
		return netip.Prefix{}, fmt.Errorf("parse key %q: no prefix length in %q", key, parts[2])
	}
	cidr, err := netip.ParsePrefix(parts[2][:i] + "/" + parts[2][i+1:])
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("parse key %q: %w", key, err)
	}
	if family(cidr.Addr()) != parts[0] {
		return netip.Prefix{}, fmt.Errorf("parse key %q: %v is not %s", key, cidr, parts[0])
	}
	return cidr, nil
}

func dashed(cidr netip.Prefix) string { return strings.Replace(cidr.String(), "/", "-", 1) }

func family(a netip.Addr) string { return familyName(a.Is6()) }

func familyName(v6 bool) string {
	if v6 {
		return "ipv6"
	}
	return "ipv4"
}
