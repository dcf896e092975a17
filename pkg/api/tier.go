package api

import (
	"cmp"
	"math"
)

// Tier groups policies: the policies of a tier of lower order come before those of a higher one.
type Tier struct {
	Header
	Spec   TierSpec   `json:"spec"`
	Status TierStatus `json:"status"`
}

// TierSpec holds the fields of a Tier.
type TierSpec struct {
	Order *float64 `json:"order,omitempty"` // nil sorts last
	// DefaultAction befalls packets of endpoints that the tier's policies select and none of their rules matches.
	DefaultAction Action `json:"defaultAction,omitempty" want:"oneof Deny Pass"`
}

// TierStatus says how the tier fares.
type TierStatus struct {
	Conditions []Condition `json:"conditions,omitempty"`
}

// KindOf describes Tier.
func (*Tier) KindOf() Kind {
	return Kind{Name: "Tier", Plural: "tiers", Names: NameLabel}
}

// Default sets the action to Deny.
func (t *Tier) Default() { setDefault(&t.Spec.DefaultAction, Deny) }

// StaticTier is a tier that every cluster has.
type StaticTier struct {
	Name   string
	Order  float64
	Action Action
}

// StaticTiers are the tiers that every cluster has, that cannot be deleted, and whose order and action are fixed.
func StaticTiers() []StaticTier {
	return []StaticTier{{DefaultTier, 1e6, Deny}, {"kube-admin", 1e3, Pass}, {"kube-baseline", 1e7, Pass}}
}

// compare is the order in which tiers are consulted; those without an order come last.
func (t *Tier) compare(o Object) int {
	other, ok := o.(*Tier)
	if !ok {
		return 0
	}
	place := func(t *Tier) float64 {
		if t.Spec.Order == nil {
			return math.Inf(1)
		}
		return *t.Spec.Order
	}
	return cmp.Compare(place(t), place(other))
}

func (t *Tier) static() (StaticTier, bool) {
	for _, s := range StaticTiers() {
		if s.Name == t.Metadata.Name {
			return s, true
		}
	}
	return StaticTier{}, false
}

func (t *Tier) validate(c *checker) {
	s, ok := t.static()
	if !ok {
		return
	}
	if t.Spec.Order == nil || *t.Spec.Order != s.Order {
		c.add("spec.order", t.Spec.Order, "%s tier order must be %v", s.Name, s.Order)
	}
	if t.Spec.DefaultAction != s.Action {
		c.add("spec.defaultAction", t.Spec.DefaultAction, "%s tier default action must be %s", s.Name, s.Action)
	}
}

func (t *Tier) refuses(op Op) string {
	if s, ok := t.static(); ok && op == OpDelete {
		return "Cannot delete " + s.Name + " tier"
	}
	return ""
}
