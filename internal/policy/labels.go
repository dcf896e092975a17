package policy

import (
	"strings"

	"github.com/muslin-cni/muslin/pkg/api"
)

// labelSet is all labels of an endpoint or network set: those that the system itself gives, its own, and those of its profiles, the first of which
// that has a label decides. Who lives in a namespace has what says so of its namespace or account from its profiles alone: whoever may label a pod could else
// pass it off as one of any namespace. It implements selector.Labels.
type labelSet struct {
	namespace string // "" if it lives in none
	account   string // "" if it has none
	own       map[string]string
	inherited []map[string]string
}

// Get implements selector.Labels.
func (l *labelSet) Get(key string) (value string, ok bool) {
	switch {
	case key == api.LabelNamespace && l.namespace != "":
		return l.namespace, true
	case key == labelAccount && l.account != "":
		return l.account, true
	}
	if value, ok = l.own[key]; ok && !l.claims(key) {
		return value, true
	}
	for _, m := range l.inherited {
		if value, ok = m[key]; ok {
			return value, true
		}
	}
	return "", false
}

// claims reports whether an own label of that name would say whose the object is, which is not for it to say.
func (l *labelSet) claims(key string) bool {
	return l.namespace != "" && (strings.HasPrefix(key, namespacePrefix) || strings.HasPrefix(key, accountPrefix))
}

// each calls visit once for every label, with the value that counts.
func (l *labelSet) each(visit func(key, value string)) {
	if l.namespace != "" {
		visit(api.LabelNamespace, l.namespace)
	}
	if l.account != "" {
		visit(labelAccount, l.account)
	}
	for key, value := range l.own {
		if key == api.LabelNamespace && l.namespace != "" || key == labelAccount && l.account != "" || l.claims(key) {
			continue
		}
		visit(key, value)
	}
	for i, m := range l.inherited {
		for key, value := range m {
			if !l.overridden(key, i) {
				visit(key, value)
			}
		}
	}
}

// overridden reports whether a label of the profile at i does not count.
func (l *labelSet) overridden(key string, i int) bool {
	before := labelSet{namespace: l.namespace, account: l.account, own: l.own, inherited: l.inherited[:i]}
	_, ok := before.Get(key)
	return ok
}

// profilesOf are the names of the profiles whose labels an object has.
func profilesOf(o api.Object) []string {
	switch v := o.(type) {
	case *api.WorkloadEndpoint:
		return v.Spec.Profiles
	case *api.HostEndpoint:
		return v.Spec.Profiles
	case *api.NetworkSet:
		return []string{namespaceProfile + v.Metadata.Namespace}
	}
	return nil
}

// fill makes l the labels of an object, with those of its profiles as labelsOf knows them.
func (l *labelSet) fill(o api.Object, labelsOf func(profile string) map[string]string) {
	*l = labelSet{inherited: l.inherited[:0]}
	if o == nil {
		return
	}
	m := o.Meta()
	l.own, l.namespace = m.Labels, m.Namespace
	if w, ok := o.(*api.WorkloadEndpoint); ok {
		l.account = w.Spec.ServiceAccountName
	}
	for _, name := range profilesOf(o) {
		if labels := labelsOf(name); len(labels) > 0 {
			l.inherited = append(l.inherited, labels)
		}
	}
}
