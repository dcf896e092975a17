package api

import (
	"maps"
	"slices"
)

// DefaultAllowProfile is a profile that everyone sees and that is not stored: it allows everything.
const DefaultAllowProfile = "projectcalico-default-allow"

// Profile is a set of rules and labels that endpoints name. Its rules count for endpoints that no policy selects.
type Profile struct {
	Header
	Spec ProfileSpec `json:"spec"`
}

// ProfileSpec holds the fields of a Profile.
type ProfileSpec struct {
	Ingress       []Rule            `json:"ingress,omitempty"`
	Egress        []Rule            `json:"egress,omitempty"`
	LabelsToApply map[string]string `json:"labelsToApply,omitempty"` // endpoints that name the profile have these labels too
}

// KindOf describes Profile.
func (*Profile) KindOf() Kind {
	return Kind{Name: "Profile", Plural: "profiles", Aliases: "pro pros"}
}

// NewDefaultAllow is the built-in profile.
func NewDefaultAllow() *Profile {
	p := &Profile{Spec: ProfileSpec{Ingress: []Rule{{Action: Allow}}, Egress: []Rule{{Action: Allow}}}}
	p.TypeMeta = TypeMeta{Kind: "Profile", APIVersion: Version}
	p.Metadata.Name = DefaultAllowProfile
	return p
}

func (p *Profile) validate(c *checker) {
	c.rules(rules{ingress: p.Spec.Ingress, egress: p.Spec.Egress})
	for _, key := range slices.Sorted(maps.Keys(p.Spec.LabelsToApply)) {
		c.label("spec.labelsToApply", key, p.Spec.LabelsToApply[key])
	}
}

func (p *Profile) refuses(op Op) string {
	if p.Metadata.Name != DefaultAllowProfile {
		return ""
	}
	if op == OpCreate {
		return "the profile is built in and exists already"
	}
	return "the profile is built in"
}
