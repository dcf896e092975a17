package policy

import (
	"cmp"
	"slices"
	"strings"
)

// ServiceName names a Kubernetes service.
type ServiceName struct{ Namespace, Name string }

// String is the name as people write it.
func (s ServiceName) String() string { return serviceKey(s.Namespace, s.Name) }

// Services are those that compiled policies refer to, sorted: of others the engine need not be told.
func (e *Engine) Services() (out []ServiceName) {
	for _, s := range e.sets {
		if s.service != "" {
			namespace, name, _ := strings.Cut(s.service, "/") // serviceKey made it
			out = append(out, ServiceName{namespace, name})
		}
	}
	slices.SortFunc(out, func(a, b ServiceName) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	return slices.Compact(out)
}
