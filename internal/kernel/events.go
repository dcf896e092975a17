package kernel

import "net/netip"

// Events is what the kernel has reported about objects with our marks, whoever changed them: for every object only its latest
// state, nil if it is gone. A report is a reason to look again and never itself a fact to act on.
type Events struct {
	Lost       bool  // reports were lost: anything may have changed
	RoutesLost bool  // the kernel may have dropped IPv4 routes, which it does not report one by one
	Down       []Dev // were set down: the kernel has dropped their routes and neighbours
	Gone       []Dev // were removed, and with them all that hung on them

	Links  map[string]*Link
	Addrs  map[AddrKey]*struct{}
	Neighs map[NeighKey]*MAC
	FDB    map[FDBKey]*netip.Addr
	Routes map[RouteKey]*Route
	Rules  map[Rule]*struct{}

	Sysctls map[SysctlKey]string // of workloads' devices, of our own and of the whole host: those few that the kernel reports
}

// NewEvents returns events that say nothing, ready to be added to.
func NewEvents() Events {
	return Events{
		Links:  map[string]*Link{},
		Addrs:  map[AddrKey]*struct{}{},
		Neighs: map[NeighKey]*MAC{},
		FDB:    map[FDBKey]*netip.Addr{},
		Routes: map[RouteKey]*Route{},
		Rules:  map[Rule]*struct{}{},

		Sysctls: map[SysctlKey]string{},
	}
}

// Empty tells whether nothing was reported.
func (e Events) Empty() bool {
	return !e.Lost && !e.RoutesLost && e.Len() == 0
}

// Len is how many reports there are.
func (e Events) Len() int {
	return len(e.Down) + len(e.Gone) + len(e.Links) + len(e.Addrs) + len(e.Neighs) + len(e.FDB) + len(e.Routes) + len(e.Rules) + len(e.Sysctls)
}
