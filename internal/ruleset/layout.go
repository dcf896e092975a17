// Package ruleset lays policy out as one nftables table: what internal/policy says a node has to enforce, as chains, sets and maps.
//
// A packet's way through the table:
//
//   - Marks. An nft verdict leaves one chain; that something accepted a packet, or passed it to the next tier, has to outlive the
//     policy's chain. Two bits of the packet's mark say so. They are cleared where a packet enters the host or leaves a process, and again
//     before each list of policies: an accept on the way out of one pod must not count on the way into another. A deny is a drop in
//     place.
//   - Dispatch. An interface's name leads by one lookup in a verdict map to the list of policies that governs it: wl-from and wl-to for workloads,
//     hep-… for hosts' endpoints, a map for each place where these are asked. Endpoints that are governed alike share the list, so a pod
//     costs elements of maps and sets and no chain.
//   - Lists. gi-<list>-t0 (ingress; ge- is egress) jumps to the chains of its policies, pi-<policy>, in order, and looks at the mark
//     after each. A further chain of the list, -t1 and so on, begins where a Pass leads.
//   - Rules. One of a policy is one or more of nft: a family each, and each alternative that nft cannot say in one. What it counts is in
//     a counter of its own, r-<rule>, which outlives changes around it. Denials go by d-<rule>, which reports and drops.
//   - Limits. What a workload's traffic is limited to is asked before all that, and after it: see limits.go.
//   - Sets. Members of selectors are in hash sets, a4- and a6-, real CIDRs among them in interval sets beside these, n4- and n6-, addresses with ports in
//     p4- and p6-. Lists of nets and ports in rules are sets named after their content, k4-, k6- and kp-.
//
// Names of chains cover their content (policies and lists are known by hashes), so a change makes new chains and rewrites few.
package ruleset

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/muslin-cni/muslin/internal/nftable"
	"github.com/muslin-cni/muslin/internal/policy"
)

// Table is the name of the table.
const Table = "muslin"

// Layout is the table of one node's policy, kept up to date. It is for one goroutine. What it holds depends on what it was told last, not on
// the way there.
type Layout struct {
	ed       *nftable.Editor
	settings Settings
	devices  map[string][]netip.Addr
	static   bool // the chains of static.go are to be laid out anew

	counted  refs // counters, by rule
	denied   refs // chains of denials, by rule
	constant refs // sets of nets and ports in rules

	sets      map[policy.SetID]*setState
	policies  map[policy.PolicyID]*policyState
	lists     map[policy.ListID]*listState
	endpoints map[policy.EndpointKey]*policy.Endpoint
	ifaces    map[string][]policy.EndpointKey // workloads' of that interface, sorted: the last has it
	laid      map[string]*policy.Endpoint     // whose elements each interface has in the table
	spoofable map[string][]netip.Prefix       // by interface, where there are any

	limited     map[string]policy.Limits // workloads' interfaces that have some
	limits      bool                     // what limits.go writes is to be laid out anew
	limitChains map[string]*nftable.Chain
	asked       [limitPlaces]bool // where some workload has a limit
	crowds      map[string]bool   // the sets in which connections are counted

	staticNames map[string]*nftable.Chain // what putStaticChains has put
	entries     map[string]entry          // chains that lead from hosts' endpoints into lists, by name
	used        [places]bool              // where there are hosts' endpoints to ask
	every       [places]string            // the entry of devices without an endpoint of their own, "" if there is none
}

// New returns the layout of a node without any policy. Settings are kept and not to be modified.
func New(s Settings) *Layout {
	l := &Layout{
		ed: nftable.NewEditor(Table), settings: s, static: true,
		counted: refs{}, denied: refs{}, constant: refs{}, entries: map[string]entry{},
		sets: map[policy.SetID]*setState{}, policies: map[policy.PolicyID]*policyState{}, lists: map[policy.ListID]*listState{},
		endpoints: map[policy.EndpointKey]*policy.Endpoint{}, ifaces: map[string][]policy.EndpointKey{},
		laid: map[string]*policy.Endpoint{}, spoofable: map[string][]netip.Prefix{}, limited: map[string]policy.Limits{}, limits: true,
	}
	l.putStaticSets()
	return l
}

// Of returns the table of a whole model.
func Of(s Settings, devices map[string][]netip.Addr, m policy.Model) *nftable.Table {
	l := New(s)
	l.SetDevices(devices)
	l.Update(Whole(m))
	l.Take()
	return l.ed.Table()
}

// Whole returns the update that makes a model from nothing.
func Whole(m policy.Model) policy.Update {
	u := policy.Update{Endpoints: m.Endpoints, Lists: m.Lists, Policies: m.Policies, Sets: map[policy.SetID]policy.SetChange{}}
	for id, s := range m.Sets {
		u.Sets[id] = policy.SetChange{Set: &policy.Set{ID: s.ID, Kind: s.Kind, Text: s.Text}, Added: s.Members}
	}
	return u
}

// Table returns the table as it stands after the last Take. It is the layout's own: nobody else may change it, and the next
// change does.
func (l *Layout) Table() *nftable.Table { return l.ed.Table() }

// Take returns what has changed in the table since the last call.
func (l *Layout) Take() nftable.Delta {
	if l.limits {
		l.putLimits()
		l.limits = false
	}
	if l.static {
		l.putStaticChains()
		l.static = false
	}
	return l.ed.Take()
}

// SetDevices says which addresses the host's devices have, for hosts' endpoints that name addresses instead of a device. The map is kept
// and not to be modified. Workloads' devices need not be in it.
func (l *Layout) SetDevices(devices map[string][]netip.Addr) {
	if maps.EqualFunc(l.devices, devices, slices.Equal[[]netip.Addr]) {
		return
	}
	l.devices = devices
	l.putHosts()
}

// SetSettings replaces the settings. Those that every rule depends on (MarkMask, AlsoAccept, LogGroup, LogRate, Syslog, LogPrefix, Reject) lay
// everything out anew.
func (l *Layout) SetSettings(s Settings) {
	old := l.settings
	l.settings = s
	l.static, l.limits = true, true
	l.putStaticSets()
	if old.rendering() == s.rendering() {
		return
	}
	for id := range l.denied {
		l.putDenial(policy.RuleID(id))
	}
	for _, st := range l.policies {
		l.render(st)
	}
	for _, st := range l.lists {
		l.putList(st.list)
	}
	l.putHosts()
}

// Update takes over a change of the model.
func (l *Layout) Update(u policy.Update) {
	reshaped := map[policy.PolicyID]bool{}
	for id, c := range u.Sets {
		if !c.Gone {
			l.changeSet(id, c, reshaped)
		}
	}
	for _, p := range u.Policies {
		if p != nil {
			l.putPolicy(p)
		}
	}
	for id := range reshaped {
		if p, differs := u.Policies[id]; !differs || p != nil {
			l.render(l.policies[id])
		}
	}
	for _, list := range u.Lists {
		if list != nil {
			l.putList(list)
		}
	}
	l.changeEndpoints(u.Endpoints)
	l.drop(u)
}

// drop removes what is gone, what refers first.
func (l *Layout) drop(u policy.Update) {
	for id, list := range u.Lists {
		if list == nil {
			l.dropList(id)
		}
	}
	for id, p := range u.Policies {
		if p == nil {
			l.dropPolicy(id)
		}
	}
	for id, c := range u.Sets {
		if c.Gone {
			l.dropSet(id)
		}
	}
}

// refs counts who needs a thing, by its name.
type refs map[string]int

// take counts one more and tells whether that is the first.
func (r refs) take(name string) bool {
	r[name]++
	return r[name] == 1
}

// release counts one less and tells whether that was the last.
func (r refs) release(name string) bool {
	if r[name]--; r[name] > 0 {
		return false
	}
	delete(r, name)
	return true
}
