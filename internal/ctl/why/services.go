package why

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/muslin-cni/muslin/internal/apiserver"
	"github.com/muslin-cni/muslin/internal/kubeconv"
	"github.com/muslin-cni/muslin/internal/policy"
	"github.com/muslin-cni/muslin/pkg/api"
)

// locate asks Kubernetes where the services are that policies name, as agents do. Without a kubeconfig they are not known.
func (f *facts) locate(ctx context.Context, kubeconfig string) error {
	named := f.services()
	if len(named) == 0 {
		return nil
	}
	if kubeconfig == "" {
		f.lost = named
		return nil
	}
	c, err := apiserver.NewFrom(apiserver.Settings{Kubeconfig: kubeconfig})
	if err != nil {
		return err
	}
	defer c.Close()
	for _, s := range named {
		var found struct{ Items []*discoveryv1.EndpointSlice }
		path := fmt.Sprintf("/apis/discovery.k8s.io/v1/namespaces/%s/endpointslices?labelSelector=%s%%3D%s", s.Namespace, discoveryv1.LabelServiceName, s.Name)
		if err := c.Get(ctx, path, &found); err != nil {
			return err
		}
		f.all.Services = append(f.all.Services, policy.Service{Namespace: s.Namespace, Name: s.Name, Members: kubeconv.ServiceMembers(found.Items)})
	}
	return nil
}

// services are those that policies name, sorted.
func (f *facts) services() (out []policy.ServiceName) {
	for _, c := range f.all.Objects {
		for _, r := range rulesOf(c.Object) {
			for _, s := range []*api.ServiceMatch{r.Source.Services, r.Destination.Services} {
				if s != nil && s.Name != "" {
					out = append(out, policy.ServiceName{Namespace: cmp.Or(s.Namespace, c.Object.Meta().Namespace), Name: s.Name})
				}
			}
		}
	}
	slices.SortFunc(out, func(a, b policy.ServiceName) int { return strings.Compare(a.String(), b.String()) })
	return slices.Compact(out)
}

// rulesOf are a policy's rules of both directions. Policies in Kubernetes' own form name no services.
func rulesOf(o api.Object) []api.Rule {
	switch p := o.(type) {
	case *api.NetworkPolicy:
		return slices.Concat(p.Spec.Ingress, p.Spec.Egress)
	case *api.GlobalNetworkPolicy:
		return slices.Concat(p.Spec.Ingress, p.Spec.Egress)
	case *api.StagedNetworkPolicy:
		return slices.Concat(p.Spec.Ingress, p.Spec.Egress)
	case *api.StagedGlobalNetworkPolicy:
		return slices.Concat(p.Spec.Ingress, p.Spec.Egress)
	case *api.Profile:
		return slices.Concat(p.Spec.Ingress, p.Spec.Egress)
	}
	return nil
}
