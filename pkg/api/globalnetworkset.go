package api

// GlobalNetworkSet is a set of addresses with labels: policies without namespace select it as they select endpoints.
type GlobalNetworkSet struct {
	Header
	Spec NetworkSetSpec `json:"spec"`
}

// KindOf describes GlobalNetworkSet.
func (*GlobalNetworkSet) KindOf() Kind {
	return Kind{Name: "GlobalNetworkSet", Plural: "globalnetworksets", Aliases: "gnetsets"}
}

func (g *GlobalNetworkSet) validate(c *checker) { g.Metadata.checkSetLabels(c) }
