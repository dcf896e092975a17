package api

// LiveMigration is a virtual machine on its way from one node to another. Nothing here looks into it: its fields survive as
// unknown ones.
type LiveMigration struct {
	Header
	Spec   struct{} `json:"spec"`
	Status struct{} `json:"status"`
}

// KindOf describes LiveMigration.
func (*LiveMigration) KindOf() Kind {
	return Kind{Name: "LiveMigration", Plural: "livemigrations", Namespaced: true, Hidden: true, ReadOnly: true}
}
