package config

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"
)

// row is a setting with the field of Dataplane that it fills, or the variable that it stands in for.
type row struct {
	Setting
	json string // the field in a resource where it has another name than the setting
	must bool   // see CheckLocal
	// Every FelixConfiguration is stored with the default in this field, whoever wrote it (api.SetDefaults). It says nothing there: else the node's, which
	// agents make at their start, would always go before the cluster's.
	filled bool
	local  string // "": a field of Dataplane; else the variable that it is the counterpart of, see Local
	set    func(d *Dataplane, text string) error
}

// in is a row whose value goes to a field of Dataplane.
func in[T any](name, fallback, meaning string, parse func(string) (T, error), to func(*Dataplane) *T) row {
	return row{
		Setting: Setting{Name: name, Env: "FELIX_" + strings.ToUpper(name), Default: fallback, Meaning: meaning},
		set: func(d *Dataplane, text string) error {
			v, err := parse(text)
			if err == nil {
				*to(d) = v
			}
			return err
		},
	}
}

// as gives a row the name that it has in resources.
func as(json string, r row) row {
	r.json = json
	return r
}

// must is a row whose bad values in the environment keep the agent from starting.
func must(r row) row {
	r.must = true
	return r
}

// filled is a row whose default in a FelixConfiguration says nothing.
func filled(r row) row {
	r.filled = true
	return r
}

// standIn is a row of the node's own settings.
func standIn(name, variable, meaning string) row {
	return row{
		Setting: Setting{Name: name, Env: "FELIX_" + strings.ToUpper(name), Meaning: meaning + ", where " + variable + " is not set"},
		local:   variable,
	}
}

const usualDevices = `^((en|wl|ww|sl|ib)[Pcopsvx].*|(eth|wlan|wwan).*)`

// felixRows is the table of all settings, from which parsing, precedence, defaults and help come.
func felixRows() []row {
	return slices.Concat(workloadRows(), tunnelRows(), wireGuardRows(), routeRows(), operatorRows())
}

func workloadRows() []row {
	return []row{
		standIn("FelixHostname", "NODENAME", "the node's name"),
		standIn("DatastoreType", "DATASTORE_TYPE", "etcdv3: etcd is the one datastore"),
		standIn("EtcdEndpoints", "ETCD_ENDPOINTS", "URLs of etcd, with commas between them"),
		standIn("EtcdCaFile", "ETCD_CA_CERT_FILE", "the authority of etcd's certificates"),
		standIn("EtcdCertFile", "ETCD_CERT_FILE", "our certificate for etcd"),
		standIn("EtcdKeyFile", "ETCD_KEY_FILE", "the key of that certificate"),
		in("Ipv6Support", "true", "do IPv6 where pools ask for it", parseBool, func(d *Dataplane) *bool { return &d.IPv6Support }),
		must(in("InterfacePrefix", "cali", "how names of workloads' devices begin, with commas between several; cali, as the plugin names them, always counts too", prefixes,
			func(d *Dataplane) *[]string { return &d.InterfacePrefixes })),
		must(in("DefaultEndpointToHostAction", "DROP", "packets from pods to their host: DROP, ACCEPT, or RETURN to the host's own rules; at start the agent writes "+
			"Return for its node", oneOf("DROP", "RETURN", "ACCEPT"), func(d *Dataplane) *string { return &d.EndpointToHost })),
		must(in("ChainInsertMode", "insert", "our rules stand first (insert) or last (append) in the kernel's chains", oneOf("insert", "append"),
			func(d *Dataplane) *string { return &d.ChainInsertMode })),
		must(in("IptablesMarkMask", "0xffff0000", "bits of packet marks that are ours, at least 4. The lowest says that policy has accepted a packet", markMask,
			func(d *Dataplane) *uint32 { return &d.MarkMask })),
		must(in("IptablesFilterDenyAction", "DROP", "what packets get that policy denies: DROP, or REJECT, which answers", oneOf("DROP", "REJECT"),
			func(d *Dataplane) *string { return &d.DenyAction })),
		must(in("NftablesMarkMask", "", "the same mask, in front of IptablesMarkMask", orNone(markMask), func(d *Dataplane) *uint32 { return &d.NftMarkMask })),
		must(in("NftablesFilterDenyAction", "", "the same action, in front of IptablesFilterDenyAction", orNone(oneOf("DROP", "REJECT")),
			func(d *Dataplane) *string { return &d.NftDenyAction })),
		in("LogPrefix", "calico-packet", "in front of lines in the kernel's log about packets that Log rules match", anyText, func(d *Dataplane) *string { return &d.LogPrefix }),
		in("LogActionRateLimit", "", "how often each Log rule tells of packets at most, as 10/second, 10/minute, 10/hour or 10/day; not set: 10/second", orNone(logRate),
			func(d *Dataplane) *LogRate { return &d.LogRate }),
		in("LogActionRateLimitBurst", "5", "after a pause it tells of so many more at once", within(1, 9999), func(d *Dataplane) *int { return &d.LogBurst }),
		in("DisableConntrackInvalidCheck", "false", "do not drop packets that belong to no connection, and could begin none", parseBool, func(d *Dataplane) *bool { return &d.KeepInvalid }),
		must(in("WorkloadSourceSpoofing", "Disabled", "Any: pods may send from the ranges that their endpoints name (allowSpoofedSourcePrefixes); Disabled: from their own addresses alone",
			oneOf("Disabled", "Any"), func(d *Dataplane) *string { return &d.Spoofing })),
		filled(in("FloatingIPs", "Disabled", "Enabled: what is sent to the floating addresses that pods ask for goes to the pods", enabled, func(d *Dataplane) *bool { return &d.FloatingIPs })),
		must(in("AllowVXLANPacketsFromWorkloads", "false", "pods may send VXLAN packets (UDP to VXLANPort)", parseBool, func(d *Dataplane) *bool { return &d.WorkloadVXLAN })),
		must(in("AllowIPIPPacketsFromWorkloads", "false", "pods may send IP in IP", parseBool, func(d *Dataplane) *bool { return &d.WorkloadIPIP })),
		must(in("FailsafeInboundHostPorts", "tcp:22,udp:68,tcp:179,tcp:2379,tcp:2380,tcp:5473,tcp:6443,tcp:6666,tcp:6667",
			"ports of hosts with endpoints of their own that stay open whatever policy says, as tcp:22 or tcp:10.0.0.0/8:22, with commas between them; none", orNone(failsafes),
			func(d *Dataplane) *[]Failsafe { return &d.FailsafeIn })),
		must(in("FailsafeOutboundHostPorts", "udp:53,udp:67,tcp:179,tcp:2379,tcp:2380,tcp:5473,tcp:6443,tcp:6666,tcp:6667",
			"ports that such hosts reach whatever policy says", orNone(failsafes), func(d *Dataplane) *[]Failsafe { return &d.FailsafeOut })),
		in("IptablesBackend", "auto", "nft, legacy, or auto: where kube-proxy's chains are; a change needs a restart", oneOf("auto", "nft", "legacy"),
			func(d *Dataplane) *string { return &d.IptablesBackend }),
		in("NATOutgoingExclusions", "IPPoolsOnly", "not masqueraded is what goes to pools, or to pools and nodes: IPPoolsOnly, IPPoolsAndHostIPs",
			oneOf("ippoolsonly", "ippoolsandhostips"), func(d *Dataplane) *string { return &d.NATExclusions }),
		in("NATOutgoingAddress", "", "the IPv4 address that masqueraded traffic gets; else that of the device", orNone(addr4),
			func(d *Dataplane) *netip.Addr { return &d.NATAddress }),
		in("NATPortRange", "", "the ports that masqueraded TCP and UDP gets, as 32768:65000", orNone(portRange), func(d *Dataplane) *string { return &d.NATPorts }),
	}
}

func tunnelRows() []row {
	return []row{
		as("ipipEnabled", in("IpInIpEnabled", "", "do IP-in-IP whether or not a pool asks for it", orNone(parseOptionalBool), func(d *Dataplane) **bool { return &d.IPIPEnabled })),
		as("ipipMTU", in("IpInIpMtu", "0", "of tunl0; 0 is the host's less 20", orNone(parseMTU), func(d *Dataplane) *int { return &d.IPIPMTU })),
		in("VXLANEnabled", "", "do VXLAN whether or not a pool asks for it", orNone(parseOptionalBool), func(d *Dataplane) **bool { return &d.VXLANEnabled }),
		in("VXLANMTU", "0", "of vxlan.calico; 0 is the host's less 50", orNone(parseMTU), func(d *Dataplane) *int { return &d.VXLANMTU }),
		in("VXLANMTUV6", "0", "of vxlan-v6.calico; 0 is the host's less 70", orNone(parseMTU6), func(d *Dataplane) *int { return &d.VXLANMTUV6 }),
		in("VXLANPort", "4789", "UDP port of VXLAN, the same on all nodes", within(1, 65535), func(d *Dataplane) *int { return &d.VXLANPort }),
		in("VXLANVNI", "4096", "VXLAN network identifier, the same on all nodes", within(0, 1<<24-1), func(d *Dataplane) *int { return &d.VXLANVNI }),
		in("MTUIfacePattern", usualDevices, "regular expression of the devices between nodes, whose smallest MTU counts", regexp.Compile,
			func(d *Dataplane) **regexp.Regexp { return &d.MTUIface }),
		as("externalNodesList", in("ExternalNodesCIDRList", "", "ranges of hosts, besides the nodes, whose VXLAN packets are taken", orNone(ranges),
			func(d *Dataplane) *[]netip.Prefix { return &d.TunnelPeers })),
	}
}

func wireGuardRows() []row {
	return []row{
		must(in("WireguardEnabled", "false", "encrypt what pods of different nodes send each other by IPv4, and refuse what is for nodes that have told no key (see MUSLIN_WIREGUARD_PLAINTEXT), from ten seconds after it is turned on",
			parseBool, func(d *Dataplane) *bool { return &d.WireGuard.Enabled })),
		must(in("WireguardEnabledV6", "false", "the same for IPv6", parseBool, func(d *Dataplane) *bool { return &d.WireGuard.Enabled6 })),
		in("WireguardListeningPort", "51820", "UDP port of WireGuard, the same on all nodes", within(1, 65535), func(d *Dataplane) *int { return &d.WireGuard.Port }),
		in("WireguardListeningPortV6", "51821", "the same for IPv6", within(1, 65535), func(d *Dataplane) *int { return &d.WireGuard.Port6 }),
		in("WireguardInterfaceName", "wireguard.cali", "name of the device", deviceName, func(d *Dataplane) *string { return &d.WireGuard.Device }),
		in("WireguardInterfaceNameV6", "wg-v6.cali", "the same for IPv6", deviceName, func(d *Dataplane) *string { return &d.WireGuard.Device6 }),
		in("WireguardMTU", "0", "of the device; 0 is the host's less 60", orNone(parseMTU), func(d *Dataplane) *int { return &d.WireGuard.MTU }),
		in("WireguardMTUV6", "0", "of the device for IPv6; 0 is the host's less 80", orNone(parseMTU6), func(d *Dataplane) *int { return &d.WireGuard.MTU6 }),
		in("WireguardRoutingRulePriority", "99", "priority of the rule that leads to the encrypted routes; with WireguardHostEncryptionEnabled the one before it is taken too", within(1, 32765),
			func(d *Dataplane) *int { return &d.WireGuard.Priority }),
		must(in("WireguardHostEncryptionEnabled", "false", "encrypt too what nodes send each other, but for etcd, the API server and the agent's own ports", parseBool,
			func(d *Dataplane) *bool { return &d.WireGuard.Hosts })),
		as("wireguardKeepAlive", in("WireguardPersistentKeepAlive", "0", "send something to each node this often, where a firewall between them forgets; 0 is never", seconds,
			func(d *Dataplane) *time.Duration { return &d.WireGuard.KeepAlive })),
		in("WireguardThreadingEnabled", "false", "have threads of the kernel receive for the device", parseBool, func(d *Dataplane) *bool { return &d.WireGuard.Threaded }),
		in("RouteTableRanges", "1-250", "routing tables that are free for us, as 1-250, with commas between several; the first is WireGuard's", tables,
			func(d *Dataplane) *[]TableRange { return &d.WireGuard.Tables }),
		in("RouteTableRange", "", "old form of it", orNone(tables), func(d *Dataplane) *[]TableRange { return &d.WireGuard.Tables1 }),
	}
}

func routeRows() []row {
	return []row{
		in("DeviceRouteProtocol", "3", fmt.Sprintf("protocol number of our routes; 3 stands for %d. Every route of that number counts as ours", ourProtocol), routeProtocol,
			func(d *Dataplane) *int { return &d.RouteProtocol }),
		in("DeviceRouteSourceAddress", "", "the IPv4 address that the host talks to its pods from", orNone(addr4), func(d *Dataplane) *netip.Addr { return &d.RouteSource }),
		in("DeviceRouteSourceAddressIPv6", "", "the same for IPv6", orNone(addr6), func(d *Dataplane) *netip.Addr { return &d.RouteSource6 }),
		in("RemoveExternalRoutes", "true", "remove routes of others on workloads' devices", parseBool, func(d *Dataplane) *bool { return &d.RemoveExternalRoutes }),
		in("ProgramClusterRoutes", "Disabled", "Enabled: all routes into pools come from etcd; Disabled: where etcd gives none (nodes beyond our subnet in a pool without "+
			"encapsulation) BGP does", enabled, func(d *Dataplane) *bool { return &d.ClusterRoutes }),
		in("IPForwarding", "Enabled", "Enabled: switch on the host's forwarding; Disabled: leave it as it is", enabled, func(d *Dataplane) *bool { return &d.IPForwarding }),
		in("IPv4NormalRoutePriority", "1024", "metric of IPv4 routes to local pods", within(1, maxMetric), func(d *Dataplane) *int { return &d.PodMetric4 }),
		in("IPv6NormalRoutePriority", "1024", "metric of IPv6 routes to local pods", within(1, maxMetric), func(d *Dataplane) *int { return &d.PodMetric6 }),
		in("IptablesRefreshInterval", "180", "list our chains this often; 0 is never. Here and below seconds, and in resources 1m30s", seconds,
			func(d *Dataplane) *time.Duration { return &d.Refresh.Chains }),
		in("IpsetsRefreshInterval", "90", "list our ipsets this often", seconds, func(d *Dataplane) *time.Duration { return &d.Refresh.Sets }),
		in("RouteRefreshInterval", "90", "list our routes this often", seconds, func(d *Dataplane) *time.Duration { return &d.Refresh.Routes }),
		in("InterfaceRefreshInterval", "90", "list devices, their addresses, neighbours and kernel settings this often", seconds,
			func(d *Dataplane) *time.Duration { return &d.Refresh.Interfaces }),
	}
}

func operatorRows() []row {
	return []row{
		in("HealthEnabled", "false", "serve /readiness and /liveness by HTTP", parseBool, func(d *Dataplane) *bool { return &d.HealthEnabled }),
		in("HealthHost", "localhost", "where they are served", anyText, func(d *Dataplane) *string { return &d.HealthHost }),
		in("HealthPort", "9099", "where they are served", within(1, 65535), func(d *Dataplane) *int { return &d.HealthPort }),
		in("DataplaneWatchdogTimeout", "90", "the agent counts as stuck after that long on one round; 0 is never", seconds, func(d *Dataplane) *time.Duration { return &d.Watchdog }),
		in("PrometheusMetricsEnabled", "false", "serve /metrics by HTTP", parseBool, func(d *Dataplane) *bool { return &d.MetricsEnabled }),
		in("PrometheusMetricsHost", "", "where they are served; else on every address", orNone(anyText), func(d *Dataplane) *string { return &d.MetricsHost }),
		in("PrometheusMetricsPort", "9091", "where they are served", within(1, 65535), func(d *Dataplane) *int { return &d.MetricsPort }),
		in("PrometheusGoMetricsEnabled", "true", "with those of the Go runtime", parseBool, func(d *Dataplane) *bool { return &d.GoMetrics }),
		in("PrometheusProcessMetricsEnabled", "true", "with those of the process", parseBool, func(d *Dataplane) *bool { return &d.ProcessMetrics }),
		in("PrometheusWireGuardMetricsEnabled", "true", "with those of WireGuard's devices and peers", parseBool, func(d *Dataplane) *bool { return &d.WireGuardMetrics }),
		as("reportingInterval", in("ReportingIntervalSecs", "30", "accepted and without effect: nobody reads such reports in etcd", seconds,
			func(d *Dataplane) *time.Duration { return &d.ReportInterval })),
		as("reportingTTL", in("ReportingTTLSecs", "90", "accepted and without effect, likewise", seconds, func(d *Dataplane) *time.Duration { return &d.ReportTTL })),
		in("LogSeverityScreen", "INFO", "the least that is logged to standard error: Trace, Debug, Info, Warning, Error, Fatal, None", level,
			func(d *Dataplane) *Level { return &d.LogScreen }),
		in("LogSeverityFile", "none", "the same for LogFilePath", level, func(d *Dataplane) *Level { return &d.LogFile }),
		in("LogSeveritySys", "none", "the same for syslog", level, func(d *Dataplane) *Level { return &d.LogSyslog }),
		in("LogFilePath", "/var/log/calico/felix.log", "the file to log to", orNone(anyText), func(d *Dataplane) *string { return &d.LogFilePath }),
	}
}
