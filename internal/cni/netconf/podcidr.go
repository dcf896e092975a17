package netconf

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
)

// Calico's words in a section for host-local that stand for the range of a family which Kubernetes has given to the node's pods.
const (
	podCIDRWord  = "usePodCidr"
	podCIDRWord6 = "usePodCidrIPv6"
)

// AnyRange stands for the node's ranges where only the name of the container matters, as when its addresses are taken back.
func AnyRange() []netip.Prefix {
	return []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)}
}

// WantsPodCIDR tells whether the IPAM section says that the addresses are those that Kubernetes has given to the node.
func (c *Conf) WantsPodCIDR() bool {
	return holds(c.IPAM.Subnet) || holds(c.IPAM.Ranges)
}

// holds finds a word at any depth.
func holds(v any) bool {
	switch v := v.(type) {
	case string:
		return strings.EqualFold(v, podCIDRWord) || strings.EqualFold(v, podCIDRWord6)
	case []any:
		return slices.ContainsFunc(v, holds)
	case map[string]any:
		return holds(v["subnet"])
	}
	return false
}

// WithPodCIDR is a network configuration with the node's ranges in the place of the words. Errors are *attach.Error.
func WithPodCIDR(stdin []byte, ranges []netip.Prefix) ([]byte, error) {
	var conf map[string]any
	if err := decode(stdin, &conf); err != nil {
		return nil, err
	}
	ipam, _ := conf["ipam"].(map[string]any) // WantsPodCIDR has found a word in it
	for _, key := range []string{"subnet", "ranges"} {
		v, err := filled("ipam."+key, ipam[key], ranges)
		if err != nil {
			return nil, err
		}
		if v != nil {
			ipam[key] = v
		}
	}
	return json.Marshal(conf)
}

// filled replaces the words in a value, which it may change.
func filled(key string, v any, ranges []netip.Prefix) (_ any, err error) {
	switch v := v.(type) {
	case string:
		return word(key, v, ranges)
	case []any:
		for i := range v {
			if v[i], err = filled(key, v[i], ranges); err != nil {
				return nil, err
			}
		}
	case map[string]any:
		if s, ok := v["subnet"].(string); ok {
			v["subnet"], err = word(key, s, ranges)
		}
		return v, err
	}
	return v, nil
}

func word(key, text string, ranges []netip.Prefix) (string, error) {
	v6 := strings.EqualFold(text, podCIDRWord6)
	if !v6 && !strings.EqualFold(text, podCIDRWord) {
		return text, nil
	}
	i := slices.IndexFunc(ranges, func(r netip.Prefix) bool { return r.Addr().Is6() == v6 })
	if i < 0 {
		return "", badKey(key, "is %q, and Kubernetes has given this node no range of that family: see its Node's spec.podCIDRs, and the controller manager's --allocate-node-cidrs", text)
	}
	return ranges[i].String(), nil
}
