package api

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Op is what is about to be done to an object.
type Op string

// The operations.
const (
	OpCreate Op = "Create"
	OpUpdate Op = "Update"
	OpDelete Op = "Delete"
)

// maxAnnotations is Kubernetes' limit for all annotations of an object together, in bytes.
const maxAnnotations = 256 << 10

// Validate reports everything that is wrong with an object in its user's form: names, labels and the fields of its kind. Set
// the defaults before. The error is an *InvalidError; nil if nothing is wrong. What depends on other objects is not
// looked at (see References, and Overlapping for pools).
func Validate(o Object) error { return validated(o).err() }

// ValidateCreate is Validate for an object that is about to be created. The error may be an *UnsupportedError too.
func ValidateCreate(o Object) error {
	if err := Permit(OpCreate, o); err != nil {
		return err
	}
	c := validated(o)
	if o.Meta().ResourceVersion != "" {
		c.add("metadata.resourceVersion", o.Meta().ResourceVersion, "field must not be set for a Create request")
	}
	return c.err()
}

// ValidateUpdate is Validate for an object that is about to replace old, which is of the same kind: fields that cannot change
// have not changed, and the metadata that ties it to what is stored is there.
func ValidateUpdate(o, old Object) error {
	if err := Permit(OpUpdate, o); err != nil {
		return err
	}
	c := validated(o)
	m := o.Meta()
	const missing = "field must be set for an Update request"
	if m.ResourceVersion == "" {
		c.add("metadata.resourceVersion", nil, missing)
	}
	if m.CreationTimestamp.IsZero() {
		c.add("metadata.creationTimestamp", nil, missing)
	}
	if m.UID == "" {
		c.add("metadata.uid", nil, missing)
	}
	if o.KindOf() != old.KindOf() {
		c.add("kind", o.KindOf().Name, "cannot replace a %s", old.KindOf().Name)
		return c.err()
	}
	if v, ok := o.(interface{ validateUpdate(*checker, Object) }); ok {
		v.validateUpdate(c, old)
	}
	return c.err()
}

// Permit says why an operation is never done to this object by its name or kind; nil if it may be. The error is an
// *UnsupportedError.
func Permit(op Op, o Object) error {
	v, ok := o.(interface{ refuses(Op) string })
	if !ok {
		return nil
	}
	if reason := v.refuses(op); reason != "" {
		return &UnsupportedError{Op: op, Object: Identify(o), Reason: reason}
	}
	return nil
}

// Identify names an object for people: Kind(name) or Kind(namespace/name).
func Identify(o Object) string {
	k, m := o.KindOf(), o.Meta()
	if k.Namespaced {
		return fmt.Sprintf("%s(%s/%s)", k.Name, m.Namespace, m.Name)
	}
	return fmt.Sprintf("%s(%s)", k.Name, m.Name)
}

// Compare is the order in which people expect objects of one kind: tiers by their order, all others by namespace and name.
func Compare(a, b Object) int {
	if c, ok := a.(interface{ compare(Object) int }); ok {
		if n := c.compare(b); n != 0 {
			return n
		}
	}
	return cmp.Or(strings.Compare(a.Meta().Namespace, b.Meta().Namespace), strings.Compare(a.Meta().Name, b.Meta().Name))
}

// Reference is an object that must exist for another one to make sense.
type Reference struct {
	Path string // the field that names it
	Kind Kind
	Name string
}

// References lists the objects that o names and that whoever writes o should find there, in the order of the fields.
func References(o Object) []Reference {
	if r, ok := o.(interface{ references() []Reference }); ok {
		return r.references()
	}
	return nil
}

// SetDefaults fills the fields that a writer leaves out, as the kind says.
func SetDefaults(o Object) {
	if d, ok := o.(interface{ Default() }); ok {
		d.Default()
	}
}

func validated(o Object) *checker {
	c := &checker{}
	c.meta(o)
	c.walkFields("", reflect.ValueOf(o).Elem())
	if v, ok := o.(interface{ validate(*checker) }); ok {
		v.validate(c)
	}
	return c
}

func (c *checker) meta(o Object) {
	k, m := o.KindOf(), o.Meta()
	if reason := badName(k, m.Name); reason != "" {
		c.add("metadata.name", m.Name, "%s", reason)
	}
	switch {
	case k.Namespaced && m.Namespace == "":
		c.add("metadata.namespace", nil, "namespace is not specified on namespaced resource")
	case k.Namespaced && !isSubdomain(m.Namespace):
		c.add("metadata.namespace", m.Namespace, "%s", strings.Replace(subdomainReason, "name", "namespace", 1))
	case !k.Namespaced && m.Namespace != "":
		c.add("metadata.namespace", m.Namespace, "namespace should not be specified for a non-namespaced resource. %s is not a namespaced resource", k.Name)
	}
	for _, key := range slices.Sorted(maps.Keys(m.Labels)) {
		c.label("metadata.labels", key, m.Labels[key])
	}
	size := 0
	for _, key := range slices.Sorted(maps.Keys(m.Annotations)) {
		size += len(key) + len(m.Annotations[key])
		if !isQualified(strings.ToLower(key)) {
			c.add("metadata.annotations", key, "a key is a name of at most 63 letters, digits and any of - _ . with an optional domain and slash before it")
		}
	}
	if size > maxAnnotations {
		c.add("metadata.annotations", nil, "all annotations together have %d bytes; at most %d are allowed", size, maxAnnotations)
	}
}
