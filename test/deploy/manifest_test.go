package deploy

import (
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/cni/netconf"
	"github.com/muslin-cni/muslin/internal/config"
	"github.com/muslin-cni/muslin/internal/install"
	"github.com/muslin-cni/muslin/internal/machineid"
	"github.com/muslin-cni/muslin/internal/sysctl"
	"github.com/muslin-cni/muslin/pkg/store"
)

// decode reads an object of a manifest as the API server would, but refuses what it would silently drop.
func decode[T any](t *testing.T, o map[string]any) T {
	t.Helper()
	var out T
	b, err := yaml.Marshal(o)
	if err == nil {
		err = yaml.UnmarshalStrict(b, &out)
	}
	if err != nil {
		t.Fatalf("%v: %v", o["kind"], err)
	}
	return out
}

func manifest(t *testing.T) map[string]map[string]any {
	t.Helper()
	all := documents(t, file(t, "kubernetes/muslin.yaml"))
	maps.Copy(all, documents(t, file(t, "kubernetes/muslinctl.yaml")))
	maps.Copy(all, documents(t, file(t, "kubernetes/uninstall.yaml")))
	return all
}

func TestManifestHoldsNoFieldThatKubernetesDoesNotKnow(t *testing.T) {
	seen := map[string]int{}
	for name, o := range manifest(t) {
		kind, _, _ := strings.Cut(name, " ")
		seen[kind]++
		switch apiVersion := o["apiVersion"]; kind + " " + apiVersion.(string) {
		case "ServiceAccount v1":
			decode[corev1.ServiceAccount](t, o)
		case "ConfigMap v1":
			decode[corev1.ConfigMap](t, o)
		case "Secret v1":
			decode[corev1.Secret](t, o)
		case "DaemonSet apps/v1":
			decode[appsv1.DaemonSet](t, o)
		case "Deployment apps/v1":
			decode[appsv1.Deployment](t, o)
		case "PodDisruptionBudget policy/v1":
			decode[policyv1.PodDisruptionBudget](t, o)
		case "ClusterRole rbac.authorization.k8s.io/v1":
			decode[rbacv1.ClusterRole](t, o)
		case "Role rbac.authorization.k8s.io/v1":
			decode[rbacv1.Role](t, o)
		case "ClusterRoleBinding rbac.authorization.k8s.io/v1":
			decode[rbacv1.ClusterRoleBinding](t, o)
		case "RoleBinding rbac.authorization.k8s.io/v1":
			decode[rbacv1.RoleBinding](t, o)
		default:
			t.Errorf("%s of %v: nobody expects it", name, apiVersion)
		}
	}
	if seen["DaemonSet"] != 2 || seen["Deployment"] != 2 || seen["PodDisruptionBudget"] != 1 || seen["Secret"] != 1 {
		t.Errorf("kinds: %v", seen)
	}
}

// templates are the pods of the manifest, by the names of what makes them.
func templates(t *testing.T) map[string]corev1.PodSpec {
	t.Helper()
	all := manifest(t)
	return map[string]corev1.PodSpec{
		"node":        decode[appsv1.DaemonSet](t, all["DaemonSet muslin-node"]).Spec.Template.Spec,
		"controllers": decode[appsv1.Deployment](t, all["Deployment muslin-controllers"]).Spec.Template.Spec,
		"ctl":         decode[appsv1.Deployment](t, all["Deployment muslinctl"]).Spec.Template.Spec,
	}
}

// environ is a container's environment, with the ConfigMap's values filled in and "node-1" for every field of the pod.
func environ(t *testing.T, pod corev1.PodSpec) map[string]string {
	t.Helper()
	conf := decode[corev1.ConfigMap](t, manifest(t)["ConfigMap muslin-config"]).Data
	out := map[string]string{}
	for _, e := range pod.Containers[0].Env {
		if _, twice := out[e.Name]; twice {
			t.Errorf("%s is set twice", e.Name)
		}
		out[e.Name] = e.Value
		switch from := e.ValueFrom; {
		case from == nil:
		case from.ConfigMapKeyRef != nil:
			value, there := conf[from.ConfigMapKeyRef.Key]
			if !there {
				t.Errorf("%s: the ConfigMap has no %s", e.Name, from.ConfigMapKeyRef.Key)
			}
			out[e.Name] = value
		case from.FieldRef != nil:
			out[e.Name] = "node-1"
		}
	}
	return out
}

func TestAgentKnowsEveryVariableOfTheManifest(t *testing.T) {
	vars := environ(t, templates(t)["node"])
	var pairs []string
	for name, value := range vars {
		pairs = append(pairs, name+"="+value)
	}
	known, unknown := config.Unheeded(pairs)
	if len(pairs) < 15 || len(known)+len(unknown) > 0 {
		t.Errorf("of %d these change nothing: %q %q", len(pairs), known, unknown)
	}
	env := func(name string) string { return vars[name] }
	cfg, err := config.FromEnv(env)
	if err != nil || !cfg.Install || cfg.NodeName != "node-1" || cfg.K8sNodeRef != "node-1" {
		t.Errorf("%+v, %v", cfg, err)
	}
	if _, err := store.FromEnv(env); err != nil {
		t.Error(err)
	}
	d, problems := config.Effective(config.Sources{Env: env})
	if len(problems) > 0 {
		t.Error(problems)
	}
	probe := templates(t)["node"].Containers[0].ReadinessProbe.HTTPGet
	if !d.HealthEnabled || d.HealthHost != probe.Host || d.HealthPort != probe.Port.IntValue() {
		t.Errorf("the probes ask %s:%v, and the agent listens at %s:%d", probe.Host, probe.Port, d.HealthHost, d.HealthPort)
	}
	if port := templates(t)["node"].Containers[0].Ports[0].ContainerPort; !d.MetricsEnabled || d.MetricsPort != int(port) {
		t.Errorf("metrics are at port %d, and the manifest says %d", d.MetricsPort, port)
	}
}

// The names are those of Calico's own manifest, with the values that it has.
func TestEnvironmentOfCalicosManifestWorksUnchanged(t *testing.T) {
	vars := map[string]string{
		"ETCD_ENDPOINTS": "http://10.0.0.1:2379", "ETCD_CA_CERT_FILE": "", "ETCD_KEY_FILE": "", "ETCD_CERT_FILE": "", "CALICO_K8S_NODE_REF": "node-1",
		"CALICO_NETWORKING_BACKEND": "bird", "CLUSTER_TYPE": "k8s,bgp", "IP": "autodetect", "CALICO_IPV4POOL_IPIP": "Always", "CALICO_IPV4POOL_VXLAN": "Never",
		"CALICO_IPV6POOL_VXLAN": "Never", "FELIX_IPINIPMTU": "0", "FELIX_VXLANMTU": "0", "FELIX_WIREGUARDMTU": "0", "CALICO_IPV4POOL_CIDR": "192.168.0.0/16",
		"CALICO_DISABLE_FILE_LOGGING": "true", "FELIX_DEFAULTENDPOINTTOHOSTACTION": "ACCEPT", "FELIX_IPV6SUPPORT": "false", "FELIX_HEALTHENABLED": "true",
		"CNI_CONF_NAME": "10-calico.conflist", "CNI_MTU": "0", "SLEEP": "false", "WAIT_FOR_DATASTORE": "true",
	}
	var pairs []string
	for name, value := range vars {
		pairs = append(pairs, name+"="+value)
	}
	env := func(name string) string { return vars[name] }
	if _, unknown := config.Unheeded(pairs); len(unknown) > 0 {
		t.Errorf("nobody knows %q", unknown)
	}
	if _, err := config.FromEnv(env); err != nil {
		t.Error(err)
	}
	if _, problems := config.Effective(config.Sources{Env: env}); len(problems) > 0 {
		t.Error(problems)
	}
}

func TestNetworkConfigurationIsOneThatThePluginTakes(t *testing.T) {
	vars := environ(t, templates(t)["node"])
	env := func(name string) string { return vars[name] }
	host, bin := t.TempDir(), t.TempDir()
	s, err := install.FromEnv(env, install.Places{Host: host, Source: bin})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := install.New(s, env, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	text, err := s.Configuration()
	if err != nil {
		t.Fatal(err)
	}
	var list struct {
		CNIVersions []string
		Plugins     []map[string]any
	}
	if err := yaml.Unmarshal([]byte(text), &list); err != nil || len(list.Plugins) != 3 || !slices.Contains(list.CNIVersions, "1.1.0") {
		t.Fatalf("%+v, %v", list, err)
	}
	first := list.Plugins[0]
	first["name"] = "k8s-pod-network"
	b, err := yaml.Marshal(first)
	if err == nil {
		b, err = yaml.YAMLToJSON(b)
	}
	if err != nil {
		t.Fatal(err)
	}
	conf, err := netconf.Parse(b)
	if err != nil || conf.EtcdEndpoints != vars["ETCD_ENDPOINTS"] || conf.MTU != 0 || conf.Policy.Type != "k8s" {
		t.Errorf("%+v, %v", conf, err)
	}
	builtIn, err := install.FromEnv(func(name string) string { return map[string]string{"ETCD_ENDPOINTS": vars["ETCD_ENDPOINTS"]}[name] }, install.Places{Host: host, Source: bin})
	if err != nil {
		t.Fatal(err)
	}
	fallback, err := builtIn.Configuration()
	if err != nil {
		t.Fatal(err)
	}
	var want, got map[string]any
	if err := yaml.Unmarshal([]byte(strings.ReplaceAll(fallback, `      "etcd_discovery_srv": "",`+"\n", "")), &want); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal([]byte(text), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the manifest's configuration is not the built-in one (-built-in +manifest):\n%s", diff)
	}
}

func TestAgentHasTheHostsFoldersWhereItLooks(t *testing.T) {
	pod := templates(t)["node"]
	sources := map[string]string{}
	for _, v := range pod.Volumes {
		if v.HostPath != nil {
			sources[v.Name] = v.HostPath.Path
		}
	}
	mounts := map[string]string{}
	for _, m := range pod.Containers[0].VolumeMounts {
		mounts[m.MountPath] = sources[m.Name]
	}
	run, id := filepath.Dir(attach.Socket), machineid.Host("").System[0]
	want := map[string]string{
		"/host/opt/cni/bin": "/opt/cni/bin", "/host/etc/cni/net.d": "/etc/cni/net.d", run: run, "/var/lib/calico": "/var/lib/calico", id: id,
		"/run/xtables.lock": "/run/xtables.lock", "/calico-secrets": "", sysctl.HostRoot + "/net": sysctl.Root + "/net",
	}
	if diff := cmp.Diff(want, mounts); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if !pod.HostNetwork || !pod.HostPID || pod.PriorityClassName != "system-node-critical" {
		t.Error("the agent is not the host's")
	}
}

// Rights are those that are written here, so that one more is a change that somebody sees.
func TestRightsAreTheLeast(t *testing.T) {
	var got []string
	for name, o := range manifest(t) {
		var rules []rbacv1.PolicyRule
		switch kind, _, _ := strings.Cut(name, " "); kind {
		case "ClusterRole":
			rules = decode[rbacv1.ClusterRole](t, o).Rules
		case "Role":
			rules = decode[rbacv1.Role](t, o).Rules
		}
		for _, r := range rules {
			line := name + ": " + strings.Join(r.Verbs, ",") + " " + strings.Join(r.Resources, ",")
			if len(r.ResourceNames) > 0 {
				line += " " + strings.Join(r.ResourceNames, ",")
			}
			got = append(got, line)
		}
	}
	slices.Sort(got)
	want := []string{
		"ClusterRole muslin-controllers: get,list,watch namespaces,serviceaccounts,pods,nodes",
		"ClusterRole muslin-controllers: get,list,watch networkpolicies",
		"ClusterRole muslin-node: get,list,watch pods,namespaces,nodes,services",
		"ClusterRole muslin-node: list,watch endpointslices",
		"ClusterRole muslin-node: patch nodes/status",
		"Role muslin-controllers: create leases",
		"Role muslin-controllers: get,update leases muslin-controllers",
		"Role muslin-node-cluster: get configmaps kubeadm-config,full-cluster-state",
		"Role muslin-node: get,list,watch secrets bgp-secrets",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for name, pod := range templates(t) {
		if name == "node" {
			continue
		}
		c := pod.Containers[0].SecurityContext
		if !*pod.SecurityContext.RunAsNonRoot || *c.AllowPrivilegeEscalation || !*c.ReadOnlyRootFilesystem || c.Capabilities.Drop[0] != "ALL" {
			t.Errorf("%s has more rights than it needs", name)
		}
	}
}

// What each is for, and that there need be no others, is shown by test/e2e.
func TestAgentHasTheCapabilitiesThatAreListedAndNoOthers(t *testing.T) {
	c := templates(t)["node"].Containers[0].SecurityContext
	if c.Privileged != nil || *c.AllowPrivilegeEscalation || !*c.ReadOnlyRootFilesystem {
		t.Errorf("the agent has more rights than it needs: %+v", c)
	}
	want := &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: []corev1.Capability{"NET_ADMIN", "NET_RAW", "NET_BIND_SERVICE", "SYS_PTRACE", "DAC_OVERRIDE"}}
	if d := cmp.Diff(want, c.Capabilities); d != "" {
		t.Errorf("capabilities (-want +got):\n%s", d)
	}
}
