package api

import "fmt"

// BGPFilter says which routes sessions import and export. Of each list the first rule that matches decides.
type BGPFilter struct {
	Header
	Spec BGPFilterSpec `json:"spec"`
}

// BGPFilterSpec holds the fields of a BGPFilter.
type BGPFilterSpec struct {
	ExportV4 []BGPFilterRule `json:"exportV4,omitempty"`
	ImportV4 []BGPFilterRule `json:"importV4,omitempty"`
	ExportV6 []BGPFilterRule `json:"exportV6,omitempty"`
	ImportV6 []BGPFilterRule `json:"importV6,omitempty"`
}

// BGPFilterRule matches routes that satisfy all of its fields; a field that is not set is satisfied by every route.
type BGPFilterRule struct {
	CIDR          string            `json:"cidr,omitempty" want:"net"`
	PrefixLength  *PrefixLength     `json:"prefixLength,omitempty"` // nil: CIDR's own and longer
	Source        string            `json:"source,omitempty" want:"oneof RemotePeers"`
	Interface     string            `json:"interface,omitempty"` // * stands for anything
	MatchOperator string            `json:"matchOperator,omitempty" want:"oneof Equal NotEqual In NotIn"`
	PeerType      string            `json:"peerType,omitempty" want:"oneof eBGP iBGP"`
	Communities   *CommunityMatch   `json:"communities,omitempty"`
	ASPathPrefix  []ASN             `json:"asPathPrefix,omitempty"`
	Priority      *int              `json:"priority,omitempty" want:"range 0 2147483647"`
	Action        string            `json:"action" want:"required; oneof Accept Reject"`
	Operations    []BGPFilterChange `json:"operations,omitempty"` // done to an accepted route, in order
}

// PrefixLength is a range of prefix lengths, both included. nil: no limit.
type PrefixLength struct {
	Min *int32 `json:"min,omitempty" want:"range 0 128"`
	Max *int32 `json:"max,omitempty" want:"range 0 128"`
}

// CommunityMatch matches routes with a community.
type CommunityMatch struct {
	Values []string `json:"values,omitempty" want:"required"` // one
}

// BGPFilterChange changes a route: one of its fields is set.
type BGPFilterChange struct {
	AddCommunity  *AddCommunity  `json:"addCommunity,omitempty"`
	PrependASPath *PrependASPath `json:"prependASPath,omitempty"`
	SetPriority   *SetPriority   `json:"setPriority,omitempty"`
}

// AddCommunity gives a route a community.
type AddCommunity struct {
	Value string `json:"value" want:"required"`
}

// PrependASPath puts numbers in front of a route's path, in this order.
type PrependASPath struct {
	Prefix []ASN `json:"prefix" want:"required"`
}

// SetPriority gives a route a priority.
type SetPriority struct {
	Value *int `json:"value,omitempty" want:"required; range 1 2147483646"`
}

// KindOf describes BGPFilter.
func (*BGPFilter) KindOf() Kind {
	return Kind{Name: "BGPFilter", Plural: "bgpfilters", Aliases: "bgpf bgpfs bf bfs"}
}

func (b *BGPFilter) validate(c *checker) {
	for _, l := range []struct {
		name  string
		rules []BGPFilterRule
		v6    bool
	}{
		{"exportV4", b.Spec.ExportV4, false}, {"importV4", b.Spec.ImportV4, false},
		{"exportV6", b.Spec.ExportV6, true}, {"importV6", b.Spec.ImportV6, true},
	} {
		for i := range l.rules {
			l.rules[i].check(c, fmt.Sprintf("spec.%s[%d]", l.name, i), l.v6)
		}
	}
}

func (r *BGPFilterRule) check(c *checker, path string, v6 bool) {
	if (r.CIDR == "") != (r.MatchOperator == "") {
		c.add(path+".matchOperator", r.MatchOperator, "CIDR and MatchOperator must both be set or both be empty")
	}
	longest := int32(32)
	if v6 {
		longest = 128
	}
	if p, err := parseNet(r.CIDR); err == nil && p.Addr().Is6() != v6 {
		c.add(path+".cidr", r.CIDR, "must be of the IP version of its list")
	}
	if l := r.PrefixLength; l != nil {
		if r.CIDR == "" {
			c.add(path+".prefixLength", nil, "PrefixLength requires CIDR")
		}
		if l.Min != nil && l.Max != nil && *l.Min > *l.Max {
			c.add(path+".prefixLength.min", l.Min, "must not be greater than max")
		}
		if l.Max != nil && *l.Max > longest {
			c.add(path+".prefixLength.max", l.Max, "must be at most %d", longest)
		}
	}
	if m := r.Communities; m != nil {
		if len(m.Values) > 1 {
			c.add(path+".communities.values", m.Values, "must be one value")
		}
		for i, v := range m.Values {
			c.community(fmt.Sprintf("%s.communities.values[%d]", path, i), v)
		}
	}
	if len(r.Operations) > 10 {
		c.add(path+".operations", len(r.Operations), "must be at most 10")
	}
	if len(r.Operations) > 0 && r.Action == "Reject" {
		c.add(path+".operations", nil, "a rejected route cannot be changed")
	}
	for i, o := range r.Operations {
		o.check(c, fmt.Sprintf("%s.operations[%d]", path, i))
	}
}

func (o BGPFilterChange) check(c *checker, path string) {
	n := 0
	for _, set := range []bool{o.AddCommunity != nil, o.PrependASPath != nil, o.SetPriority != nil} {
		if set {
			n++
		}
	}
	if n != 1 {
		c.add(path, nil, "must have exactly one of addCommunity, prependASPath and setPriority")
	}
	if o.AddCommunity != nil && o.AddCommunity.Value != "" {
		c.community(path+".addCommunity.value", o.AddCommunity.Value)
	}
}

func (c *checker) community(path, value string) {
	if !isCommunity(value) {
		c.add(path, value, communityReason)
	}
}
