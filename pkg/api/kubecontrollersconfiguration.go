package api

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// KubeControllersConfiguration holds the settings of the cluster's controllers. Its name is "default".
type KubeControllersConfiguration struct {
	Header
	Spec   KubeControllersConfigurationSpec   `json:"spec"`
	Status KubeControllersConfigurationStatus `json:"status"`
}

// KubeControllersConfigurationSpec holds the settings. nil means our default, and for a controller that it does not run.
type KubeControllersConfigurationSpec struct {
	LogSeverityScreen      string      `json:"logSeverityScreen,omitempty" want:"fold Trace Debug Info Warning Error Fatal"`
	HealthChecks           string      `json:"healthChecks,omitempty" want:"oneof Enabled Disabled"`
	EtcdV3CompactionPeriod *Duration   `json:"etcdV3CompactionPeriod,omitempty"`                     // nil: 10m; 0: never
	PrometheusMetricsPort  *int        `json:"prometheusMetricsPort,omitempty" want:"range 0 65535"` // 0: off
	DebugProfilePort       *int32      `json:"debugProfilePort,omitempty" want:"range 0 65535"`      // nil or 0: off
	Controllers            Controllers `json:"controllers"`
}

// Controllers are the controllers that run.
type Controllers struct {
	Node             *NodeController         `json:"node,omitempty"`
	Policy           *PeriodicController     `json:"policy,omitempty"`
	WorkloadEndpoint *PeriodicController     `json:"workloadEndpoint,omitempty"`
	ServiceAccount   *PeriodicController     `json:"serviceAccount,omitempty"`
	Namespace        *PeriodicController     `json:"namespace,omitempty"`
	LoadBalancer     *LoadBalancerController `json:"loadBalancer,omitempty"`
	PolicyMigration  *PolicyMigration        `json:"policyMigration,omitempty"`
}

// PeriodicController is a controller that compares both sides now and then.
type PeriodicController struct {
	ReconcilerPeriod *Duration `json:"reconcilerPeriod,omitempty"` // nil: 5m
}

// NodeController keeps Nodes, their labels, host endpoints and addresses as Kubernetes' nodes are.
type NodeController struct {
	ReconcilerPeriod *Duration         `json:"reconcilerPeriod,omitempty"`                         // nil: 5m
	SyncLabels       string            `json:"syncLabels,omitempty" want:"oneof Enabled Disabled"` // "": Enabled
	HostEndpoint     *AutoHostEndpoint `json:"hostEndpoint,omitempty"`
	LeakGracePeriod  *Duration         `json:"leakGracePeriod,omitempty"` // before a lost address is taken back; 0: never
}

// AutoHostEndpoint says whether nodes get host endpoints by themselves.
type AutoHostEndpoint struct {
	AutoCreate                string                 `json:"autoCreate,omitempty" want:"oneof Enabled Disabled"`                // "": Disabled
	CreateDefaultHostEndpoint string                 `json:"createDefaultHostEndpoint,omitempty" want:"oneof Enabled Disabled"` // "": Enabled
	Templates                 []HostEndpointTemplate `json:"templates,omitempty"`
}

// HostEndpointTemplate describes host endpoints to be made.
type HostEndpointTemplate struct {
	GenerateName     string            `json:"generateName,omitempty" want:"subdomain"`
	InterfaceCIDRs   []string          `json:"interfaceCIDRs,omitempty" want:"cidr"`
	InterfacePattern string            `json:"interfacePattern,omitempty" want:"regexp"`
	Labels           map[string]string `json:"labels,omitempty"`
	NodeSelector     string            `json:"nodeSelector,omitempty" want:"selector"`
}

// LoadBalancerController gives services of type LoadBalancer addresses.
type LoadBalancerController struct {
	AssignIPs string `json:"assignIPs,omitempty" want:"oneof AllServices RequestedServicesOnly"` // "": AllServices
}

// PolicyMigration moves policies to the names of newer releases.
type PolicyMigration struct {
	Enabled string `json:"enabled,omitempty" want:"oneof Enabled Disabled"`
}

// KubeControllersConfigurationStatus is what the controllers run with.
type KubeControllersConfigurationStatus struct {
	RunningConfig   *KubeControllersConfigurationSpec `json:"runningConfig,omitempty"`
	EnvironmentVars map[string]string                 `json:"environmentVars,omitempty"` // those that overrode settings
}

// KindOf describes KubeControllersConfiguration.
func (*KubeControllersConfiguration) KindOf() Kind {
	return Kind{
		Name: "KubeControllersConfiguration", Plural: "kubecontrollersconfigurations",
		Aliases: "kubecontrollersconfig kubecontrollersconfigs", Names: NameDefault,
	}
}

// Default fills what Calico's schema fills on every write.
func (k *KubeControllersConfiguration) Default() {
	s := &k.Spec
	setDefault(&s.LogSeverityScreen, "Info")
	setDefault(&s.HealthChecks, "Enabled")
	setDefaultTo(&s.PrometheusMetricsPort, 9094)
	if n := s.Controllers.Node; n != nil {
		setDefaultTo(&n.LeakGracePeriod, Duration{15 * time.Minute})
	}
}

func (k *KubeControllersConfiguration) validate(c *checker) {
	n := k.Spec.Controllers.Node
	if n == nil || n.HostEndpoint == nil {
		return
	}
	seen := map[string]bool{}
	for i, t := range n.HostEndpoint.Templates {
		path := fmt.Sprintf("spec.controllers.node.hostEndpoint.templates[%d]", i)
		if seen[t.GenerateName] {
			c.add(path+".generateName", t.GenerateName, "another template has this name")
		}
		seen[t.GenerateName] = true
		if len(t.InterfaceCIDRs) == 0 && t.InterfacePattern == "" {
			c.add(path, nil, "must have interfaceCIDRs or an interfacePattern")
		}
		for _, key := range slices.Sorted(maps.Keys(t.Labels)) {
			c.label(path+".labels", key, t.Labels[key])
		}
	}
}
