package peering

import (
	"math"
	"net/netip"
	"path"
	"slices"

	"github.com/muslin-cni/muslin/pkg/api"
)

// imports is what happens to the routes that a session brings: the peer's filters have their say, and the rest is accepted.
func (f *family) imports(b *api.BGPPeer, s Session) []Term {
	return append(f.filtersOf(b, s, false), Term{Verdict: Accept})
}

// exports is what a session sends, in Calico's order: what the filters decide on is decided. Of our blocks nothing but the whole is
// sent, also not what others have borrowed from them: they say so themselves. Other routes go on if they are of a pool.
func (f *family) exports(b *api.BGPPeer, s Session) []Term {
	var out []Term
	switch keep := b.Spec.NextHopMode == "Keep" || b.Spec.KeepOriginalNextHop && !s.Internal(); {
	case b.Spec.NextHopMode == "Self":
		out = append(out, Term{Actions: []Action{{NextHop: NextHopSelf}}, Verdict: Next})
	case keep:
		out = append(out, Term{Match: Match{Learned: true}, Actions: []Action{{NextHop: NextHopKeep}}, Verdict: Next})
	}
	out = append(out, f.filtersOf(b, s, true)...)
	var hidden, shown, blocks, parts, services []PrefixRange
	for _, p := range f.pools() {
		if p.Spec.DisableBGPExport {
			hidden = append(hidden, within(p.Spec.CIDR))
		} else {
			shown = append(shown, within(p.Spec.CIDR))
		}
	}
	for _, p := range f.Blocks {
		if p.Addr().Is6() == f.v6 && !p.IsSingleIP() {
			blocks, parts = append(blocks, exactly(p)), append(parts, within(p))
		}
	}
	for _, p := range f.Services {
		if p.Addr().Is6() == f.v6 {
			services = append(services, exactly(p))
		}
	}
	out = appendIf(out, hidden, Reject)
	out = append(out, f.communities()...)
	out = appendIf(out, blocks, Accept)
	out = appendIf(out, parts, Reject)
	out = appendIf(out, services, Accept)
	out = appendIf(out, shown, Accept)
	return append(out, Term{Verdict: Reject})
}

func exactly(p netip.Prefix) PrefixRange { return PrefixRange{Net: p, Min: p.Bits(), Max: p.Bits()} }

func within(p netip.Prefix) PrefixRange {
	p = p.Masked()
	return PrefixRange{Net: p, Min: p.Bits(), Max: p.Addr().BitLen()}
}

func appendIf(to []Term, ranges []PrefixRange, v Verdict) []Term {
	if len(ranges) == 0 {
		return to
	}
	return append(to, Term{Match: Match{Prefixes: ranges}, Verdict: v})
}

// communities are what prefixAdvertisements give to routes.
func (f *family) communities() []Term {
	named := map[string]string{}
	for _, n := range f.config.Spec.Communities {
		named[n.Name] = n.Value
	}
	var out []Term
	for _, a := range f.config.Spec.PrefixAdvertisements {
		p, err := parseCIDR(a.CIDR)
		if err != nil {
			f.problem("BGPConfiguration(default)", "spec.prefixAdvertisements: %v; it is left out until it is corrected", err)
			continue
		}
		if p.Addr().Is6() != f.v6 {
			continue
		}
		t := Term{Match: Match{Prefixes: []PrefixRange{within(p)}}, Verdict: Next}
		for _, v := range a.Communities {
			if value, ok := named[v]; ok {
				v = value
			}
			t.Actions = append(t.Actions, Action{AddCommunity: v})
		}
		out = append(out, t)
	}
	return out
}

func parseCIDR(s string) (netip.Prefix, error) {
	var p api.Prefix
	err := p.UnmarshalText([]byte(s))
	return p.Prefix, err
}

// filtersOf compiles the peer's BGPFilters for a session, in their order.
func (f *family) filtersOf(b *api.BGPPeer, s Session, export bool) []Term {
	var out []Term
	for _, name := range b.Spec.Filters {
		filter := f.filters[name]
		if filter == nil {
			f.problem("BGPPeer("+b.Metadata.Name+")", "BGPFilter %q does not exist; the peer goes on without it", name)
			continue
		}
		for _, r := range f.rules(filter, export) {
			t, ok, err := f.term(r, s, export)
			if err != nil {
				f.problem("BGPFilter("+name+")", "%v; the rule is left out until it is corrected", err)
				continue
			}
			if ok {
				out = append(out, t)
			}
		}
	}
	return out
}

func (f *family) rules(b *api.BGPFilter, export bool) []api.BGPFilterRule {
	switch {
	case export && f.v6:
		return b.Spec.ExportV6
	case export:
		return b.Spec.ExportV4
	case f.v6:
		return b.Spec.ImportV6
	default:
		return b.Spec.ImportV4
	}
}

// term compiles a rule. ok is false if the rule matches no route of the session.
func (f *family) term(r api.BGPFilterRule, s Session, export bool) (t Term, ok bool, err error) {
	if r.PeerType != "" && (r.PeerType == "iBGP") != s.Internal() {
		return t, false, nil
	}
	t.Verdict = Reject
	if r.Action == "Accept" {
		t.Verdict = Accept
	}
	if t.Match.Prefixes, t.Match.Not, err = ranges(r); err != nil {
		return t, false, err
	}
	t.Match.Learned = export && r.Source == "RemotePeers"
	t.Match.ASPath = r.ASPathPrefix
	if r.Communities != nil && len(r.Communities.Values) > 0 {
		t.Match.Community = r.Communities.Values[0]
	}
	if r.Priority != nil {
		t.Match.LocalPref = new(Preference(*r.Priority))
	}
	for _, o := range r.Operations {
		t.Actions = append(t.Actions, operation(o))
	}
	if r.Interface == "" {
		return t, true, nil
	}
	if !export {
		return t, false, nil // a route that has just been received leads to no device yet
	}
	f.onDevice(r.Interface, &t.Match)
	return t, len(t.Match.Prefixes) > 0, nil
}

// onDevice narrows a match down to our own routes that lead to a device of that name: no others do.
func (f *family) onDevice(glob string, m *Match) {
	var out []PrefixRange
	for _, r := range f.out.Routes {
		if r.Dev == "" || r.Prefix.Addr().Is6() != f.v6 {
			continue
		}
		if on, err := path.Match(glob, r.Dev); err != nil || !on {
			continue
		}
		in := slices.ContainsFunc(m.Prefixes, func(p PrefixRange) bool {
			return p.Net.Contains(r.Prefix.Addr()) && p.Min <= r.Prefix.Bits() && r.Prefix.Bits() <= p.Max
		})
		if m.Prefixes == nil || in != m.Not {
			out = append(out, exactly(r.Prefix))
		}
	}
	m.Prefixes, m.Not = out, false
}

// ranges are the prefixes that a rule speaks of. The lengths of a range lie between those of its CIDR and of an address.
func ranges(r api.BGPFilterRule) (out []PrefixRange, not bool, err error) {
	if r.CIDR == "" {
		return nil, false, nil
	}
	p, err := parseCIDR(r.CIDR)
	if err != nil {
		return nil, false, err
	}
	p = p.Masked()
	not = r.MatchOperator == "NotEqual" || r.MatchOperator == "NotIn"
	if r.MatchOperator == "Equal" || r.MatchOperator == "NotEqual" {
		return []PrefixRange{exactly(p)}, not, nil
	}
	all := within(p)
	if l := r.PrefixLength; l != nil {
		if l.Min != nil {
			all.Min = max(all.Min, int(*l.Min))
		}
		if l.Max != nil {
			all.Max = min(all.Max, int(*l.Max))
		}
	}
	return []PrefixRange{all}, not, nil
}

func operation(o api.BGPFilterChange) Action {
	switch {
	case o.AddCommunity != nil:
		return Action{AddCommunity: o.AddCommunity.Value}
	case o.SetPriority != nil && o.SetPriority.Value != nil:
		return Action{LocalPref: new(Preference(min(max(*o.SetPriority.Value, 0), math.MaxInt32)))}
	case o.PrependASPath != nil:
		return Action{Prepend: o.PrependASPath.Prefix}
	default:
		return Action{}
	}
}
