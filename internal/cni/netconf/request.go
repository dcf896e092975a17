package netconf

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/hostside"
)

// podArgs are the keys of CNI_ARGS that name a pod. The fields' names are the keys.
type podArgs struct {
	types.CommonArgs
	IP                         types.UnmarshallableString
	K8S_POD_NAMESPACE          types.UnmarshallableString
	K8S_POD_NAME               types.UnmarshallableString
	K8S_POD_UID                types.UnmarshallableString
	K8S_POD_INFRA_CONTAINER_ID types.UnmarshallableString
}

// Request is what a CNI command asks of the handler. Errors are *attach.Error.
func (c *Conf) Request(verb attach.Verb, cmd *skel.CmdArgs) (attach.Request, error) {
	req, err := c.Module.Request(verb, cmd)
	if err != nil {
		return attach.Request{}, err
	}
	if c.ForeignIPAM() {
		req.ForeignIPAM = c.IPAM.Type
	}
	if verb != attach.Add {
		return req, nil // what the pod shall be is no matter any more
	}
	req.Annotations = c.Runtime.Annotations
	req.ReadinessGates = c.ReadinessGates
	req.Features = attach.Features(c.Features)
	if len(c.Args.CNI.Labels) > 0 {
		req.Labels = attach.Strings{}
	}
	for _, l := range c.Args.CNI.Labels {
		req.Labels[l.Key] = l.Value
	}
	return req, nil
}

// Request is what a CNI command asks of the handler as far as any network configuration tells: labels and annotations are
// left out. Errors are *attach.Error.
func (m *Module) Request(verb attach.Verb, cmd *skel.CmdArgs) (attach.Request, error) {
	var args podArgs
	if err := types.LoadArgs(cmd.Args, &args); err != nil {
		return attach.Request{}, &attach.Error{Code: attach.CodeBadEnv, Msg: "read CNI_ARGS: " + err.Error(), Details: "the runtime sets it: KEY=value pairs with semicolons between them"}
	}
	var wanted []netip.Addr
	if verb == attach.Add && !m.ForeignIPAM() { // which reads it itself
		var err error
		if wanted, err = wantedAddrs(string(args.IP)); err != nil {
			return attach.Request{}, err
		}
	}
	v4, err := flag("ipam.assign_ipv4", m.IPAM.AssignIPv4, true)
	if err != nil {
		return attach.Request{}, err
	}
	v6, err := flag("ipam.assign_ipv6", m.IPAM.AssignIPv6, false)
	if err != nil {
		return attach.Request{}, err
	}
	pod := podOf(args)
	return attach.Request{
		Version:     attach.Version,
		Verb:        verb,
		Network:     m.Name,
		ContainerID: cmd.ContainerID,
		IfName:      cmd.IfName,
		HostIf:      hostside.InterfaceName(pod.Namespace, pod.Name, cmd.ContainerID),
		Netns:       cmd.Netns,
		Pod:         pod,
		AssignIPv4:  v4,
		AssignIPv6:  v6,
		IPv4Pools:   m.IPAM.IPv4Pools,
		IPv6Pools:   m.IPAM.IPv6Pools,
		PolicyType:  m.Policy.Type,
		Wanted:      wanted,
	}, nil
}

// wantedAddrs reads what CNI_ARGS has for IP: one address, or one of each family with a comma between them.
func wantedAddrs(text string) ([]netip.Addr, error) {
	if text == "" {
		return nil, nil
	}
	var out []netip.Addr
	for part := range strings.SplitSeq(text, ",") {
		a, err := netip.ParseAddr(strings.TrimSpace(part))
		if err == nil {
			out = append(out, a.Unmap())
		}
		if err != nil || a.Zone() != "" || len(out) == 2 && out[0].Is6() == out[1].Is6() || len(out) > 2 {
			return nil, &attach.Error{
				Code: attach.CodeBadEnv, Msg: fmt.Sprintf("read CNI_ARGS: IP=%s is not an address, nor one of each family", text), Details: "write it as IP=10.0.0.1",
			}
		}
	}
	return out, nil
}

// podOf returns the zero Pod unless both halves of its name are there: then the caller is not Kubernetes.
func podOf(a podArgs) attach.Pod {
	if a.K8S_POD_NAMESPACE == "" || a.K8S_POD_NAME == "" {
		return attach.Pod{}
	}
	return attach.Pod{Namespace: string(a.K8S_POD_NAMESPACE), Name: string(a.K8S_POD_NAME), UID: string(a.K8S_POD_UID)}
}

// jsonName is what JSON calls values of a Go kind.
func jsonName(k reflect.Kind) string {
	switch k {
	case reflect.Bool, reflect.String:
		return strings.ToLower(k.String())
	case reflect.Slice, reflect.Array:
		return "array"
	case reflect.Map, reflect.Struct, reflect.Pointer:
		return "object"
	default:
		return "whole number"
	}
}
