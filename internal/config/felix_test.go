package config

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/muslin-cni/muslin/pkg/api"
)

// samples holds for every row of the table a value other than the default, as the environment has it, and what comes of it.
func samples() map[string]struct {
	text string
	want any
} {
	type sample = struct {
		text string
		want any
	}
	yes := true
	return map[string]sample{
		"Ipv6Support":                 {"no", false},
		"InterfacePrefix":             {"tap, cali", []string{"cali", "tap"}},
		"DefaultEndpointToHostAction": {"Accept", "ACCEPT"},
		"ChainInsertMode":             {"APPEND", "append"},
		"IptablesMarkMask":            {"0xf0", uint32(0xf0)},
		"IptablesBackend":             {"Legacy", "legacy"},
		"IptablesFilterDenyAction":    {"Reject", "REJECT"},

		"NftablesMarkMask":               {"0xff00", uint32(0xff00)},
		"NftablesFilterDenyAction":       {"reject", "REJECT"},
		"LogPrefix":                      {"here", "here"},
		"LogActionRateLimit":             {"3/minute", LogRate{3, time.Minute}},
		"LogActionRateLimitBurst":        {"7", 7},
		"DisableConntrackInvalidCheck":   {"true", true},
		"WorkloadSourceSpoofing":         {"any", "Any"},
		"FloatingIPs":                    {"enabled", true},
		"AllowVXLANPacketsFromWorkloads": {"true", true},
		"AllowIPIPPacketsFromWorkloads":  {"true", true},
		"FailsafeInboundHostPorts":       {"22, udp:10.1.2.3/16:53", []Failsafe{{6, 22, netip.Prefix{}}, {17, 53, netip.MustParsePrefix("10.1.0.0/16")}}},
		"FailsafeOutboundHostPorts":      {"tcp:fd00::/16:443", []Failsafe{{6, 443, netip.MustParsePrefix("fd00::/16")}}},
		"NATOutgoingExclusions":          {"IPPoolsAndHostIPs", "ippoolsandhostips"},
		"NATOutgoingAddress":             {"192.0.2.1", netip.MustParseAddr("192.0.2.1")},
		"NATPortRange":                   {"32768:65000", "32768-65000"},

		"IpInIpEnabled":         {"true", &yes},
		"IpInIpMtu":             {"1440", 1440},
		"VXLANEnabled":          {"1", &yes},
		"VXLANMTU":              {"1400", 1400},
		"VXLANMTUV6":            {"1390", 1390},
		"VXLANPort":             {"8472", 8472},
		"VXLANVNI":              {"7", 7},
		"MTUIfacePattern":       {"^net", regexp.MustCompile("^net")},
		"ExternalNodesCIDRList": {"10.1.2.3/16,192.0.2.9", []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("192.0.2.9/32")}},

		"WireguardEnabled":               {"true", true},
		"WireguardEnabledV6":             {"yes", true},
		"WireguardListeningPort":         {"51900", 51900},
		"WireguardListeningPortV6":       {"51901", 51901},
		"WireguardInterfaceName":         {"wg0", "wg0"},
		"WireguardInterfaceNameV6":       {"wg6", "wg6"},
		"WireguardMTU":                   {"1400", 1400},
		"WireguardMTUV6":                 {"1380", 1380},
		"WireguardRoutingRulePriority":   {"77", 77},
		"WireguardHostEncryptionEnabled": {"true", true},
		"WireguardPersistentKeepAlive":   {"25", 25 * time.Second},
		"WireguardThreadingEnabled":      {"true", true},
		"RouteTableRanges":               {"10-20, 300-300", []TableRange{{10, 20}, {300, 300}}},
		"RouteTableRange":                {"5-6", []TableRange{{5, 6}}},

		"DeviceRouteProtocol":          {"90", 90},
		"DeviceRouteSourceAddress":     {"192.0.2.2", netip.MustParseAddr("192.0.2.2")},
		"DeviceRouteSourceAddressIPv6": {"fd00::2", netip.MustParseAddr("fd00::2")},
		"RemoveExternalRoutes":         {"false", false},
		"ProgramClusterRoutes":         {"enabled", true},
		"IPForwarding":                 {"disabled", false},
		"IPv4NormalRoutePriority":      {"100", 100},
		"IPv6NormalRoutePriority":      {"200", 200},
		"IptablesRefreshInterval":      {"60", time.Minute},
		"IpsetsRefreshInterval":        {"1m10s", 70 * time.Second},
		"RouteRefreshInterval":         {"0", time.Duration(0)},
		"InterfaceRefreshInterval":     {"1.5", 1500 * time.Millisecond},

		"HealthEnabled":                     {"true", true},
		"HealthHost":                        {"0.0.0.0", "0.0.0.0"},
		"HealthPort":                        {"9199", 9199},
		"DataplaneWatchdogTimeout":          {"10", 10 * time.Second},
		"PrometheusMetricsEnabled":          {"y", true},
		"PrometheusMetricsHost":             {"::1", "::1"},
		"PrometheusMetricsPort":             {"9191", 9191},
		"PrometheusGoMetricsEnabled":        {"false", false},
		"PrometheusWireGuardMetricsEnabled": {"false", false},
		"PrometheusProcessMetricsEnabled":   {"false", false},
		"ReportingIntervalSecs":             {"0", time.Duration(0)},
		"ReportingTTLSecs":                  {"30", 30 * time.Second},
		"LogSeverityScreen":                 {"debug", Level(-4)},
		"LogSeverityFile":                   {"Warning", Level(4)},
		"LogSeveritySys":                    {"FATAL", Level(12)},
		"LogFilePath":                       {"/tmp/x.log", "/tmp/x.log"},
	}
}

// leaves are the fields of a Dataplane by their paths.
func leaves(v reflect.Value, path string, out map[string]any) map[string]any {
	for i := range v.NumField() {
		name := path + v.Type().Field(i).Name
		if f := v.Field(i); f.Type() == reflect.TypeFor[Refresh]() || f.Type() == reflect.TypeFor[WireGuard]() {
			leaves(f, name+".", out)
		} else {
			out[name] = f.Interface()
		}
	}
	return out
}

func same(a, b any) bool {
	return cmp.Equal(a, b, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{}), cmp.Comparer(func(a, b *regexp.Regexp) bool { return a.String() == b.String() }))
}

func TestEveryRowFillsAFieldOfItsOwnAndEveryFieldHasARow(t *testing.T) {
	defaults, problems := Effective(Sources{Env: env()})
	if len(problems) > 0 {
		t.Errorf("the defaults have problems: %q", problems)
	}
	before := leaves(reflect.ValueOf(defaults), "", map[string]any{})
	filledBy := map[string]string{}
	for _, r := range felixRows() {
		if (r.set == nil) == (r.local == "") {
			t.Errorf("%s: a row fills a field or stands in for a variable, one of the two", r.Name)
		}
		if r.set == nil {
			continue
		}
		if err := r.set(&Dataplane{}, r.Default); err != nil {
			t.Errorf("%s: its default %q: %v", r.Name, r.Default, err)
		}
		s := samples()[r.Name]
		d := defaults
		if err := r.set(&d, s.text); err != nil {
			t.Errorf("%s: %q: %v", r.Name, s.text, err)
		}
		for name, v := range leaves(reflect.ValueOf(d), "", map[string]any{}) {
			if same(v, before[name]) {
				continue
			}
			if other := filledBy[name]; other != "" {
				t.Errorf("%s is filled by %s and by %s", name, other, r.Name)
			}
			filledBy[name] = r.Name
			if !same(v, s.want) {
				t.Errorf("%s=%s gives %s the value %v, want %v", r.Name, s.text, name, v, s.want)
			}
		}
	}
	for name := range before {
		if filledBy[name] == "" {
			t.Errorf("no row fills %s", name)
		}
	}
}

// core lists what the specification wants at least.
const core = `DatastoreType EtcdEndpoints EtcdKeyFile EtcdCertFile EtcdCaFile FelixHostname Ipv6Support LogSeverityScreen LogSeverityFile LogSeveritySys
LogFilePath InterfacePrefix DefaultEndpointToHostAction ChainInsertMode IptablesBackend IptablesMarkMask IptablesRefreshInterval RouteRefreshInterval
InterfaceRefreshInterval IpsetsRefreshInterval IpInIpEnabled VXLANEnabled IpInIpMtu VXLANMTU VXLANMTUV6 VXLANPort VXLANVNI DeviceRouteProtocol
RemoveExternalRoutes ProgramClusterRoutes IPForwarding IPv4NormalRoutePriority IPv6NormalRoutePriority HealthEnabled HealthHost HealthPort
PrometheusMetricsEnabled PrometheusMetricsHost PrometheusMetricsPort ReportingIntervalSecs ReportingTTLSecs MTUIfacePattern`

func TestEveryCoreSettingIsInTheTableOnce(t *testing.T) {
	seen := map[string]int{}
	for _, s := range FelixSettings() {
		seen[s.Name]++
		if s.Env != "FELIX_"+strings.ToUpper(s.Name) || s.Meaning == "" {
			t.Errorf("%+v is not whole", s)
		}
		if seen[s.Name] > 1 {
			t.Errorf("%s is there twice", s.Name)
		}
	}
	for _, name := range strings.Fields(core) {
		if seen[name] == 0 {
			t.Errorf("%s is not there", name)
		}
	}
}

func TestEverySettingThatIsNotLocalHasAFieldInTheResource(t *testing.T) {
	fields := map[string]bool{}
	eachField(api.FelixConfigurationSpec{}, func(name string, _ reflect.Value) { fields[strings.ToLower(name)] = true })
	for _, r := range felixRows() {
		if r.local == "" && (r.json == "" && !fields[strings.ToLower(r.Name)] || r.json != "" && !fields[strings.ToLower(r.json)]) {
			t.Errorf("%s has no field", r.Name)
		}
	}
}

func felix(t *testing.T, name, spec string) *api.FelixConfiguration {
	t.Helper()
	f, err := api.Decode[api.FelixConfiguration]([]byte(`{"metadata": {"name": "` + name + `"}, "spec": ` + spec + `}`))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func file(t *testing.T, text string) File {
	t.Helper()
	f, err := parseFile("felix.cfg", text)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestTheStrongestReadableSourceCounts(t *testing.T) {
	for _, c := range []struct {
		name             string
		env, file        string
		node, global     string
		port             int
		problem, instead string
	}{
		{name: "default", port: 4789},
		{name: "global", global: "1", port: 1},
		{name: "node", node: "2", global: "1", port: 2},
		{name: "file", file: "3", node: "2", global: "1", port: 3},
		{name: "environment", env: "4", file: "3", node: "2", global: "1", port: 4},
		{name: "bad environment", env: "many", node: "2", port: 2,
			problem: `environment FELIX_VXLANPORT: "many": want a number between 1 and 65535; `, instead: "2 from FelixConfiguration(node.n) spec.vxlanPort"},
		{name: "bad file", file: "70000", port: 4789, problem: `felix.cfg VXLANPort: "70000"`, instead: "the default, 4789,"},
		{name: "bad in etcd", node: "0", global: "9", port: 9, problem: `FelixConfiguration(node.n) spec.vxlanPort: "0"`, instead: "9 from FelixConfiguration(default)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := Sources{Env: env("FELIX_VXLANPORT=" + c.env)}
			if c.file != "" {
				s.File = file(t, "[global]\nVxlanPort = "+c.file)
			}
			if c.node != "" {
				s.Node = felix(t, "node.n", `{"vxlanPort": `+c.node+`}`)
			}
			if c.global != "" {
				s.Global = felix(t, "default", `{"vxlanPort": `+c.global+`}`)
			}
			d, problems := Effective(s)
			if d.VXLANPort != c.port {
				t.Errorf("port %d, want %d", d.VXLANPort, c.port)
			}
			all := strings.Join(problems, "\n")
			if (c.problem == "") != (all == "") || !strings.Contains(all, c.problem) || !strings.Contains(all, c.instead) {
				t.Errorf("problems %q, want %q and %q", all, c.problem, c.instead)
			}
		})
	}
}

func TestResourcesSayTheSameInTheirOwnForm(t *testing.T) {
	d, problems := Effective(Sources{Global: felix(t, "default", `{
		"ipipEnabled": true, "ipipMTU": 1430, "reportingInterval": "0s", "routeRefreshInterval": "1m30s", "iptablesMarkMask": 4278190080,
		"natPortRange": "1000:2000", "externalNodesList": ["10.0.0.1", "10.9.0.0/16"], "healthHost": "::", "defaultEndpointToHostAction": "Return",
		"failsafeInboundHostPorts": [], "failsafeOutboundHostPorts": [{"protocol": "UDP", "port": 53, "net": "fd00::/8"}, {"port": 22}]}`)})
	if len(problems) > 0 {
		t.Errorf("problems: %q", problems)
	}
	got := fmt.Sprintln(*d.IPIPEnabled, d.IPIPMTU, d.ReportInterval, d.Refresh.Routes, d.MarkMask, d.NATPorts, d.TunnelPeers, d.HealthHost, d.EndpointToHost,
		d.FailsafeIn, d.FailsafeOut)
	if want := "true 1430 0s 1m30s 4278190080 1000-2000 [10.0.0.1/32 10.9.0.0/16] :: RETURN [] [{17 53 fd00::/8} {6 22 invalid Prefix}]\n"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestValuesThatCannotBeReadAreNamed(t *testing.T) {
	for name, text := range map[string]string{
		"VXLANMTU": "10", "VXLANMTUV6": "1279", "DeviceRouteProtocol": "4", "IptablesMarkMask": "7", "InterfacePrefix": "a-name-too-long-for-it", "RouteRefreshInterval": "-1",
		"IpsetsRefreshInterval": "soon", "DefaultEndpointToHostAction": "none", "HealthPort": "0", "NATPortRange": "9-1", "DeviceRouteSourceAddress": "fd00::1",
		"FailsafeInboundHostPorts": "icmp:1", "FailsafeOutboundHostPorts": "tcp:10.0.0.0:22",
		"LogSeverityFile": "loud", "MTUIfacePattern": "(", "ExternalNodesCIDRList": "10.0.0.0/40", "IPv4NormalRoutePriority": "0", "VXLANEnabled": "perhaps",
	} {
		want, _ := Effective(Sources{})
		got, problems := Effective(Sources{Env: env("FELIX_" + strings.ToUpper(name) + "=" + text)})
		if len(problems) != 1 || !strings.Contains(problems[0], text) {
			t.Errorf("%s=%s: problems %q", name, text, problems)
		}
		if !same(want, got) {
			t.Errorf("%s=%s changed the settings", name, text)
		}
	}
}

func TestNoneIsTheZeroValue(t *testing.T) {
	d, problems := Effective(Sources{Env: env("FELIX_LOGFILEPATH=None", "FELIX_LOGSEVERITYSCREEN=none", "FELIX_VXLANENABLED=none", "FELIX_IPINIPMTU=none", "FELIX_ROUTEREFRESHINTERVAL=none")})
	if len(problems) > 0 || d.LogFilePath != "" || d.LogScreen != Off || d.VXLANEnabled != nil || d.IPIPMTU != 0 || d.Refresh.Routes != 0 {
		t.Errorf("%+v, problems %q", d, problems)
	}
}

func TestNodesOwnSettingsComeFromTheHostAlone(t *testing.T) {
	f := file(t, "FelixHostname = from-file\nEtcdEndpoints = http://file:2379")
	local := Local(env("FELIX_ETCDENDPOINTS=http://felix:2379", "ETCD_KEY_FILE=/key", "FELIX_ETCDKEYFILE=/other"), f)
	for name, want := range map[string]string{"NODENAME": "from-file", "ETCD_ENDPOINTS": "http://felix:2379", "ETCD_KEY_FILE": "/key", "ETCD_CERT_FILE": "", "IP": ""} {
		if got := local(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

func TestWhatMustBeReadStopsTheStartButNotFromEtcd(t *testing.T) {
	if err := CheckLocal(env("FELIX_VXLANPORT=many"), file(t, "")); err != nil {
		t.Errorf("a port that cannot be read stops the start: %v", err)
	}
	for _, e := range []Env{env("FELIX_DEFAULTENDPOINTTOHOSTACTION=Deny"), env()} {
		err := CheckLocal(e, file(t, "[global]\nDefaultEndpointToHostAction = Allow\n"))
		if err == nil || !strings.Contains(err.Error(), "want one of DROP, RETURN, ACCEPT") {
			t.Errorf("error %v", err)
		}
	}
}

func TestSettingsFileIsReadAsCalicosIs(t *testing.T) {
	f := file(t, "# comment\n[global]\nMetadataAddr = None\nlogfilepath=None\nLogSeverityFile = None ; \n\n; more\nNonsense = 1\nInterfacePrefix = \"tap\"\n")
	d, problems := Effective(Sources{File: f})
	if d.LogFilePath != "" || !same(d.InterfacePrefixes, []string{"tap"}) {
		t.Errorf("%+v", d)
	}
	if len(problems) != 2 || !strings.Contains(problems[1], "felix.cfg: nonsense is no setting") {
		t.Errorf("problems %q", problems)
	}
	if _, err := parseFile("felix.cfg", "[global]\nVXLANPort 4789\n"); err == nil || !strings.Contains(err.Error(), "felix.cfg:2:") {
		t.Errorf("a line without = gives %v", err)
	}
}

func TestSettingsFileThatIsNamedMustBeThere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "felix.cfg")
	if _, err := ReadFile(env(FileEnv + "=" + path)); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v, want it to name %s", err, path)
	}
	if err := os.WriteFile(path, []byte("[global]\nVXLANVNI = 5\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := ReadFile(env(FileEnv + "=" + path))
	if d, _ := Effective(Sources{File: f}); err != nil || d.VXLANVNI != 5 {
		t.Errorf("VNI %d, error %v", d.VXLANVNI, err)
	}
}

// Every FelixConfiguration is stored with this default, so that the node's would always go before the cluster's.
func TestFilledInDefaultOfANodeDoesNotHideTheClustersWord(t *testing.T) {
	conf := func(word string) *api.FelixConfiguration {
		return &api.FelixConfiguration{Spec: api.FelixConfigurationSpec{FloatingIPs: word}}
	}
	for _, c := range []struct {
		env, node, global string
		want              bool
	}{
		{"", "Disabled", "Enabled", true}, {"", "Enabled", "Disabled", true}, {"", "Disabled", "Disabled", false}, {"Disabled", "Enabled", "Enabled", false},
	} {
		env := func(name string) string { return map[string]string{"FELIX_FLOATINGIPS": c.env}[name] }
		if d, problems := Effective(Sources{Env: env, Node: conf(c.node), Global: conf(c.global)}); d.FloatingIPs != c.want || len(problems) > 0 {
			t.Errorf("%+v: got %t, %v", c, d.FloatingIPs, problems)
		}
	}
}
