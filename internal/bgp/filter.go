package bgp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	wire "github.com/osrg/gobgp/v4/api"

	"github.com/muslin-cni/muslin/internal/peering"
	"github.com/muslin-cni/muslin/pkg/api"
)

// compiled is what GoBGP has for filters at present.
type compiled struct {
	imports, exports direction
}

// direction is one of the two lists of filters: GoBGP has them for all peers in common, so each statement names the peers that it is for.
type direction struct {
	text map[netip.Addr]string // each peer's terms, written out
	name string                // of the policy; "" before the first
	sets []*wire.DefinedSet
}

// softReset asks for a peer's routes to be filtered again.
type softReset struct {
	peer      netip.Addr
	direction wire.ResetPeerRequest_Direction
}

// setPolicies makes GoBGP's filters those of cfg, and says whose sessions they are new for. The new filters have new names and take the
// old ones' place in one step: routes pass at no moment that neither lets through.
func (s *Server) setPolicies(ctx context.Context, cfg peering.Speaker) ([]softReset, error) {
	var soft []softReset
	for _, d := range []struct {
		have  *direction
		dir   wire.PolicyDirection
		reset wire.ResetPeerRequest_Direction
		terms func(peering.Session) []peering.Term
	}{
		{&s.policies.imports, wire.PolicyDirection_POLICY_DIRECTION_IMPORT, wire.ResetPeerRequest_DIRECTION_IN, func(p peering.Session) []peering.Term { return p.Import }},
		{&s.policies.exports, wire.PolicyDirection_POLICY_DIRECTION_EXPORT, wire.ResetPeerRequest_DIRECTION_OUT, func(p peering.Session) []peering.Term { return p.Export }},
	} {
		groups := group(cfg.Sessions, d.terms)
		text := groups.text()
		if d.have.name != "" && sameText(d.have.text, text) {
			continue
		}
		s.version++
		next := direction{text: text, name: fmt.Sprintf("v%d", s.version)}
		if err := s.swap(ctx, d.dir, d.have, &next, groups); err != nil {
			return nil, err
		}
		for _, p := range cfg.Sessions {
			if _, running := s.sessions[p.Peer]; running && d.have.text[p.Peer] != text[p.Peer] {
				soft = append(soft, softReset{p.Peer, d.reset})
			}
		}
		*d.have = next
	}
	return soft, nil
}

func sameText(a, b map[netip.Addr]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || v != w {
			return false
		}
	}
	return true
}

// swap adds the new policy and its sets, assigns it in place of the old one, and deletes that.
func (s *Server) swap(ctx context.Context, dir wire.PolicyDirection, old, next *direction, groups groups) error {
	policy := &wire.Policy{Name: next.name}
	for i, g := range groups {
		c := compiler{prefix: fmt.Sprintf("%s-%d", next.name, i)}
		c.group(g)
		policy.Statements, next.sets = append(policy.Statements, c.statements...), append(next.sets, c.sets...)
	}
	for _, set := range next.sets {
		if err := s.run.AddDefinedSet(ctx, &wire.AddDefinedSetRequest{DefinedSet: set}); err != nil {
			return fmt.Errorf("add set %s: %w", set.Name, err)
		}
	}
	if err := s.run.AddPolicy(ctx, &wire.AddPolicyRequest{Policy: policy}); err != nil {
		return fmt.Errorf("add policy %s: %w", policy.Name, err)
	}
	assignment := &wire.PolicyAssignment{
		Name: "global", Direction: dir, Policies: []*wire.Policy{{Name: policy.Name}},
		DefaultAction: wire.RouteAction_ROUTE_ACTION_REJECT, // a peer that no statement names
	}
	if dir == wire.PolicyDirection_POLICY_DIRECTION_IMPORT {
		assignment.DefaultAction = wire.RouteAction_ROUTE_ACTION_ACCEPT // our own routes come this way too
	}
	if err := s.run.SetPolicyAssignment(ctx, &wire.SetPolicyAssignmentRequest{Assignment: assignment}); err != nil {
		return fmt.Errorf("assign policy %s: %w", policy.Name, err)
	}
	if old.name == "" {
		return nil
	}
	errs := []error{s.run.DeletePolicy(ctx, &wire.DeletePolicyRequest{Policy: &wire.Policy{Name: old.name}, All: true})}
	for _, set := range old.sets {
		errs = append(errs, s.run.DeleteDefinedSet(ctx, &wire.DeleteDefinedSetRequest{DefinedSet: set, All: true}))
	}
	if err := errors.Join(errs...); err != nil {
		s.log.Warn("cannot delete old BGP filters, which are out of use", "error", err)
	}
	return nil
}

// groups are the peers with equal terms.
type groups []peerGroup

type peerGroup struct {
	text  string
	terms []peering.Term
	peers []netip.Addr
}

func group(sessions []peering.Session, terms func(peering.Session) []peering.Term) groups {
	at := map[string]int{}
	var out groups
	for _, s := range sessions {
		var b strings.Builder
		for _, t := range terms(s) {
			fmt.Fprintln(&b, t)
		}
		i, ok := at[b.String()]
		if !ok {
			i = len(out)
			at[b.String()] = i
			out = append(out, peerGroup{text: b.String(), terms: terms(s)})
		}
		out[i].peers = append(out[i].peers, s.Peer)
	}
	return out
}

func (g groups) text() map[netip.Addr]string {
	out := map[netip.Addr]string{}
	for _, one := range g {
		for _, p := range one.peers {
			out[p] = one.text
		}
	}
	return out
}

// compiler makes GoBGP's statements and sets of the terms of one group.
type compiler struct {
	prefix     string
	peers      string // the name of the group's neighbour set
	statements []*wire.Statement
	sets       []*wire.DefinedSet
}

func (c *compiler) group(g peerGroup) {
	c.peers = c.prefix + "-peers"
	list := make([]string, 0, len(g.peers))
	for _, p := range g.peers { // never none: an empty set would match everybody
		list = append(list, netip.PrefixFrom(p.WithZone(""), p.BitLen()).String())
	}
	c.sets = append(c.sets, &wire.DefinedSet{DefinedType: wire.DefinedType_DEFINED_TYPE_NEIGHBOR, Name: c.peers, List: list})
	for i, t := range g.terms {
		c.term(fmt.Sprintf("%s-%d", c.prefix, i), t)
	}
}

// term adds a term. GoBGP prepends one number a statement, so that a term can be several, of which the last decides.
func (c *compiler) term(name string, t peering.Term) {
	path := slices.Clone(t.Match.ASPath)
	add := func(a *wire.Actions) {
		m := t.Match
		m.ASPath = path
		c.statement(name, m, a)
	}
	last, prepends := actions(t)
	for i, p := range prepends {
		if i == len(prepends)-1 {
			last.AsPrepend = p
			break
		}
		add(&wire.Actions{AsPrepend: p})
		if len(path) > 0 { // what follows matches the path that this statement has made
			path = append(slices.Repeat([]api.ASN{api.ASN(p.Asn)}, int(p.Repeat)), path...)
		}
	}
	add(last)
}

// statement adds one statement, or two where only routes from peers are meant: GoBGP tells those of internal and external ones apart.
func (c *compiler) statement(name string, m peering.Match, a *wire.Actions) {
	types := []wire.Conditions_RouteType{wire.Conditions_ROUTE_TYPE_UNSPECIFIED}
	switch {
	case m.Learned:
		types = []wire.Conditions_RouteType{wire.Conditions_ROUTE_TYPE_INTERNAL, wire.Conditions_ROUTE_TYPE_EXTERNAL}
	case m.Own:
		types = []wire.Conditions_RouteType{wire.Conditions_ROUTE_TYPE_LOCAL}
	}
	for _, kind := range types {
		name := fmt.Sprintf("%s-%d", name, len(c.statements))
		conditions := c.conditions(name, m)
		conditions.RouteType = kind
		c.statements = append(c.statements, &wire.Statement{Name: name, Conditions: conditions, Actions: a})
	}
}

func (c *compiler) conditions(name string, m peering.Match) *wire.Conditions {
	out := &wire.Conditions{NeighborSet: &wire.MatchSet{Type: wire.MatchSet_TYPE_ANY, Name: c.peers}}
	define := func(suffix string, set *wire.DefinedSet) *wire.MatchSet {
		set.Name = name + suffix
		c.sets = append(c.sets, set)
		return &wire.MatchSet{Type: wire.MatchSet_TYPE_ANY, Name: set.Name}
	}
	switch m.Family {
	case peering.IPv4:
		out.AfiSafiIn = []*wire.Family{{Afi: wire.Family_AFI_IP, Safi: wire.Family_SAFI_UNICAST}}
	case peering.IPv6:
		out.AfiSafiIn = []*wire.Family{{Afi: wire.Family_AFI_IP6, Safi: wire.Family_SAFI_UNICAST}}
	}
	if len(m.Prefixes) > 0 {
		set := &wire.DefinedSet{DefinedType: wire.DefinedType_DEFINED_TYPE_PREFIX}
		for _, p := range m.Prefixes {
			set.Prefixes = append(set.Prefixes, &wire.Prefix{IpPrefix: p.Net.String(), MaskLengthMin: uint32(p.Min), MaskLengthMax: uint32(p.Max)})
		}
		out.PrefixSet = define("-prefixes", set)
		if m.Not {
			out.PrefixSet.Type = wire.MatchSet_TYPE_INVERT
		}
	}
	if len(m.ASPath) > 0 {
		expr := "^"
		for _, as := range m.ASPath {
			expr += strconv.FormatUint(uint64(as), 10) + "_"
		}
		out.AsPathSet = define("-path", &wire.DefinedSet{DefinedType: wire.DefinedType_DEFINED_TYPE_AS_PATH, List: []string{expr}})
	}
	switch strings.Count(m.Community, ":") {
	case 1:
		out.CommunitySet = define("-community", &wire.DefinedSet{DefinedType: wire.DefinedType_DEFINED_TYPE_COMMUNITY, List: []string{"^" + m.Community + "$"}})
	case 2:
		out.LargeCommunitySet = define("-community", &wire.DefinedSet{DefinedType: wire.DefinedType_DEFINED_TYPE_LARGE_COMMUNITY, List: []string{"^" + m.Community + "$"}})
	}
	if m.LocalPref != nil {
		out.LocalPrefEq = &wire.LocalPrefEq{Value: *m.LocalPref}
	}
	return out
}

// actions are those of a term's last statement, and what is to be prepended, the last number first, equal ones in a row together.
func actions(t peering.Term) (last *wire.Actions, prepends []*wire.AsPrependAction) {
	last = &wire.Actions{RouteAction: map[peering.Verdict]wire.RouteAction{
		peering.Accept: wire.RouteAction_ROUTE_ACTION_ACCEPT, peering.Reject: wire.RouteAction_ROUTE_ACTION_REJECT,
	}[t.Verdict]}
	for _, a := range t.Actions {
		switch {
		case a.LocalPref != nil:
			last.LocalPref = &wire.LocalPrefAction{Value: *a.LocalPref}
		case a.NextHop == peering.NextHopSelf:
			last.Nexthop = &wire.NexthopAction{Self: true}
		case a.Hop.IsValid():
			last.Nexthop = &wire.NexthopAction{Address: a.Hop.String()}
		case a.NextHop == peering.NextHopKeep:
			last.Nexthop = &wire.NexthopAction{Unchanged: true}
		case strings.Count(a.AddCommunity, ":") == 1:
			last.Community = added(last.Community, a.AddCommunity)
		case strings.Count(a.AddCommunity, ":") == 2:
			last.LargeCommunity = added(last.LargeCommunity, a.AddCommunity)
		}
		for _, as := range slices.Backward(a.Prepend) {
			if n := len(prepends); n > 0 && prepends[n-1].Asn == uint32(as) {
				prepends[n-1].Repeat++
				continue
			}
			prepends = append(prepends, &wire.AsPrependAction{Asn: uint32(as), Repeat: 1})
		}
	}
	return last, prepends
}

func added(to *wire.CommunityAction, value string) *wire.CommunityAction {
	if to == nil {
		to = &wire.CommunityAction{Type: wire.CommunityAction_TYPE_ADD}
	}
	to.Communities = append(to.Communities, value)
	return to
}
