package policyjudge

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/pkg/api"
)

// Shrink returns a cluster of which bad is still true, and of none that lacks one more object, rule, or field of a rule. The cluster that
// it is given is left as it is.
func Shrink(c *Cluster, bad func(*Cluster) bool) *Cluster {
	for {
		smaller := c.smaller(bad)
		if smaller == nil {
			return c
		}
		c = smaller
	}
}

// smaller is the first smaller cluster that is still bad.
func (c *Cluster) smaller(bad func(*Cluster) bool) *Cluster {
	for i := range c.Objects {
		next := *c
		next.Objects = slices.Delete(slices.Clone(c.Objects), i, i+1)
		if bad(&next) {
			return &next
		}
	}
	for i := range c.Services {
		next := *c
		next.Services = slices.Delete(slices.Clone(c.Services), i, i+1)
		if bad(&next) {
			return &next
		}
	}
	for i, o := range c.Objects {
		for _, less := range lesser(o) {
			next := *c
			next.Objects = slices.Clone(c.Objects)
			next.Objects[i] = less
			if bad(&next) {
				return &next
			}
		}
	}
	return nil
}

// lesser are copies of an object that lack one thing each: what is in its spec, or an element or field of that, at any depth. Only valid ones count, and those
// that differ once defaults are set.
func lesser(o api.Object) []api.Object {
	raw, err := json.Marshal(o)
	if err != nil {
		return nil
	}
	var tree map[string]any
	if json.Unmarshal(raw, &tree) != nil {
		return nil
	}
	var out []api.Object
	for _, part := range []string{"spec", "metadata"} {
		cut(tree[part], func(v any) { tree[part] = v }, func() {
			if less := decoded(o.KindOf(), tree); less != nil && !reflect.DeepEqual(less, o) {
				out = append(out, less)
			}
		})
	}
	return out
}

func decoded(k api.Kind, tree any) api.Object {
	raw, err := json.Marshal(tree)
	if err != nil {
		return nil
	}
	o := k.New()
	if json.Unmarshal(raw, o) != nil {
		return nil
	}
	api.SetDefaults(o)
	if api.Validate(o) != nil {
		return nil
	}
	return o
}

// cut removes one thing after the other from a tree, calls try each time, and puts it back.
func cut(v any, put func(any), try func()) {
	switch v := v.(type) {
	case map[string]any:
		for key, inner := range v {
			delete(v, key)
			try()
			v[key] = inner
			cut(inner, func(x any) { v[key] = x }, try)
		}
	case []any:
		for i, inner := range v {
			put(slices.Delete(slices.Clone(v), i, i+1))
			try()
			put(v)
			cut(inner, func(x any) { v[i] = x }, try)
		}
	}
}

// String is the cluster, an object a line, as JSON.
func (c *Cluster) String() string {
	var b strings.Builder
	for _, o := range c.Objects {
		raw, err := json.Marshal(o)
		if err != nil {
			raw = []byte(err.Error())
		}
		fmt.Fprintf(&b, "%s %s\n", o.KindOf().Name, raw)
	}
	for _, s := range c.Services {
		fmt.Fprintf(&b, "Service %+v\n", s)
	}
	fmt.Fprintf(&b, "Host %+v\n", c.Host)
	return b.String()
}
