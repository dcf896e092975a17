package show

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/muslin-cni/muslin/pkg/api"
)

// column is one column of a kind's table.
type column struct {
	head  string
	path  string           // in the object's JSON
	text  func(any) string // of what is there; nil where there is nothing
	usual bool             // also in the narrow table
	asn   bool             // an autonomous system's number, which the cluster has where the node has none
}

// always is a column of the narrow and of the wide table.
func always(head, path string, text ...func(any) string) column {
	c := wide(head, path, text...)
	c.usual = true
	return c
}

// wide is a column of the wide table.
func wide(head, path string, text ...func(any) string) column {
	c := column{head: head, path: path, text: plain}
	if len(text) > 0 {
		c.text = text[0]
	}
	return c
}

func name() column            { return always("NAME", "metadata.name") }
func namespaceColumn() column { return always("NAMESPACE", "metadata.namespace") }

// columnsOf are all columns of a kind, in the order of the wide table.
func columnsOf(k api.Kind) []column {
	policy := []column{name(), always("TIER", "spec.tier"), wide("ORDER", "spec.order"), wide("SELECTOR", "spec.selector")}
	yes := or("false")
	table := map[string][]column{
		"Node": {name(), {head: "ASN", text: plain, asn: true}, wide("IPV4", "spec.bgp.ipv4Address"), wide("IPV6", "spec.bgp.ipv6Address")},
		"IPPool": {
			name(), always("CIDR", "spec.cidr"), wide("NAT", "spec.natOutgoing", yes), wide("IPIPMODE", "spec.ipipMode"),
			wide("VXLANMODE", "spec.vxlanMode"), wide("DISABLED", "spec.disabled", yes), wide("DISABLEBGPEXPORT", "spec.disableBGPExport", yes),
			always("SELECTOR", "spec.nodeSelector"), wide("ASSIGNMENTMODE", "spec.assignmentMode"),
		},
		"BGPPeer": {name(), always("PEERIP", "spec.peerIP"), always("NODE", "spec", peerNode), always("ASN", "spec.asNumber", or("0"))},
		"BGPConfiguration": {
			name(), always("LOGSEVERITY", "spec.logSeverityScreen"), always("MESHENABLED", "spec.nodeToNodeMeshEnabled", or("-")),
			always("ASNUMBER", "spec.asNumber", or("-")),
		},
		"BGPFilter": {
			name(), always("NUMEXPORTV4", "spec.exportV4", count), always("NUMIMPORTV4", "spec.importV4", count),
			always("NUMEXPORTV6", "spec.exportV6", count), always("NUMIMPORTV6", "spec.importV6", count),
		},
		"WorkloadEndpoint": {
			wide("NAME", "metadata.name"), always("WORKLOAD", "spec", workload), always("NODE", "spec.node"), always("NETWORKS", "spec.ipNetworks"),
			always("INTERFACE", "spec.interfaceName"), wide("PROFILES", "spec.profiles"), wide("NATS", "spec.ipNATs", nats),
		},
		"CalicoNodeStatus": {
			name(), always("NODE", "spec.node"), always("CLASSES", "spec.classes"), always("UPDATED", "status.lastUpdated"),
			wide("PERIOD", "spec.updatePeriodSeconds"),
		},
		"HostEndpoint": {
			name(), always("NODE", "spec.node"), wide("INTERFACE", "spec.interfaceName"), wide("IPS", "spec.expectedIPs"),
			wide("PROFILES", "spec.profiles"),
		},
		"NetworkPolicy": policy, "GlobalNetworkPolicy": policy,
		"StagedNetworkPolicy": policy, "StagedGlobalNetworkPolicy": policy, "StagedKubernetesNetworkPolicy": policy,
		"NetworkSet":       {name(), wide("NETS", "spec.nets", short)},
		"GlobalNetworkSet": {name(), wide("NETS", "spec.nets", short)},
		"Profile":          {name(), wide("LABELS", "spec.labelsToApply")},
		"Tier":             {name(), always("ORDER", "spec.order")},
		"IPReservation":    {name(), wide("CIDRS", "spec.reservedCIDRs", short)},
		"ClusterInformation": {
			name(), always("CLUSTERGUID", "spec.clusterGUID"), always("CLUSTERTYPE", "spec.clusterType"),
			always("CALICOVERSION", "spec.calicoVersion"), always("DATASTOREREADY", "spec.datastoreReady"),
		},
	}
	if columns, ok := table[k.Name]; ok {
		return columns
	}
	return []column{name()}
}

// find is the part of a JSON tree at a path of field names; nil if there is none. "" is the whole.
func find(tree any, path string) any {
	for key := range strings.SplitSeq(path, ".") {
		if key == "" {
			return tree
		}
		m, ok := tree.(map[string]any)
		if !ok {
			return nil
		}
		tree = m[key]
	}
	return tree
}

// plain is a scalar as it stands in JSON, a list with commas, and an object as k=v, sorted, with commas.
func plain(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return v
	case json.Number:
		return v.String()
	case bool:
		return strconv.FormatBool(v)
	case []any:
		parts := make([]string, len(v))
		for i, e := range v {
			parts[i] = plain(e)
		}
		return strings.Join(parts, ",")
	case map[string]any:
		var parts []string
		for _, key := range slices.Sorted(maps.Keys(v)) {
			parts = append(parts, key+"="+plain(v[key]))
		}
		return strings.Join(parts, ",")
	}
	return fmt.Sprint(v)
}

// or is plain, with a text for what is not there.
func or(absent string) func(any) string {
	return func(v any) string {
		if v == nil {
			return absent
		}
		return plain(v)
	}
}

func short(v any) string { return truncate(plain(v), 80) }

func count(v any) string {
	list, _ := v.([]any)
	return strconv.Itoa(len(list))
}

func peerNode(spec any) string {
	for _, key := range []string{"node", "nodeSelector"} {
		if v := plain(find(spec, key)); v != "" {
			return v
		}
	}
	return "(global)"
}

func workload(spec any) string {
	if v := plain(find(spec, "workload")); v != "" {
		return v
	}
	return plain(find(spec, "pod"))
}

func nats(v any) string {
	list, _ := v.([]any)
	parts := make([]string, len(list))
	for i, e := range list {
		parts[i] = plain(find(e, "externalIP")) + "->" + plain(find(e, "internalIP"))
	}
	return strings.Join(parts, ",")
}
