package api

// NetworkSet is a set of addresses with labels: policies of its namespace select it as they select endpoints.
type NetworkSet struct {
	Header
	Spec NetworkSetSpec `json:"spec"`
}

// NetworkSetSpec holds the fields of a NetworkSet and of a GlobalNetworkSet.
type NetworkSetSpec struct {
	Nets []string `json:"nets,omitempty" want:"cidr"`
}

// KindOf describes NetworkSet.
func (*NetworkSet) KindOf() Kind {
	return Kind{Name: "NetworkSet", Plural: "networksets", Namespaced: true, Aliases: "netsets"}
}

func (n *NetworkSet) validate(c *checker) { n.Metadata.checkSetLabels(c) }

// checkSetLabels refuses the label that says in which namespace something lives: the system itself sets it.
func (m *ObjectMeta) checkSetLabels(c *checker) {
	if v, ok := m.Labels[LabelNamespace]; ok {
		c.add("metadata.labels."+LabelNamespace, v, "the label is the system's own; leave it out")
	}
}
