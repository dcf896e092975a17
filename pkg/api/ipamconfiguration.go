package api

// IPAMConfiguration is how people see the settings of address management. etcd holds them as IPAMConfig. Its name is "default".
type IPAMConfiguration struct {
	Header
	Spec IPAMConfigurationSpec `json:"spec"`
}

// IPAMConfigurationSpec holds the fields of an IPAMConfiguration.
type IPAMConfigurationSpec struct {
	StrictAffinity               bool   `json:"strictAffinity"` // a node takes no address of another node's block
	MaxBlocksPerHost             int    `json:"maxBlocksPerHost,omitempty" want:"range 0 2147483647"`
	AutoAllocateBlocks           bool   `json:"autoAllocateBlocks"` // a node takes a new block when its own are full
	KubeVirtVMAddressPersistence string `json:"kubeVirtVMAddressPersistence,omitempty" want:"oneof Enabled Disabled"`
}

// KindOf describes IPAMConfiguration.
func (*IPAMConfiguration) KindOf() Kind {
	return Kind{Name: "IPAMConfiguration", Plural: "ipamconfigurations", Names: NameDefault, Hidden: true}
}

// Default fills the setting for virtual machines.
func (i *IPAMConfiguration) Default() { setDefault(&i.Spec.KubeVirtVMAddressPersistence, "Enabled") }

func (i *IPAMConfiguration) validate(c *checker) {
	s := i.Spec
	if !s.StrictAffinity && !s.AutoAllocateBlocks {
		c.add("spec.autoAllocateBlocks", s.AutoAllocateBlocks, "cannot be false while strictAffinity is: a node would have no address to give")
	}
	if s.MaxBlocksPerHost > 0 && !s.StrictAffinity {
		c.add("spec.maxBlocksPerHost", s.MaxBlocksPerHost, "needs strictAffinity")
	}
}

// Stored is the form in which etcd holds the settings.
func (i *IPAMConfiguration) Stored() IPAMConfig {
	out := IPAMConfig{
		StrictAffinity: i.Spec.StrictAffinity, AutoAllocateBlocks: i.Spec.AutoAllocateBlocks, MaxBlocksPerHost: i.Spec.MaxBlocksPerHost,
	}
	if v := i.Spec.KubeVirtVMAddressPersistence; v != "" {
		out.KubeVirt = &v
	}
	return out
}

// NewIPAMConfiguration is what etcd holds, as people see it.
func NewIPAMConfiguration(c IPAMConfig) *IPAMConfiguration {
	i := &IPAMConfiguration{Spec: IPAMConfigurationSpec{
		StrictAffinity: c.StrictAffinity, AutoAllocateBlocks: c.AutoAllocateBlocks, MaxBlocksPerHost: c.MaxBlocksPerHost,
	}}
	i.TypeMeta = TypeMeta{Kind: "IPAMConfiguration", APIVersion: Version}
	i.Metadata.Name = "default"
	if c.KubeVirt != nil {
		i.Spec.KubeVirtVMAddressPersistence = *c.KubeVirt
	}
	i.Default()
	return i
}
