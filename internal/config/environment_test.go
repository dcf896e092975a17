package config

import (
	"bytes"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

func TestHelpNamesWhatIsRead(t *testing.T) {
	asked := map[string]bool{}
	recorder := func(name string) string {
		asked[strings.TrimPrefix(name, "CALICO_ETCD")] = true
		return ""
	}
	if _, err := FromEnv(recorder); err != nil {
		t.Fatal(err)
	}
	_, _ = store.FromEnv(func(name string) string { // it lacks endpoints
		if bare := strings.TrimPrefix(name, "CALICO_"); !strings.HasSuffix(bare, "SCHEME") {
			asked[bare] = true
		}
		asked["ETCD_SCHEME"] = true
		return ""
	})
	maps.DeleteFunc(asked, func(name string, _ bool) bool { return strings.HasPrefix(name, "_") })
	delete(asked, "FELIX_IPV6SUPPORT") // which is among the other settings
	var shown []string
	var out bytes.Buffer
	if err := WriteHelp(&out); err != nil {
		t.Fatal(err)
	}
	for _, s := range NodeSettings() {
		shown = append(shown, s.Env)
		if s.Meaning == "" || !strings.Contains(out.String(), "\n  "+s.Env) {
			t.Errorf("%s has no help", s.Env)
		}
	}
	delete(asked, FileEnv)
	shown = slices.DeleteFunc(shown, func(name string) bool { return name == FileEnv }) // ReadFile's
	slices.Sort(shown)
	if diff := cmp.Diff(slices.Sorted(maps.Keys(asked)), shown); diff != "" {
		t.Errorf("read (-) and shown (+):\n%s", diff)
	}
	for _, s := range FelixSettings() {
		if !strings.Contains(out.String(), "\n  "+s.Env+"  "+s.Name) {
			t.Errorf("%s has no help", s.Env)
		}
	}
	for i, line := range strings.Split(out.String(), "\n") {
		if len(line) > 110 && !strings.Contains(line, "[") {
			t.Errorf("line %d is long: %s", i+1, line)
		}
	}
}

func TestVariablesThatChangeNothingAreNamed(t *testing.T) {
	known, unknown := Unheeded([]string{
		"PATH=/bin", "HOME=/root", "IPMI=x", "CALICO_LIBNETWORK_ENABLED=true", "WAIT_FOR_DATASTORE=true", "FELIX_BPFENABLED=true", "FELIX_NETLINKTIMEOUTSECS=10",
		"IP_AUTODETECTION_METOD=x", "CALICO_IPV4POOL_IP_IP=Always", "FELIX_IPINIPMTUU=1", "CALICO_QUITE_ANOTHER_THING=1", "CALICO_EMPTY_ONE=",
		"CALICO_TYPHA_SERVICE_HOST=10.0.0.1", "CALICO_TYPHA_PORT_5473_TCP_ADDR=10.0.0.1", "CALICO_TYPHA_SERVICE_PORT_CALICO_TYPHA=1", "CALICO_ETCD_ENDPOINTS=http://x:1",
		"IP=", "IP6=autodetect", "FELIX_VXLANMTU=1450", "FELIX_VXLANPort=4789", "ETCD_ENDPOINT=http://x:1", "MUSLIN_MACHINE_ID_FILE=/x",
	})
	var names []string
	for _, k := range known {
		name, why, _ := strings.Cut(k, ": ")
		names = append(names, name)
		if why == "" {
			t.Errorf("%s: no reason", name)
		}
	}
	if d := cmp.Diff([]string{"CALICO_LIBNETWORK_ENABLED", "FELIX_BPFENABLED", "FELIX_NETLINKTIMEOUTSECS", "WAIT_FOR_DATASTORE"}, names); d != "" {
		t.Errorf("known (-want +got):\n%s", d)
	}
	want := []string{
		"CALICO_IPV4POOL_IP_IP (did you mean CALICO_IPV4POOL_IPIP?)", "CALICO_QUITE_ANOTHER_THING", "ETCD_ENDPOINT (did you mean ETCD_ENDPOINTS?)",
		"FELIX_IPINIPMTUU (did you mean FELIX_IPINIPMTU?)", "IP_AUTODETECTION_METOD (did you mean IP_AUTODETECTION_METHOD?)",
	}
	if d := cmp.Diff(want, unknown); d != "" {
		t.Errorf("unknown (-want +got):\n%s", d)
	}
}

// ofCalico are the variables that Calico's node reads, by the specification.
const ofCalico = `NODENAME CALICO_NODENAME_FILE IP IP6 IP_AUTODETECTION_METHOD IP6_AUTODETECTION_METHOD AUTODETECT_POLL_INTERVAL AS CALICO_NETWORKING_BACKEND
CALICO_ROUTER_ID CALICO_K8S_NODE_REF CLUSTER_TYPE NO_DEFAULT_POOLS CALICO_IPV4POOL_CIDR CALICO_IPV6POOL_CIDR CALICO_IPV4POOL_BLOCK_SIZE
CALICO_IPV6POOL_BLOCK_SIZE CALICO_IPV4POOL_IPIP CALICO_IPV4POOL_VXLAN CALICO_IPV6POOL_VXLAN CALICO_IPV4POOL_NAT_OUTGOING CALICO_IPV6POOL_NAT_OUTGOING
CALICO_IPV4POOL_NODE_SELECTOR CALICO_IPV6POOL_NODE_SELECTOR CALICO_IPV4POOL_DISABLE_BGP_EXPORT CALICO_IPV6POOL_DISABLE_BGP_EXPORT WAIT_FOR_DATASTORE
DISABLE_NODE_IP_CHECK CALICO_STARTUP_LOGLEVEL CALICO_DISABLE_FILE_LOGGING CALICO_SHUTDOWN_TIMESTAMP_FILE FELIX_IPV6SUPPORT FELIX_HEALTHENABLED USE_POD_CIDR
KUBECONFIG ETCD_ENDPOINTS ETCD_DISCOVERY_SRV ETCD_CA_CERT_FILE ETCD_CERT_FILE ETCD_KEY_FILE ETCD_USERNAME ETCD_PASSWORD DATASTORE_TYPE CALICO_LIBNETWORK_ENABLED
CALICO_NETWORKING ETCD_AUTHORITY ETCD_SCHEME FELIX_IPINIPMTU FELIX_LOGSEVERITYSCREEN FELIX_DEFAULTENDPOINTTOHOSTACTION CALICO_DISABLE_FELIX CALICO_MANAGE_CNI
FELIX_ETCDADDR FELIX_ETCDENDPOINTS FELIX_ETCDSCHEME FELIX_ETCDCAFILE FELIX_ETCDKEYFILE FELIX_ETCDCERTFILE FELIX_FELIXHOSTNAME FELIX_DATASTORETYPE FELIX_VXLANMTU
FELIX_WIREGUARDMTU`

func TestEveryVariableOfCalicosIsHeededOrKnownToMeanNothing(t *testing.T) {
	idle := map[string]bool{ // anything else has its effect here too
		"WAIT_FOR_DATASTORE": true, "CALICO_DISABLE_FILE_LOGGING": true, "USE_POD_CIDR": true, "CALICO_LIBNETWORK_ENABLED": true, "CALICO_DISABLE_FELIX": true,
		"CALICO_MANAGE_CNI": true, "FELIX_ETCDADDR": true, "FELIX_ETCDSCHEME": true,
	}
	read := map[string]bool{"FELIX_IPV6SUPPORT": true}
	for _, s := range append(NodeSettings(), FelixSettings()...) {
		read[s.Env] = true
	}
	for _, name := range strings.Fields(ofCalico) {
		known, unknown := Unheeded([]string{name + "=x"})
		if len(unknown) > 0 || len(known) > 0 != idle[name] || read[name] == idle[name] {
			t.Errorf("%s: known %q, unknown %q, read %t, want it idle: %t", name, known, unknown, read[name], idle[name])
		}
	}
}

func TestValuesAreReadAsTheReferenceReadsThem(t *testing.T) {
	read := func(t *testing.T, pairs ...string) Node {
		t.Helper()
		n, err := FromEnv(env(pairs...))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for _, c := range []struct {
		set []string
		ok  func(Node) bool
	}{
		{nil, func(n Node) bool {
			return n.Backend == BGP && n.PollInterval == time.Minute && n.AS == nil && n.LogLevel == nil && n.Looks()
		}},
		{[]string{"CALICO_NETWORKING_BACKEND=vxlan"}, func(n Node) bool { return n.Backend == VXLAN && n.Looks() }},
		{[]string{"CALICO_NETWORKING_BACKEND=none"}, func(n Node) bool { return n.Backend == None && !n.Looks() }},
		{[]string{"IP=none"}, func(n Node) bool { return !n.Looks() }},
		{[]string{"CALICO_NETWORKING=false", "CALICO_NETWORKING_BACKEND=vxlan"}, func(n Node) bool { return n.Backend == None }},
		{[]string{"CALICO_NETWORKING=true", "CALICO_NETWORKING_BACKEND=none"}, func(n Node) bool { return n.Backend == BGP }},
		{[]string{"AUTODETECT_POLL_INTERVAL=5m"}, func(n Node) bool { return n.PollInterval == 5*time.Minute }},
		{[]string{"AUTODETECT_POLL_INTERVAL=30"}, func(n Node) bool { return n.PollInterval == 30*time.Second }},
		{[]string{"AS=1.10"}, func(n Node) bool { return *n.AS == api.ASN(65546) }},
		{[]string{"CALICO_ROUTER_ID=hash"}, func(n Node) bool { return n.RouterID == "hash" }},
		{[]string{"DISABLE_NODE_IP_CHECK=true"}, func(n Node) bool { return n.NoIPCheck }},
		{[]string{"CALICO_STARTUP_LOGLEVEL=DEBUG"}, func(n Node) bool { return n.LogLevel.String() == "DEBUG" }},
		{[]string{"CALICO_IPV4POOL_NAT_OUTGOING=n"}, func(n Node) bool { return !n.Pool.NATOutgoing }},
		{[]string{"CALICO_IPV4POOL_NAT_OUTGOING=maybe", "CALICO_IPV6POOL_NAT_OUTGOING=1"}, func(n Node) bool { return n.Pool.NATOutgoing && n.Pool6.NATOutgoing }},
		{[]string{"CALICO_IPV4POOL_IPIP=cross-subnet"}, func(n Node) bool { return n.Pool.IPIP == api.CrossSubnet }},
		{[]string{"CALICO_IPV4POOL_CIDR=none", "NO_DEFAULT_POOLS=true"}, func(n Node) bool { return n.Pool.None && n.NoDefault }},
		{[]string{"CALICO_SHUTDOWN_TIMESTAMP_FILE=/x", "KUBECONFIG=/y"}, func(n Node) bool { return n.ShutdownFile == "/x" && n.Kubeconfig == "/y" }},
	} {
		if n := read(t, c.set...); !c.ok(n) {
			t.Errorf("%q: %+v", c.set, n)
		}
	}
	for _, set := range []string{
		"AUTODETECT_POLL_INTERVAL=0", "AUTODETECT_POLL_INTERVAL=soon", "AS=many", "CALICO_ROUTER_ID=fd00::1", "CALICO_NETWORKING_BACKEND=vlxan",
		"CALICO_STARTUP_LOGLEVEL=loud", "NO_DEFAULT_POOLS=perhaps", "DISABLE_NODE_IP_CHECK=2",
	} {
		if _, err := FromEnv(env(set)); err == nil || !strings.HasPrefix(err.Error(), set+": want ") {
			t.Errorf("%s: %v", set, err)
		}
	}
}

func TestSettingsInForceNameTheirSources(t *testing.T) {
	e := env("IP=autodetect", "ETCD_PASSWORD=secret", "CALICO_ETCD_ENDPOINTS=http://x:1", "FELIX_VXLANPORT=many", "FELIX_VXLANVNI=5")
	port, vni := 4790, 6
	stored := &api.FelixConfiguration{Spec: api.FelixConfigurationSpec{VXLANPort: &port, VXLANVNI: &vni}}
	stored.Metadata.Name = "default"
	got := map[string]string{}
	for _, s := range append(NodeInForce(e), FelixInForce(Sources{Env: e, Global: stored})...) {
		got[s.Name] = s.Value + " by " + s.Source
	}
	for name, want := range map[string]string{
		"IP": "autodetect by environment", "IP6": "none by default", "ETCD_PASSWORD": "(hidden) by environment",
		"ETCD_ENDPOINTS": "http://x:1 by environment, as CALICO_ETCD_ENDPOINTS",
		"VXLANVNI":       "5 by environment FELIX_VXLANVNI", "VXLANPort": "4790 by FelixConfiguration(default) spec.vxlanPort", "VXLANMTU": "0 by default",
	} {
		if got[name] != want {
			t.Errorf("%s: %q, want %q", name, got[name], want)
		}
	}
}
