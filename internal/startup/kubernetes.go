package startup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/muslin-cni/muslin/internal/apiserver"
)

// Kubernetes reads one object, by its path, from an API server into a JSON target; apiserver.ErrNotFound if there is none.
type Kubernetes interface {
	Get(ctx context.Context, path string, into any) error
}

// kubeTimeout bounds all that is asked of Kubernetes before the start goes on without.
const kubeTimeout = 2 * time.Second

// told is what Kubernetes says of the cluster.
type told struct {
	words  []string                // for clusterType
	ranges map[family]netip.Prefix // that pods are to have
}

// askKubernetes looks whether the cluster is one of kubeadm's or Rancher's. Without an answer the start goes on.
func (s *starter) askKubernetes(ctx context.Context) error {
	if s.Kube == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, kubeTimeout)
	defer cancel()
	const maps = "/api/v1/namespaces/kube-system/configmaps/"
	var kubeadm, rancher struct {
		Data struct{ ClusterConfiguration string }
	}
	switch err := s.Kube.Get(ctx, maps+"kubeadm-config", &kubeadm); {
	case err == nil:
		s.told.words = append(s.told.words, "kubeadm")
		s.told.ranges = s.podRanges(kubeadm.Data.ClusterConfiguration)
	case !errors.Is(err, apiserver.ErrNotFound):
		s.Log.Warn("what Kubernetes knows of the cluster is left out", "error", err)
		return nil
	}
	switch err := s.Kube.Get(ctx, maps+"full-cluster-state", &rancher); {
	case err == nil:
		s.told.words = append(s.told.words, "rancher")
	case !errors.Is(err, apiserver.ErrNotFound):
		s.Log.Warn("whether Rancher made the cluster is left out", "error", err)
	}
	return nil
}

// podRanges are those of kubeadm's podSubnet, the first of each family.
func (s *starter) podRanges(text string) map[family]netip.Prefix {
	var conf struct {
		Networking struct {
			PodSubnet string `json:"podSubnet"`
		} `json:"networking"`
	}
	if err := yaml.Unmarshal([]byte(text), &conf); err != nil {
		s.Log.Warn("kubeadm's podSubnet is left out", "error", err)
		return nil
	}
	out := map[family]netip.Prefix{}
	for _, r := range strings.Split(conf.Networking.PodSubnet, ",") {
		if r = strings.TrimSpace(r); r == "" {
			continue
		}
		p, err := netip.ParsePrefix(r)
		if err != nil {
			s.Log.Warn("kubeadm's podSubnet is left out", "error", err)
			continue
		}
		if f := family(p.Addr().Is6()); !out[f].IsValid() {
			out[f] = p.Masked()
		}
	}
	return out
}

// internalIP is the Kubernetes Node's InternalIP of a family, with the prefix length that it has on this host.
func (s *starter) internalIP(ctx context.Context, v variables) (netip.Prefix, error) {
	ctx, cancel := context.WithTimeout(ctx, detectTimeout)
	defer cancel()
	name := cmp.Or(s.cfg.K8sNodeRef, s.node)
	ip, err := s.askInternalIP(ctx, v.family, name)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("detect the %v address by %s: %w", v.family, v.cfg.Method, err)
	}
	held, ok := holds(s.Host, ip)
	if !ok {
		return netip.Prefix{}, fmt.Errorf("detect the %v address by %s: Node %s of Kubernetes has InternalIP %v, which is on no device of this host",
			v.family, v.cfg.Method, name, ip)
	}
	return held, nil
}

func (s *starter) askInternalIP(ctx context.Context, f family, name string) (netip.Addr, error) {
	if s.Kube == nil {
		return netip.Addr{}, apiserver.ErrNotConfigured
	}
	var node struct {
		Status struct {
			Addresses []struct{ Type, Address string }
		}
	}
	err := s.Kube.Get(ctx, "/api/v1/nodes/"+name, &node)
	if errors.Is(err, apiserver.ErrNotFound) {
		return netip.Addr{}, fmt.Errorf("%w: set CALICO_K8S_NODE_REF to the node's name in Kubernetes", err)
	}
	if err != nil {
		return netip.Addr{}, err
	}
	for _, a := range node.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); a.Type == "InternalIP" && err == nil && f.of(ip) {
			return ip, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("no InternalIP of %v is in Node %s of Kubernetes", f, name)
}
