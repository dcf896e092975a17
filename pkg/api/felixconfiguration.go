package api

import (
	"fmt"
	"math/bits"
)

// FelixConfiguration holds the agent's settings: name "default" for all nodes, "node.<name>" for one.
type FelixConfiguration struct {
	Header
	Spec FelixConfigurationSpec `json:"spec"`
}

// FelixConfigurationSpec holds the settings under Calico's names, most of which concern dataplanes that are not ours; package
// config says which ones the agent heeds. nil and "" mean not set: the next source counts. Sizes are bytes, ports TCP where
// nothing else is said.
type FelixConfigurationSpec struct {
	UseInternalDataplaneDriver         *bool                    `json:"useInternalDataplaneDriver,omitempty"`
	DataplaneDriver                    string                   `json:"dataplaneDriver,omitempty"`
	DataplaneWatchdogTimeout           *Duration                `json:"dataplaneWatchdogTimeout,omitempty"`
	IPv6Support                        *bool                    `json:"ipv6Support,omitempty"`
	RouteRefreshInterval               *Duration                `json:"routeRefreshInterval,omitempty"`
	InterfaceRefreshInterval           *Duration                `json:"interfaceRefreshInterval,omitempty"`
	IptablesRefreshInterval            *Duration                `json:"iptablesRefreshInterval,omitempty"`
	IptablesPostWriteCheckInterval     *Duration                `json:"iptablesPostWriteCheckInterval,omitempty"`
	IptablesLockFilePath               string                   `json:"iptablesLockFilePath,omitempty"`
	IptablesLockTimeout                *Duration                `json:"iptablesLockTimeout,omitempty"`
	IptablesLockProbeInterval          *Duration                `json:"iptablesLockProbeInterval,omitempty"`
	FeatureDetectOverride              string                   `json:"featureDetectOverride,omitempty"`
	FeatureGates                       string                   `json:"featureGates,omitempty"`
	IpsetsRefreshInterval              *Duration                `json:"ipsetsRefreshInterval,omitempty"`
	MaxIpsetSize                       *int                     `json:"maxIpsetSize,omitempty" want:"range 0 2147483647"`
	IptablesBackend                    string                   `json:"iptablesBackend,omitempty" want:"fold Legacy NFT Auto"`
	XDPRefreshInterval                 *Duration                `json:"xdpRefreshInterval,omitempty"`
	NetlinkTimeout                     *Duration                `json:"netlinkTimeout,omitempty"`
	MetadataAddr                       string                   `json:"metadataAddr,omitempty"`
	MetadataPort                       *int                     `json:"metadataPort,omitempty" want:"range 0 65535"`
	OpenstackRegion                    string                   `json:"openstackRegion,omitempty" want:"subdomain"`
	InterfacePrefix                    string                   `json:"interfacePrefix,omitempty"` // names of workloads' interfaces begin so; commas between several
	InterfaceExclude                   string                   `json:"interfaceExclude,omitempty"`
	ChainInsertMode                    string                   `json:"chainInsertMode,omitempty" want:"fold Insert Append"`
	DefaultEndpointToHostAction        string                   `json:"defaultEndpointToHostAction,omitempty" want:"fold Drop Return Accept"`
	IptablesFilterAllowAction          string                   `json:"iptablesFilterAllowAction,omitempty" want:"fold Accept Return"`
	IptablesMangleAllowAction          string                   `json:"iptablesMangleAllowAction,omitempty" want:"fold Accept Return"`
	IptablesFilterDenyAction           string                   `json:"iptablesFilterDenyAction,omitempty" want:"fold Drop Reject"`
	LogPrefix                          string                   `json:"logPrefix,omitempty"`
	LogFilePath                        string                   `json:"logFilePath,omitempty"`
	LogSeverityFile                    string                   `json:"logSeverityFile,omitempty" want:"fold Trace Debug Info Warning Error Fatal None"`
	LogSeverityScreen                  string                   `json:"logSeverityScreen,omitempty" want:"fold Trace Debug Info Warning Error Fatal None"`
	LogSeveritySys                     string                   `json:"logSeveritySys,omitempty" want:"fold Trace Debug Info Warning Error Fatal None"`
	LogDebugFilenameRegex              string                   `json:"logDebugFilenameRegex,omitempty" want:"regexp"`
	IPIPEnabled                        *bool                    `json:"ipipEnabled,omitempty"`                     // nil: when a pool uses IPIP
	IPIPMTU                            *int                     `json:"ipipMTU,omitempty" want:"range 0 65535"`    // 0: from the host's devices
	VXLANEnabled                       *bool                    `json:"vxlanEnabled,omitempty"`                    // nil: when a pool uses VXLAN
	VXLANMTU                           *int                     `json:"vxlanMTU,omitempty" want:"range 0 65535"`   // 0: from the host's devices
	VXLANMTUV6                         *int                     `json:"vxlanMTUV6,omitempty" want:"range 0 65535"` // 0: from the host's devices
	VXLANPort                          *int                     `json:"vxlanPort,omitempty" want:"range 1 65535"`  // UDP
	VXLANVNI                           *int                     `json:"vxlanVNI,omitempty" want:"range 0 16777215"`
	MTUIfacePattern                    string                   `json:"mtuIfacePattern,omitempty" want:"regexp"` // names of the host's devices whose MTU counts
	AllowVXLANPacketsFromWorkloads     *bool                    `json:"allowVXLANPacketsFromWorkloads,omitempty"`
	AllowIPIPPacketsFromWorkloads      *bool                    `json:"allowIPIPPacketsFromWorkloads,omitempty"`
	ReportingInterval                  *Duration                `json:"reportingInterval,omitempty"` // 0: no reports
	ReportingTTL                       *Duration                `json:"reportingTTL,omitempty"`
	EndpointReportingEnabled           *bool                    `json:"endpointReportingEnabled,omitempty"`
	EndpointReportingDelay             *Duration                `json:"endpointReportingDelay,omitempty"`
	EndpointStatusPathPrefix           string                   `json:"endpointStatusPathPrefix,omitempty"`
	IptablesMarkMask                   *uint32                  `json:"iptablesMarkMask,omitempty"` // bits of packet marks that are ours
	DisableConntrackInvalidCheck       *bool                    `json:"disableConntrackInvalidCheck,omitempty"`
	HealthEnabled                      *bool                    `json:"healthEnabled,omitempty"`
	HealthHost                         *string                  `json:"healthHost,omitempty"`
	HealthPort                         *int                     `json:"healthPort,omitempty" want:"range 0 65535"`
	HealthTimeoutOverrides             *[]HealthTimeoutOverride `json:"healthTimeoutOverrides,omitempty"`
	PrometheusMetricsEnabled           *bool                    `json:"prometheusMetricsEnabled,omitempty"`
	PrometheusMetricsHost              string                   `json:"prometheusMetricsHost,omitempty"`
	PrometheusMetricsPort              *int                     `json:"prometheusMetricsPort,omitempty" want:"range 0 65535"`
	PrometheusGoMetricsEnabled         *bool                    `json:"prometheusGoMetricsEnabled,omitempty"`
	PrometheusProcessMetricsEnabled    *bool                    `json:"prometheusProcessMetricsEnabled,omitempty"`
	PrometheusWireGuardMetricsEnabled  *bool                    `json:"prometheusWireGuardMetricsEnabled,omitempty"`
	FailsafeInboundHostPorts           *[]ProtoPort             `json:"failsafeInboundHostPorts,omitempty"`  // nil: the usual ones; empty: none
	FailsafeOutboundHostPorts          *[]ProtoPort             `json:"failsafeOutboundHostPorts,omitempty"` // nil: the usual ones; empty: none
	KubeNodePortRanges                 *[]Port                  `json:"kubeNodePortRanges,omitempty"`
	PolicySyncPathPrefix               string                   `json:"policySyncPathPrefix,omitempty"`
	UsageReportingEnabled              *bool                    `json:"usageReportingEnabled,omitempty"`
	UsageReportingInitialDelay         *Duration                `json:"usageReportingInitialDelay,omitempty"`
	UsageReportingInterval             *Duration                `json:"usageReportingInterval,omitempty"`
	NATPortRange                       *Port                    `json:"natPortRange,omitempty"` // a range of ports
	NATOutgoingAddress                 string                   `json:"natOutgoingAddress,omitempty" want:"ip"`
	NATOutgoingExclusions              string                   `json:"natOutgoingExclusions,omitempty" want:"oneof IPPoolsOnly IPPoolsAndHostIPs"`
	DeviceRouteSourceAddress           string                   `json:"deviceRouteSourceAddress,omitempty" want:"ip4"`
	DeviceRouteSourceAddressIPv6       string                   `json:"deviceRouteSourceAddressIPv6,omitempty" want:"ip6"`
	DeviceRouteProtocol                *int                     `json:"deviceRouteProtocol,omitempty" want:"range 0 255"`
	RemoveExternalRoutes               *bool                    `json:"removeExternalRoutes,omitempty"`
	ExternalNodesCIDRList              *[]string                `json:"externalNodesList,omitempty" want:"cidr"`
	DebugMemoryProfilePath             string                   `json:"debugMemoryProfilePath,omitempty"`
	DebugDisableLogDropping            *bool                    `json:"debugDisableLogDropping,omitempty"`
	DebugSimulateCalcGraphHangAfter    *Duration                `json:"debugSimulateCalcGraphHangAfter,omitempty"`
	DebugSimulateDataplaneHangAfter    *Duration                `json:"debugSimulateDataplaneHangAfter,omitempty"`
	DebugSimulateDataplaneApplyDelay   *Duration                `json:"debugSimulateDataplaneApplyDelay,omitempty"`
	DebugHost                          *string                  `json:"debugHost,omitempty"`
	DebugPort                          *int                     `json:"debugPort,omitempty" want:"range 0 65535"`
	IptablesNATOutgoingInterfaceFilter string                   `json:"iptablesNATOutgoingInterfaceFilter,omitempty" want:"ifname"`
	SidecarAccelerationEnabled         *bool                    `json:"sidecarAccelerationEnabled,omitempty"`
	XDPEnabled                         *bool                    `json:"xdpEnabled,omitempty"`
	GenericXDPEnabled                  *bool                    `json:"genericXDPEnabled,omitempty"`
	NFTablesMode                       string                   `json:"nftablesMode,omitempty" want:"oneof Disabled Enabled Auto"`
	NftablesRefreshInterval            *Duration                `json:"nftablesRefreshInterval,omitempty"`
	NftablesFilterAllowAction          string                   `json:"nftablesFilterAllowAction,omitempty" want:"fold Accept Return"`
	NftablesMangleAllowAction          string                   `json:"nftablesMangleAllowAction,omitempty" want:"fold Accept Return"`
	NftablesFilterDenyAction           string                   `json:"nftablesFilterDenyAction,omitempty" want:"fold Drop Reject"`
	NftablesMarkMask                   *uint32                  `json:"nftablesMarkMask,omitempty"`
	BPFEnabled                         *bool                    `json:"bpfEnabled,omitempty"`
	BPFDisableUnprivileged             *bool                    `json:"bpfDisableUnprivileged,omitempty"`
	BPFLogLevel                        string                   `json:"bpfLogLevel" want:"fold Off Info Debug"`
	BPFConntrackLogLevel               string                   `json:"bpfConntrackLogLevel,omitempty" want:"fold Off Debug"`
	BPFLogFilters                      *map[string]string       `json:"bpfLogFilters,omitempty"`
	BPFCTLBLogFilter                   string                   `json:"bpfCTLBLogFilter,omitempty"`
	BPFDataIfacePattern                string                   `json:"bpfDataIfacePattern,omitempty" want:"regexp"`
	BPFL3IfacePattern                  string                   `json:"bpfL3IfacePattern,omitempty" want:"regexp"`
	BPFConnectTimeLoadBalancingEnabled *bool                    `json:"bpfConnectTimeLoadBalancingEnabled,omitempty"`
	BPFConnectTimeLoadBalancing        string                   `json:"bpfConnectTimeLoadBalancing,omitempty" want:"oneof TCP Enabled Disabled"`
	BPFHostNetworkedNATWithoutCTLB     string                   `json:"bpfHostNetworkedNATWithoutCTLB,omitempty" want:"oneof Disabled Enabled"`
	BPFExternalServiceMode             string                   `json:"bpfExternalServiceMode,omitempty" want:"fold Tunnel DSR"`
	BPFDSROptoutCIDRs                  *[]string                `json:"bpfDSROptoutCIDRs,omitempty" want:"cidr"`
	BPFExtToServiceConnmark            *int                     `json:"bpfExtToServiceConnmark,omitempty"`
	BPFKubeProxyIptablesCleanupEnabled *bool                    `json:"bpfKubeProxyIptablesCleanupEnabled,omitempty"`
	BPFKubeProxyMinSyncPeriod          *Duration                `json:"bpfKubeProxyMinSyncPeriod,omitempty"`
	BPFKubeProxyHealthzPort            *int                     `json:"bpfKubeProxyHealthzPort,omitempty" want:"range 0 65535"`
	BPFKubeProxyEndpointSlicesEnabled  *bool                    `json:"bpfKubeProxyEndpointSlicesEnabled,omitempty"`
	BPFPSNATPorts                      *Port                    `json:"bpfPSNATPorts,omitempty"`
	BPFMapSizeNATFrontend              *int                     `json:"bpfMapSizeNATFrontend,omitempty"`
	BPFMapSizeNATBackend               *int                     `json:"bpfMapSizeNATBackend,omitempty"`
	BPFMapSizeNATAffinity              *int                     `json:"bpfMapSizeNATAffinity,omitempty"`
	BPFMapSizeRoute                    *int                     `json:"bpfMapSizeRoute,omitempty"`
	BPFMapSizeConntrack                *int                     `json:"bpfMapSizeConntrack,omitempty"`
	BPFMapSizePerCPUConntrack          *int                     `json:"bpfMapSizePerCPUConntrack,omitempty"`
	BPFMapSizeConntrackScaling         string                   `json:"bpfMapSizeConntrackScaling,omitempty"`
	BPFMapSizeConntrackCleanupQueue    *int                     `json:"bpfMapSizeConntrackCleanupQueue,omitempty"`
	BPFMapSizeIPSets                   *int                     `json:"bpfMapSizeIPSets,omitempty"`
	BPFMapSizeIfState                  *int                     `json:"bpfMapSizeIfState,omitempty"`
	BPFHostConntrackBypass             *bool                    `json:"bpfHostConntrackBypass,omitempty"`
	BPFEnforceRPF                      string                   `json:"bpfEnforceRPF,omitempty"`
	BPFPolicyDebugEnabled              *bool                    `json:"bpfPolicyDebugEnabled,omitempty"`
	BPFForceTrackPacketsFromIfaces     *[]string                `json:"bpfForceTrackPacketsFromIfaces,omitempty"`
	BPFDisableGROForIfaces             string                   `json:"bpfDisableGROForIfaces,omitempty" want:"regexp"`
	BPFExcludeCIDRsFromNAT             *[]string                `json:"bpfExcludeCIDRsFromNAT,omitempty" want:"cidr"`
	BPFRedirectToPeer                  string                   `json:"bpfRedirectToPeer,omitempty"`
	BPFAttachType                      string                   `json:"bpfAttachType,omitempty"`
	BPFExportBufferSizeMB              *int                     `json:"bpfExportBufferSizeMB,omitempty"`
	BPFProfiling                       string                   `json:"bpfProfiling,omitempty"`
	RouteSource                        string                   `json:"routeSource,omitempty" want:"fold WorkloadIPs CalicoIPAM"`
	RouteTableRanges                   *[]RouteTableRange       `json:"routeTableRanges,omitempty"`
	RouteTableRange                    *RouteTableRange         `json:"routeTableRange,omitempty"`
	RouteSyncDisabled                  *bool                    `json:"routeSyncDisabled,omitempty"`
	WireguardEnabled                   *bool                    `json:"wireguardEnabled,omitempty"`
	WireguardEnabledV6                 *bool                    `json:"wireguardEnabledV6,omitempty"`
	WireguardListeningPort             *int                     `json:"wireguardListeningPort,omitempty" want:"range 1 65535"`
	WireguardListeningPortV6           *int                     `json:"wireguardListeningPortV6,omitempty" want:"range 1 65535"`
	WireguardRoutingRulePriority       *int                     `json:"wireguardRoutingRulePriority,omitempty" want:"range 1 32765"`
	WireguardInterfaceName             string                   `json:"wireguardInterfaceName,omitempty" want:"ifname"`
	WireguardInterfaceNameV6           string                   `json:"wireguardInterfaceNameV6,omitempty" want:"ifname"`
	WireguardMTU                       *int                     `json:"wireguardMTU,omitempty" want:"range 0 65535"`
	WireguardMTUV6                     *int                     `json:"wireguardMTUV6,omitempty" want:"range 0 65535"`
	WireguardHostEncryptionEnabled     *bool                    `json:"wireguardHostEncryptionEnabled,omitempty"`
	WireguardPersistentKeepAlive       *Duration                `json:"wireguardKeepAlive,omitempty"`
	WireguardThreadingEnabled          *bool                    `json:"wireguardThreadingEnabled,omitempty"`
	AWSSrcDstCheck                     string                   `json:"awsSrcDstCheck,omitempty" want:"oneof DoNothing Enable Disable"`
	ServiceLoopPrevention              string                   `json:"serviceLoopPrevention,omitempty" want:"oneof Drop Reject Disabled"`
	WorkloadSourceSpoofing             string                   `json:"workloadSourceSpoofing,omitempty" want:"oneof Disabled Any"`
	FloatingIPs                        string                   `json:"floatingIPs,omitempty" want:"oneof Enabled Disabled"`
	WindowsManageFirewallRules         string                   `json:"windowsManageFirewallRules,omitempty" want:"oneof Enabled Disabled"`
	GoGCThreshold                      *int                     `json:"goGCThreshold,omitempty"`
	GoMemoryLimitMB                    *int                     `json:"goMemoryLimitMB,omitempty"`
	GoMaxProcs                         *int                     `json:"goMaxProcs,omitempty"`
	IPForwarding                       string                   `json:"ipForwarding,omitempty" want:"oneof Enabled Disabled"`
	ProgramClusterRoutes               string                   `json:"programClusterRoutes,omitempty" want:"oneof Enabled Disabled"` // Enabled: the agent makes the routes to other nodes; "": BGP does
	IPv4NormalRoutePriority            *int                     `json:"ipv4NormalRoutePriority,omitempty" want:"range 1 2147483646"`  // metric of routes to pods; nil: 1024
	IPv6NormalRoutePriority            *int                     `json:"ipv6NormalRoutePriority,omitempty" want:"range 1 2147483646"`
	LogActionRateLimit                 string                   `json:"logActionRateLimit,omitempty"`
	LogActionRateLimitBurst            *int                     `json:"logActionRateLimitBurst,omitempty"`
	FlowLogsFlushInterval              *Duration                `json:"flowLogsFlushInterval,omitempty"`
	FlowLogsCollectorDebugTrace        *bool                    `json:"flowLogsCollectorDebugTrace,omitempty"`
	FlowLogsGoldmaneServer             *string                  `json:"flowLogsGoldmaneServer,omitempty"`
	FlowLogsLocalReporter              string                   `json:"flowLogsLocalReporter,omitempty"`
	FlowLogsPolicyEvaluationMode       string                   `json:"flowLogsPolicyEvaluationMode,omitempty"`
	CgroupV2Path                       string                   `json:"cgroupV2Path,omitempty"`
	RequireMTUFile                     *bool                    `json:"requireMTUFile,omitempty"`
	PrometheusReporterEnabled          *bool                    `json:"prometheusReporterEnabled,omitempty"`
}

// ProtoPort is a port that stays open whatever the policies say.
type ProtoPort struct {
	Protocol string `json:"protocol,omitempty" want:"fold TCP UDP"`
	Port     uint16 `json:"port"`
	Net      string `json:"net,omitempty" want:"cidr"` // "": from and to everywhere
}

// RouteTableRange is a range of the kernel's routing tables, both ends included.
type RouteTableRange struct {
	Min int `json:"min" want:"range 1 4294967295"`
	Max int `json:"max" want:"range 1 4294967295"`
}

// HealthTimeoutOverride says after what time of silence a part of the agent counts as stuck.
type HealthTimeoutOverride struct {
	Name    string   `json:"name" want:"required"`
	Timeout Duration `json:"timeout"`
}

// KindOf describes FelixConfiguration.
func (*FelixConfiguration) KindOf() Kind {
	return Kind{Name: "FelixConfiguration", Plural: "felixconfigurations", Aliases: "felixconfig felixconfigs"}
}

// Default fills the fields that Calico's schema fills on every write.
func (f *FelixConfiguration) Default() {
	setDefault(&f.Spec.NFTablesMode, "Auto")
	setDefault(&f.Spec.BPFConnectTimeLoadBalancing, "TCP")
	setDefault(&f.Spec.BPFHostNetworkedNATWithoutCTLB, "Enabled")
	setDefault(&f.Spec.FloatingIPs, "Disabled")
}

func (f *FelixConfiguration) validate(c *checker) {
	s := f.Spec
	if r := s.NATPortRange; r != nil && r.Name != "" {
		c.add("spec.natPortRange", r, "must be a range of ports such as 32768:65000")
	}
	if r := s.RouteTableRange; r != nil {
		r.check(c, "spec.routeTableRange")
		if s.RouteTableRanges != nil {
			c.add("spec.routeTableRange", nil, "cannot be combined with routeTableRanges")
		}
	}
	if s.RouteTableRanges != nil {
		for i, r := range *s.RouteTableRanges {
			r.check(c, fmt.Sprintf("spec.routeTableRanges[%d]", i))
		}
	}
	if m := s.IptablesMarkMask; m != nil && bits.OnesCount32(*m) < 4 {
		c.add("spec.iptablesMarkMask", fmt.Sprintf("%#x", *m), "must have at least 4 bits set")
	}
}

func (r RouteTableRange) check(c *checker, path string) {
	if r.Min > r.Max {
		c.add(path+".min", r.Min, "must not be greater than max")
	}
}
