package ruleset

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/muslin-cni/muslin/internal/nftable"
	"github.com/muslin-cni/muslin/internal/policy"
)

// everyDevice is the interface of a host's endpoint that is for all devices without one of their own.
const everyDevice = "*"

// longestName is how long a device's name may be: IFNAMSIZ of linux/if.h, which counts a NUL.
const longestName = 15

// changeEndpoints takes over changed endpoints.
func (l *Layout) changeEndpoints(changed map[policy.EndpointKey]*policy.Endpoint) {
	ifaces, hosts := map[string]bool{}, false
	for key, e := range changed {
		old := l.endpoints[key]
		if e == nil {
			delete(l.endpoints, key)
		} else {
			l.endpoints[key] = e
		}
		if key.Kind == policy.Host {
			hosts = true
			continue
		}
		if old != nil {
			l.claim(old, false)
			ifaces[old.Interface] = true
		}
		if e != nil {
			l.claim(e, true)
			ifaces[e.Interface] = true
		}
	}
	for iface := range ifaces {
		l.putWorkload(iface)
	}
	if hosts {
		l.putHosts()
	}
}

// claim notes that an endpoint is for its interface, or that it no longer is.
func (l *Layout) claim(e *policy.Endpoint, claims bool) {
	keys := l.ifaces[e.Interface]
	at, found := slices.BinarySearchFunc(keys, e.Key, compareKeys)
	switch {
	case claims && !found:
		keys = slices.Insert(keys, at, e.Key)
	case !claims && found:
		keys = slices.Delete(keys, at, at+1)
	}
	if len(keys) == 0 {
		delete(l.ifaces, e.Interface)
		return
	}
	l.ifaces[e.Interface] = keys
}

func compareKeys(a, b policy.EndpointKey) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// putWorkload writes the elements of one interface: those of the endpoint whose key sorts last.
func (l *Layout) putWorkload(iface string) {
	if iface == "" || len(iface) > longestName {
		return // no device's name; those that begin alike would be one key
	}
	if old := l.laid[iface]; old != nil {
		l.workloadElems(old, l.ed.DropElem)
		delete(l.laid, iface)
	}
	var spoofable []netip.Prefix
	var limits policy.Limits
	if keys := l.ifaces[iface]; len(keys) > 0 {
		e := l.endpoints[keys[len(keys)-1]]
		l.laid[iface] = e
		l.workloadElems(e, l.ed.PutElem)
		spoofable, limits = e.Spoofable, e.Limits
	}
	l.limit(iface, limits)
	if !slices.Equal(l.spoofable[iface], spoofable) {
		l.static = true
		l.spoofable[iface] = spoofable
	}
	if len(spoofable) == 0 {
		delete(l.spoofable, iface)
	}
}

func (l *Layout) workloadElems(e *policy.Endpoint, do func(string, nftable.Elem)) {
	key := nftable.IfaceKey(e.Interface)
	do("wl-from", nftable.Elem{Key: key, To: "ge-" + string(e.Egress) + "-t0"})
	do("wl-to", nftable.Elem{Key: key, To: "gi-" + string(e.Ingress) + "-t0"})
	for _, a := range e.Addrs {
		do(families[familyOf(a)].spoof, nftable.Elem{Key: nftable.IfaceAddrKey(e.Interface, a)})
	}
}

// place is where hosts' endpoints are asked.
type place uint8

const (
	fromHost place = iota // what comes in by a device for the host itself
	toHost                // what the host sends
	fromForward
	toForward
	fromRaw // before connection tracking
	toRaw
	fromDNAT // before destinations are rewritten
	places
)

// hostPlace says of a place which map it dispatches by, how the chains are named that lead from there into lists, and which list of an
// endpoint is asked there.
type hostPlace struct {
	dispatch, entry string
	out             bool
	list            func(*policy.Endpoint) policy.ListID
	chain           string // how the list's chain begins
}

var hostPlaces = [places]hostPlace{
	fromHost:    {"hep-from", "hi-", false, func(e *policy.Endpoint) policy.ListID { return e.Ingress }, "gi-"},
	toHost:      {"hep-to", "ho-", true, func(e *policy.Endpoint) policy.ListID { return e.Egress }, "ge-"},
	fromForward: {"hep-from-fwd", "hfi-", false, func(e *policy.Endpoint) policy.ListID { return e.ForwardIngress }, "gi-"},
	toForward:   {"hep-to-fwd", "hfo-", true, func(e *policy.Endpoint) policy.ListID { return e.ForwardEgress }, "ge-"},
	fromRaw:     {"hep-from-raw", "hri-", false, func(e *policy.Endpoint) policy.ListID { return e.UntrackedIngress }, "gi-"},
	toRaw:       {"hep-to-raw", "hro-", true, func(e *policy.Endpoint) policy.ListID { return e.UntrackedEgress }, "ge-"},
	fromDNAT:    {"hep-from-dnat", "hdi-", false, func(e *policy.Endpoint) policy.ListID { return e.PreDNAT }, "gi-"},
}

// noList is the chain of devices whose endpoint has nothing to say at a place, while the endpoint for every device has.
const noList = "hep-none"

// entry is a chain that leads from a place into a list.
type entry struct {
	place place
	list  policy.ListID
}

func (e entry) name() string { return hostPlaces[e.place].entry + string(e.list) }

// putHosts writes what concerns hosts' endpoints. There are few, so all of it.
func (l *Layout) putHosts() {
	hosts := l.resolveHosts()
	entries := map[string]entry{}
	l.every = [places]string{}
	for p := range places {
		at := hostPlaces[p]
		name := func(e *policy.Endpoint) string {
			if e == nil || at.list(e) == "" {
				return ""
			}
			en := entry{p, at.list(e)}
			entries[en.name()] = en
			return en.name()
		}
		l.every[p] = name(hosts[everyDevice])
		var elems []nftable.Elem
		for iface, e := range hosts {
			to := name(e)
			if to == "" && l.every[p] != "" {
				to = noList
			}
			if iface != everyDevice && to != "" {
				elems = append(elems, nftable.Elem{Key: nftable.IfaceKey(iface), To: to})
			}
		}
		l.ed.PutSet(nftable.NewMap(at.dispatch, nftable.Ifaces, elems...))
		l.used[p] = len(elems) > 0 || l.every[p] != ""
	}
	for name := range l.entries {
		if _, needed := entries[name]; !needed {
			l.ed.DropChain(name)
		}
	}
	for name, en := range entries {
		l.ed.PutChain(nftable.NewChain(name, nftable.Base{}, l.entryRules(en)...))
	}
	l.entries, l.static = entries, true
}

// resolveHosts returns whose each device is, in the order of keys: the last has it.
func (l *Layout) resolveHosts() map[string]*policy.Endpoint {
	out := map[string]*policy.Endpoint{}
	for _, key := range slices.SortedFunc(maps.Keys(l.endpoints), compareKeys) {
		e := l.endpoints[key]
		switch {
		case key.Kind != policy.Host, len(e.Interface) > longestName:
		case e.Interface != "":
			out[e.Interface] = e
		default:
			for dev, addrs := range l.devices {
				if slices.ContainsFunc(addrs, func(a netip.Addr) bool { return slices.Contains(e.Addrs, a) }) {
					out[dev] = e
				}
			}
		}
	}
	return out
}

// entryRules does, before a list is asked, what its place demands: flows that are known go on, failsafe ports are open.
func (l *Layout) entryRules(e entry) []nftable.Rule {
	var r rules
	leave := nftable.Verdict{Kind: nftable.Return}
	switch e.place {
	case fromHost, toHost, fromForward, toForward:
		r.add(nftable.Established|nftable.Related, nftable.SetMark{Set: l.settings.accepting()}, leave)
	case fromDNAT:
		r.add(nftable.Established|nftable.Related, leave)
	}
	if e.place != fromRaw && e.place != toRaw {
		l.dropInvalid(&r)
	}
	if chain := failsafeAt[e.place]; chain != "" {
		r.add(nftable.Verdict{Kind: nftable.Jump, Chain: chain})
	}
	r.add(l.clear())
	r.add(nftable.Verdict{Kind: nftable.Goto, Chain: hostPlaces[e.place].chain + string(e.list) + "-t0"})
	return r
}

// failsafeAt names the chain of the ports that stay open at each place. What is forwarded has none: they are the host's.
var failsafeAt = [places]string{
	fromHost: "failsafe-in",
	toHost:   "failsafe-out",
	fromRaw:  "failsafe-raw-in",
	toRaw:    "failsafe-raw-out",
	fromDNAT: "failsafe-dnat",
}
