// Package netconf reads CNI network configurations and makes attach requests of them.
//
// The keys are those of Calico's configuration, so that a host's file for Calico serves Muslin as it is. What each does stands at its
// field here. Keys that are not listed are ignored, as the CNI specification asks; of Calico's own these are
//
//	ipam_lock_file                     no lock on the host is needed: an allocation is one transaction
//	endpoint_status_dir                the agent tells the plugin over its socket when an endpoint is ready, files are not needed
//	kubernetes.node_name               the node's name is nodename's business
//	calico_api_group, qps, burst       concern Kubernetes as a datastore
//	mode, vxlan_…, windows_…           concern Windows
//	dataplane_options                  concerns data planes of other makers
//
// One key is our own: policy_wait.
package netconf

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/cni/cnilog"
	"github.com/muslin-cni/muslin/internal/members"
)

// Module holds the keys that the IPAM module heeds, whoever calls it.
type Module struct {
	CNIVersion string `json:"cniVersion"`
	Name       string `json:"name"` // skel has checked it (CNI specification 1.1, "Network configuration")
	Type       string `json:"type"` // of the main plugin

	Datastore string `json:"datastore_type"` // "" or "etcdv3"
	Etcd
	Node
	Log
	IPAM       IPAM       `json:"ipam"`
	Policy     Policy     `json:"policy"`
	Kubernetes Kubernetes `json:"kubernetes"`

	Muslin *attach.Request `json:"muslin"` // what our own main plugin hands over; nil from any other
}

// Etcd says how to reach etcd. A key that is set here beats its environment variable; see the Over method. Files' names are absolute.
type Etcd struct {
	EtcdEndpoints    string `json:"etcd_endpoints"`
	EtcdDiscoverySRV string `json:"etcd_discovery_srv"`
	EtcdKeyFile      string `json:"etcd_key_file"`
	EtcdCertFile     string `json:"etcd_cert_file"`
	EtcdCACertFile   string `json:"etcd_ca_cert_file"`
	EtcdAuthority    string `json:"etcd_authority"` // legacy form of the endpoints: host:port
	EtcdScheme       string `json:"etcd_scheme"`    // and its scheme; "": http
}

// IPAM is the module's own section.
type IPAM struct {
	Type       string   `json:"type"`
	AssignIPv4 any      `json:"assign_ipv4"` // "true" or "false", also as booleans; absent: true
	AssignIPv6 any      `json:"assign_ipv6"` // absent: false
	IPv4Pools  []string `json:"ipv4_pools"`  // names or CIDRs
	IPv6Pools  []string `json:"ipv6_pools"`
	Subnet     any      `json:"subnet"` // host-local's, as is the next: they may say usePodCidr
	Ranges     any      `json:"ranges"`
}

// Log says what is logged, and where to.
type Log = cnilog.Config

// Policy says where the facts about a pod come from. The agent has its own access to Kubernetes; the rest is for the module alone, where no agent
// runs, and stands before what the kubeconfig says.
type Policy struct {
	Type     string `json:"type"` // "" or "k8s"
	APIRoot  string `json:"k8s_api_root"`
	Token    string `json:"k8s_auth_token"`
	CertFile string `json:"k8s_client_certificate"`
	KeyFile  string `json:"k8s_client_key"`
	CAFile   string `json:"k8s_certificate_authority"`
}

// Kubernetes says how the module reaches the API server where no agent runs.
type Kubernetes struct {
	Kubeconfig string `json:"kubeconfig"`
	APIRoot    string `json:"k8s_api_root"`
}

// Conf holds the keys that the network plugin heeds.
type Conf struct {
	Module

	MTU            int  `json:"mtu"` // 0: see the MTU method
	RequireMTUFile bool `json:"require_mtu_file"`
	NumQueues      int  `json:"num_queues"` // of either end of the veth pair, each way; 0: 1

	ContainerSettings ContainerSettings `json:"container_settings"`
	Features          Features          `json:"feature_control"`
	DefaultRoutes     bool              `json:"include_default_routes"`       // beside routes that a foreign IPAM module gives; without these there always are default routes
	ReadinessGates    []string          `json:"readiness_gates"`              // URLs that must answer before an ADD goes on
	PolicyWait        string            `json:"policy_wait"`                  // "": an ADD waits for the agent; "none": it does without where no agent runs
	PolicyTimeout     int               `json:"policy_setup_timeout_seconds"` // for the agent to program the pod's routes and policy; 0: as the agent sees fit
	DNS               types.DNS         `json:"dns"`                          // handed on in the result
	Args              Args              `json:"args"`
	Runtime           Runtime           `json:"runtimeConfig"`
}

// NoWait is the value of policy_wait that lets an ADD do without the agent.
const NoWait = "none"

// ContainerSettings are settings of the pod's own network namespace.
type ContainerSettings struct {
	AllowIPForwarding bool `json:"allow_ip_forwarding"`
}

// Features lets pods ask for what most clusters do not want them to have.
type Features struct {
	AddrsNoIPAM bool `json:"ip_addrs_no_ipam"` // addresses that no IPAM knows of
	FloatingIPs bool `json:"floating_ips"`
}

// Args is what the runtime adds to a configuration for one container.
type Args struct {
	CNI struct {
		Labels []Label `json:"labels"`
	} `json:"cni"`
}

// Label is one of the container's labels.
type Label struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// Runtime is what the runtime adds for the capabilities that a configuration claims.
type Runtime struct {
	Annotations map[string]string `json:"io.kubernetes.cri.pod-annotations"`
}

// Members lists the module's keys.
func (m *Module) Members() []members.Member {
	e, n := &m.Etcd, &m.Node
	return slices.Concat([]members.Member{
		{Name: "cniVersion", Value: &m.CNIVersion, Empty: true}, {Name: "name", Value: &m.Name, Empty: true}, {Name: "type", Value: &m.Type, Empty: true},
		{Name: "datastore_type", Value: &m.Datastore, Empty: true},
		{Name: "etcd_endpoints", Value: &e.EtcdEndpoints, Empty: true}, {Name: "etcd_discovery_srv", Value: &e.EtcdDiscoverySRV, Empty: true},
		{Name: "etcd_key_file", Value: &e.EtcdKeyFile, Empty: true}, {Name: "etcd_cert_file", Value: &e.EtcdCertFile, Empty: true},
		{Name: "etcd_ca_cert_file", Value: &e.EtcdCACertFile, Empty: true},
		{Name: "etcd_authority", Value: &e.EtcdAuthority, Empty: true}, {Name: "etcd_scheme", Value: &e.EtcdScheme, Empty: true},
		{Name: "nodename", Value: &n.Nodename, Empty: true}, {Name: "nodename_file", Value: &n.NodenameFile, Empty: true},
		{Name: "nodename_file_optional", Value: &n.NodenameFileOptional, Empty: true}, {Name: "hostname", Value: &n.Hostname, Empty: true},
	}, m.Log.Members(), []members.Member{
		{Name: "ipam", Value: &m.IPAM, Empty: true}, {Name: "policy", Value: &m.Policy, Empty: true}, {Name: "kubernetes", Value: &m.Kubernetes, Empty: true},
		{Name: "muslin", Value: &m.Muslin, Empty: true},
	})
}

// Members lists the section's keys.
func (i *IPAM) Members() []members.Member {
	return []members.Member{
		{Name: "type", Value: &i.Type, Empty: true}, {Name: "assign_ipv4", Value: &i.AssignIPv4, Empty: true}, {Name: "assign_ipv6", Value: &i.AssignIPv6, Empty: true},
		{Name: "ipv4_pools", Value: &i.IPv4Pools, Empty: true}, {Name: "ipv6_pools", Value: &i.IPv6Pools, Empty: true},
		{Name: "subnet", Value: &i.Subnet, Empty: true}, {Name: "ranges", Value: &i.Ranges, Empty: true},
	}
}

// Members lists all the keys that the network plugin heeds.
func (c *Conf) Members() []members.Member {
	return append(c.Module.Members(), []members.Member{
		{Name: "mtu", Value: &c.MTU, Empty: true}, {Name: "require_mtu_file", Value: &c.RequireMTUFile, Empty: true}, {Name: "num_queues", Value: &c.NumQueues, Empty: true},
		{Name: "container_settings", Value: &c.ContainerSettings, Empty: true}, {Name: "feature_control", Value: &c.Features, Empty: true},
		{Name: "include_default_routes", Value: &c.DefaultRoutes, Empty: true}, {Name: "readiness_gates", Value: &c.ReadinessGates, Empty: true},
		{Name: "policy_wait", Value: &c.PolicyWait, Empty: true}, {Name: "policy_setup_timeout_seconds", Value: &c.PolicyTimeout, Empty: true},
		{Name: "dns", Value: &c.DNS, Empty: true}, {Name: "args", Value: &c.Args, Empty: true}, {Name: "runtimeConfig", Value: &c.Runtime, Empty: true},
	}...)
}

// Parse reads and checks the network plugin's configuration. Errors are *attach.Error and name the key.
func Parse(stdin []byte) (Conf, error) {
	var c Conf
	if err := decode(stdin, &c); err != nil {
		return Conf{}, err
	}
	return c, c.check()
}

// ParseModule reads and checks the part of any network configuration that concerns the IPAM module. Errors are *attach.Error
// and name the key.
func ParseModule(stdin []byte) (Module, error) {
	var m Module
	if err := decode(stdin, &m); err != nil {
		return Module{}, err
	}
	return m, m.check()
}

// LogOf reads the part that concerns the log, as far as it can be read: a mistake there is no reason to do nothing.
func LogOf(stdin []byte) Log {
	var l Log
	_ = members.Decode(stdin, l.Members()) // what was read until the mistake counts
	return l
}

// ResultVersion is the CNI version that the result is to be printed in.
func (m *Module) ResultVersion() string {
	if m.CNIVersion == "" {
		return "0.2.0" // what Calico takes an absent version for
	}
	return m.CNIVersion
}

// maxConf is more than any runtime says: of a GC, a hundred thousand attachments.
const maxConf = 16 << 20

func decode(stdin []byte, v any) error {
	if len(stdin) > maxConf {
		return &attach.Error{Code: attach.CodeDecode, Msg: fmt.Sprintf("decode network configuration: it has %d bytes, and at most %d are read", len(stdin), maxConf)}
	}
	err := unmarshal(stdin, v)
	var wrong *json.UnmarshalTypeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &wrong):
		return badKey(wrong.Field, "has the type %s, want %s", wrong.Value, jsonName(wrong.Type.Kind()))
	default:
		return &attach.Error{Code: attach.CodeDecode, Msg: "decode network configuration: " + err.Error()}
	}
}

func unmarshal(stdin []byte, v any) error {
	if o, ok := v.(members.Object); ok {
		return members.Decode(stdin, o.Members())
	}
	return json.Unmarshal(stdin, v)
}

func badKey(key, format string, args ...any) *attach.Error {
	return &attach.Error{
		Code:    attach.CodeBadConfig,
		Msg:     fmt.Sprintf("network configuration: key %q %s", key, fmt.Sprintf(format, args...)),
		Details: "correct the file in /etc/cni/net.d",
	}
}

func (c *Conf) check() error {
	if err := c.Module.check(); err != nil {
		return err
	}
	if err := c.checkForeignIPAM(); err != nil {
		return err
	}
	switch {
	case c.PolicyTimeout < 0:
		return badKey("policy_setup_timeout_seconds", "is %d, want 0 or more", c.PolicyTimeout)
	case c.MTU != 0 && (c.MTU < minMTU || c.MTU > maxMTU):
		return badKey("mtu", "is %d, want 0 or %d to %d", c.MTU, minMTU, maxMTU)
	case c.NumQueues < 0 || c.NumQueues > maxQueues:
		return badKey("num_queues", "is %d, want 0 to %d", c.NumQueues, maxQueues)
	case c.PolicyWait != "" && c.PolicyWait != NoWait:
		return badKey("policy_wait", "is %q, want \"\" or %q", c.PolicyWait, NoWait)
	}
	return nil
}

// maxQueues is the kernel's for a veth device (linux/drivers/net/veth.c takes at most 4096 of either kind).
const maxQueues = 4096

// ForeignIPAM reports whether the pods' addresses come from an IPAM module of another project.
func (m *Module) ForeignIPAM() bool {
	return m.IPAM.Type != "muslin-ipam" && m.IPAM.Type != "calico-ipam"
}

// checkForeignIPAM refuses what is no program's name.
func (c *Conf) checkForeignIPAM() error {
	if !c.ForeignIPAM() {
		return nil
	}
	if c.IPAM.Type == "" || strings.Contains(c.IPAM.Type, "/") {
		return badKey("ipam.type", "is %q, want \"muslin-ipam\", \"calico-ipam\" or the name of another IPAM module", c.IPAM.Type)
	}
	return nil
}

func (m *Module) check() error {
	if err := m.Etcd.check(); err != nil {
		return err
	}
	if m.Datastore != "" && m.Datastore != "etcdv3" {
		return badKey("datastore_type", "is %q, want \"etcdv3\": etcd is the one datastore", m.Datastore)
	}
	if m.Policy.Type != "" && m.Policy.Type != "k8s" {
		return badKey("policy.type", "is %q, want \"\" or \"k8s\"", m.Policy.Type)
	}
	v4, err := flag("ipam.assign_ipv4", m.IPAM.AssignIPv4, true)
	if err != nil {
		return err
	}
	v6, err := flag("ipam.assign_ipv6", m.IPAM.AssignIPv6, false)
	if err != nil {
		return err
	}
	if !v4 && !v6 {
		return badKey("ipam.assign_ipv4", "is false and so is ipam.assign_ipv6: a pod needs an address of one family at least")
	}
	return errors.Join(checkPools("ipam.ipv4_pools", m.IPAM.IPv4Pools, false), checkPools("ipam.ipv6_pools", m.IPAM.IPv6Pools, true))
}

// checkPools refuses what looks like a CIDR of the wrong family. Names are the handler's to look up.
func checkPools(key string, pools []string, v6 bool) error {
	for _, pool := range pools {
		cidr, err := netip.ParsePrefix(pool)
		if err == nil && cidr.Addr().Is6() != v6 {
			return badKey(key, "holds %q, which is of the other family", pool)
		}
	}
	return nil
}

// flag reads a boolean that Calico writes as a string.
func flag(key string, v any, absent bool) (bool, error) {
	switch v {
	case nil:
		return absent, nil
	case true, "true":
		return true, nil
	case false, "false":
		return false, nil
	}
	return false, badKey(key, "is %v, want \"true\" or \"false\"", v)
}
