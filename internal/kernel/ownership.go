package kernel

import (
	"cmp"
	"slices"
	"strings"
)

// Ownership says which objects are ours by marks that settings choose. The zero value has the usual ones.
type Ownership struct {
	Protocol int      // of our routes; 0: RouteProtocol
	Former   []int    // protocols of routes of ours that were made under other settings
	Prefixes []string // of workloads' devices; nil: WorkloadPrefix
	External bool     // routes of any protocol but the kernel's on workloads' devices count as ours
}

// RouteProtocol is the protocol of routes that are made now.
func (o Ownership) RouteProtocol() int { return cmp.Or(o.Protocol, RouteProtocol) }

// HasProtocol tells whether a route of the protocol is ours wherever it leads. The usual one always is: without an agent the plugin uses it.
func (o Ownership) HasProtocol(p int) bool {
	return p == RouteProtocol || p == o.Protocol && p != 0 || slices.Contains(o.Former, p)
}

// WorkloadPrefixes are the beginnings of the names of workloads' devices.
func (o Ownership) WorkloadPrefixes() []string {
	if len(o.Prefixes) == 0 {
		return []string{WorkloadPrefix}
	}
	return o.Prefixes
}

// Workload tells whether a device is the host's side of a workload.
func (o Ownership) Workload(dev string) bool {
	return slices.ContainsFunc(o.WorkloadPrefixes(), func(p string) bool { return strings.HasPrefix(dev, p) })
}

// Equal tells whether two say the same.
func (o Ownership) Equal(p Ownership) bool {
	return o.RouteProtocol() == p.RouteProtocol() && o.External == p.External &&
		slices.Equal(o.Former, p.Former) && slices.Equal(o.WorkloadPrefixes(), p.WorkloadPrefixes())
}
