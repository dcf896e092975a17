package controllers

import (
	"context"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/internal/kubeconv"
	"github.com/muslin-cni/muslin/pkg/api"
)

func profileKey(name string) string { return (*api.Profile)(nil).KindOf().Key("", name) }

// mergeProfile keeps whatever else somebody noted in the metadata.
func mergeProfile(have, want *api.Profile) *api.Profile {
	next := *have
	next.Spec = want.Spec
	return &next
}

// namespaces mirrors namespaces as profiles.
func (t *tools) namespaces() *mirror[api.Profile, *api.Profile] {
	return &mirror[api.Profile, *api.Profile]{
		tools: t, kinds: feed.Profiles, merge: mergeProfile,
		parse: func(key string) (id, bool) {
			rest, _ := under(key, profileKey(""))
			ns, ok := kubeconv.ParseNamespaceProfile(rest)
			return id{name: ns}, ok
		},
		key: func(i id) string { return profileKey(kubeconv.NamespaceProfile(i.name)) },
		wanted: func() ([]id, error) {
			return named(t.kube.factory.Core().V1().Namespaces().Lister().List(labels.Everything()))
		},
		want: func(i id) (*api.Profile, error) {
			ns, err := t.kube.namespace(i.name)
			if ns == nil || err != nil {
				return nil, err
			}
			return kubeconv.Namespace(ns), nil
		},
		exists: func(ctx context.Context, i id) (bool, error) { return t.kube.hasNamespace(ctx, i.name) },
	}
}

// accounts mirrors service accounts as profiles.
func (t *tools) accounts() *mirror[api.Profile, *api.Profile] {
	return &mirror[api.Profile, *api.Profile]{
		tools: t, kinds: feed.Profiles, merge: mergeProfile,
		parse: func(key string) (id, bool) {
			rest, _ := under(key, profileKey(""))
			ns, name, ok := kubeconv.ParseServiceAccountProfile(rest)
			return id{ns, name}, ok
		},
		key: func(i id) string { return profileKey(kubeconv.ServiceAccountProfile(i.namespace, i.name)) },
		wanted: func() ([]id, error) {
			return named(t.kube.factory.Core().V1().ServiceAccounts().Lister().List(labels.Everything()))
		},
		want: func(i id) (*api.Profile, error) {
			sa, err := t.kube.account(i.namespace, i.name)
			if sa == nil || err != nil {
				return nil, err
			}
			return kubeconv.ServiceAccount(sa), nil
		},
		exists: func(ctx context.Context, i id) (bool, error) { return t.kube.hasAccount(ctx, i.namespace, i.name) },
	}
}

// before330 stood before the stored names of policies of the default tier until Calico 3.29.
const before330 = "default."

// policies mirrors Kubernetes' network policies.
func (t *tools) policies() *mirror[api.NetworkPolicy, *api.NetworkPolicy] {
	kind := (*api.NetworkPolicy)(nil).KindOf()
	return &mirror[api.NetworkPolicy, *api.NetworkPolicy]{
		tools: t, kinds: feed.NetworkPolicies,
		parse: func(key string) (id, bool) {
			rest, _ := under(key, kind.Prefix())
			ns, stored, _ := strings.Cut(rest, "/")
			name, ok := kubeconv.ParsePolicyName(strings.TrimPrefix(stored, before330))
			return id{ns, name}, ok && ns != ""
		},
		key: func(i id) string { return kind.Key(i.namespace, kubeconv.PolicyName(i.name)) },
		wanted: func() ([]id, error) {
			return named(t.kube.factory.Networking().V1().NetworkPolicies().Lister().List(labels.Everything()))
		},
		want:   t.convert,
		exists: func(ctx context.Context, i id) (bool, error) { return t.kube.hasPolicy(ctx, i.namespace, i.name) },
		merge: func(have, want *api.NetworkPolicy) *api.NetworkPolicy {
			next := *have
			next.Spec = want.Spec
			api.SetDefaults(&next)
			return &next
		},
	}
}

// convert is what a network policy becomes. One that cannot be said in a resource is an error: the API server would not have taken it.
func (t *tools) convert(i id) (*api.NetworkPolicy, error) {
	np, err := t.kube.policy(i.namespace, i.name)
	if np == nil || err != nil {
		return nil, err
	}
	p, lost, err := kubeconv.NetworkPolicy(np)
	if err != nil {
		return nil, err
	}
	for _, e := range lost {
		t.log.Warn("a rule of a NetworkPolicy is left out, so that it allows less", "namespace", i.namespace, "policy", i.name, "error", e)
	}
	return p, nil
}

// named are the names of listed objects.
func named[T metav1.Object](list []T, err error) ([]id, error) {
	out := make([]id, len(list))
	for n, o := range list {
		out[n] = id{o.GetNamespace(), o.GetName()}
	}
	return out, err
}

// watchNamespaces and the like ask for the keys of changed objects to be looked at.
func (t *tools) watchNamespaces(q *queue, m *mirror[api.Profile, *api.Profile]) error {
	return t.kube.watch("namespaces", t.kube.factory.Core().V1().Namespaces().Informer(), func(was, is any) {
		q.look(keysOf[*corev1.Namespace](m.key, was, is)...)
	})
}

func (t *tools) watchAccounts(q *queue, m *mirror[api.Profile, *api.Profile]) error {
	return t.kube.watch("serviceaccounts", t.kube.factory.Core().V1().ServiceAccounts().Informer(), func(was, is any) {
		q.look(keysOf[*corev1.ServiceAccount](m.key, was, is)...)
	})
}

func (t *tools) watchPolicies(q *queue, m *mirror[api.NetworkPolicy, *api.NetworkPolicy]) error {
	return t.kube.watch("networkpolicies", t.kube.factory.Networking().V1().NetworkPolicies().Informer(), func(was, is any) {
		q.look(keysOf[*networkingv1.NetworkPolicy](m.key, was, is)...)
	})
}

// keysOf is the key of the object that was, or is; none for what is no object of the kind.
func keysOf[T metav1.Object](key func(id) string, was, is any) []string {
	for _, o := range []any{is, was} {
		if v, ok := o.(T); ok {
			return []string{key(id{v.GetNamespace(), v.GetName()})}
		}
	}
	return nil
}
