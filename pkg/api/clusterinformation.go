package api

// ClusterInformation is the one object that describes the cluster. Its name is "default".
type ClusterInformation struct {
	Header
	Spec ClusterInformationSpec `json:"spec"`
}

// ClusterInformationSpec holds the cluster's identity and the ready flag.
type ClusterInformationSpec struct {
	ClusterGUID    string `json:"clusterGUID,omitempty"` // 32 hex digits
	ClusterType    string `json:"clusterType,omitempty"` // comma-separated set
	CalicoVersion  string `json:"calicoVersion,omitempty"`
	DatastoreReady *bool  `json:"datastoreReady,omitempty"` // false: migration under way, hands off
	Variant        string `json:"variant,omitempty"`
}

// KindOf describes ClusterInformation.
func (*ClusterInformation) KindOf() Kind {
	return Kind{
		Name: "ClusterInformation", Plural: "clusterinformations", Aliases: "clusterinfo clusterinfos",
		Names: NameDefault, ReadOnly: true,
	}
}

// Ready reports whether components may work on the datastore. A missing flag means no.
func (c *ClusterInformation) Ready() bool {
	return c.Spec.DatastoreReady != nil && *c.Spec.DatastoreReady
}
