package api

import (
	"encoding/json"
	"maps"
	"strings"
)

// DefaultTier is the tier of policies that name none.
const DefaultTier = "default"

const (
	// LabelTier is the label by which policies are found by their tier; every stored policy has it.
	LabelTier = "projectcalico.org/tier"
	// annotationMetadata holds the name that its user gave a stored policy.
	annotationMetadata = "projectcalico.org/metadata"
)

// PolicyType is a direction that a policy applies to. A direction that it does not apply to is not restricted by it.
type PolicyType string

// The directions.
const (
	Ingress PolicyType = "Ingress" // to the endpoint
	Egress  PolicyType = "Egress"  // from the endpoint
)

// The actions of staged policies: what the policy would do once it is not staged any more.
const (
	StagedSet    = "Set"
	StagedDelete = "Delete"
	StagedLearn  = "Learn"
	StagedIgnore = "Ignore"
)

// defaultTypes are the directions that a policy has rules for, and Ingress where it has none.
func defaultTypes(types []PolicyType, ingress, egress int) []PolicyType {
	switch {
	case len(types) > 0:
		return types
	case egress == 0:
		return []PolicyType{Ingress}
	case ingress == 0:
		return []PolicyType{Egress}
	}
	return []PolicyType{Ingress, Egress}
}

// setTier fills the tier and stamps the label. It does not write to a map of labels that the object shares.
func setTier(m *ObjectMeta, tier *string) {
	setDefault(tier, DefaultTier)
	m.Labels = set(m.Labels, LabelTier, *tier)
}

// policyToStored notes the policy's name in an annotation, as every stored policy has it.
func policyToStored(m *ObjectMeta) {
	note, err := json.Marshal(struct {
		Name string `json:"name"`
	}{m.Name})
	if err != nil {
		return // a struct of one string always marshals
	}
	m.Annotations = set(m.Annotations, annotationMetadata, string(note))
}

// policyFromStored takes the policy's name from the annotation and removes that. A policy without one was written by releases
// that put "default." before the names of policies of the default tier (v3.29 and older).
func policyFromStored(m *ObjectMeta, tier string) {
	text, ok := m.Annotations[annotationMetadata]
	if !ok {
		if tier == "" || tier == DefaultTier {
			m.Name = strings.TrimPrefix(m.Name, "default.")
		}
		return
	}
	var note struct {
		Name string `json:"name"`
	}
	if json.Unmarshal([]byte(text), &note) == nil && note.Name != "" {
		m.Name = note.Name
	}
	m.Annotations = maps.Clone(m.Annotations)
	delete(m.Annotations, annotationMetadata)
	if len(m.Annotations) == 0 {
		m.Annotations = nil
	}
}

// refusesMirror is for policies that mirror Kubernetes': those are written where Kubernetes' own are.
func refusesMirror(op Op, name string) string {
	if strings.HasPrefix(name, "knp.default.") && (op == OpCreate || op == OpUpdate || op == OpDelete) {
		return "kubernetes network policies must be managed through the kubernetes API"
	}
	return ""
}

// types checks the directions of a policy.
func (c *checker) types(types []PolicyType) {
	seen := map[PolicyType]bool{}
	for _, t := range types {
		if seen[t] {
			c.add("spec.types", types, "the same type must not be there twice")
		}
		seen[t] = true
	}
}

// tierOf refers to a policy's tier.
func tierOf(tier string) []Reference {
	if tier == "" {
		tier = DefaultTier
	}
	return []Reference{{Path: "spec.tier", Kind: (*Tier)(nil).KindOf(), Name: tier}}
}
