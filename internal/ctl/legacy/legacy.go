// Package legacy says what a document of Calico's first format would be today.
//
// Documents with apiVersion v1 and kinds such as ipPool are of releases before 3.0. They are refused, and their writers told
// what to write instead.
package legacy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/muslin-cni/muslin/pkg/api"
)

// Error refuses a document of the first format.
type Error struct {
	Kind string
	Now  string // the same in today's format, as YAML; "" where only a person can translate it
	Then string // today's kind
}

func (e *Error) Error() string {
	if e.Now == "" {
		return fmt.Sprintf("%s with apiVersion v1 is of Calico before 3.0 and is not read any more: write a %s with apiVersion %s", e.Kind, e.Then, api.Version)
	}
	return fmt.Sprintf("%s with apiVersion v1 is of Calico before 3.0 and is not read any more: write this instead:\n\n%s", e.Kind, e.Now)
}

// object is a document, and object.in a part of it.
type object map[string]any

func (o object) in(key string) object {
	part, _ := o[key].(map[string]any)
	return part
}

// word is a scalar as text; "" if there is none.
func (o object) word(key string) string {
	switch v := o[key].(type) {
	case nil, map[string]any, []any:
		return ""
	case float64:
		return fmt.Sprintf("%.f", v)
	default:
		return fmt.Sprint(v)
	}
}

// Check refuses, with an *Error, a document of the first format; nil for any other.
func Check(document map[string]any) error {
	d := object(document)
	kind := d.word("kind")
	then, ok := map[string]string{
		"calicoApiConfig": "CalicoAPIConfig", "ipPool": "IPPool", "bgpPeer": "BGPPeer", "node": "Node", "policy": "GlobalNetworkPolicy or NetworkPolicy",
		"profile": "Profile", "hostEndpoint": "HostEndpoint", "workloadEndpoint": "WorkloadEndpoint",
	}[kind]
	if d.word("apiVersion") != "v1" || !ok {
		return nil
	}
	e := &Error{Kind: kind, Then: then}
	translate := map[string]func(object) (name string, spec map[string]any){
		"calicoApiConfig": config, "ipPool": pool, "bgpPeer": peer, "node": node,
	}[kind]
	if translate == nil {
		return e
	}
	name, spec := translate(d)
	meta := map[string]any{}
	if name != "" {
		meta["name"] = name
	}
	if text, err := yaml.Marshal(map[string]any{"apiVersion": api.Version, "kind": then, "metadata": meta, "spec": spec}); err == nil {
		e.Now = string(text)
	}
	return e
}

func config(d object) (string, map[string]any) {
	spec := map[string]any{}
	for _, key := range []string{
		"etcdEndpoints", "etcdUsername", "etcdPassword", "etcdKeyFile", "etcdCertFile", "etcdCACertFile", "etcdDiscoverySrv",
	} {
		if v := d.in("spec").word(key); v != "" {
			spec[key] = v
		}
	}
	if host := d.in("spec").word("etcdAuthority"); host != "" && spec["etcdEndpoints"] == nil {
		scheme := d.in("spec").word("etcdScheme")
		if scheme == "" {
			scheme = "http"
		}
		spec["etcdEndpoints"] = scheme + "://" + host
	}
	spec["datastoreType"] = "etcdv3"
	return "", spec
}

func pool(d object) (string, map[string]any) {
	cidr := d.in("metadata").word("cidr")
	spec := map[string]any{"cidr": cidr}
	old := d.in("spec")
	if old.in("ipip").word("enabled") == "true" {
		mode := "Always"
		if slices.Contains([]string{"cross-subnet", "crosssubnet"}, strings.ToLower(old.in("ipip").word("mode"))) {
			mode = "CrossSubnet"
		}
		spec["ipipMode"] = mode
	}
	for from, to := range map[string]string{"nat-outgoing": "natOutgoing", "disabled": "disabled"} {
		if old.word(from) == "true" {
			spec[to] = true
		}
	}
	return named("ippool", cidr), spec
}

func peer(d object) (string, map[string]any) {
	meta := d.in("metadata")
	spec := map[string]any{"peerIP": meta.word("peerIP")}
	if as, ok := d.in("spec")["asNumber"]; ok {
		spec["asNumber"] = as
	}
	if n := meta.word("node"); n != "" && meta.word("scope") != "global" {
		spec["node"] = n
	}
	return named("peer", meta.word("peerIP")), spec
}

func node(d object) (string, map[string]any) {
	spec := map[string]any{}
	bgp := map[string]any{}
	for from, to := range map[string]string{"asNumber": "asNumber", "ipv4Address": "ipv4Address", "ipv6Address": "ipv6Address"} {
		if v, ok := d.in("spec").in("bgp")[from]; ok {
			bgp[to] = v
		}
	}
	if len(bgp) > 0 {
		spec["bgp"] = bgp
	}
	return d.in("metadata").word("name"), spec
}

// named makes a name of an address or range: ippool-10-0-0-0-16.
func named(what, addr string) string {
	_, rangeErr := netip.ParsePrefix(addr)
	_, addrErr := netip.ParseAddr(addr)
	if rangeErr != nil && addrErr != nil {
		return what
	}
	return strings.Trim(what+"-"+strings.NewReplacer(".", "-", ":", "-", "/", "-").Replace(addr), "-")
}
