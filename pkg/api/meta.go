package api

import (
	"maps"
	"time"
)

// Version is the apiVersion of every resource that is stored as an envelope.
const Version = "projectcalico.org/v3"

// TypeMeta names the kind of a stored resource. It leads the JSON.
type TypeMeta struct {
	Kind       string `json:"kind"`
	APIVersion string `json:"apiVersion"`
}

// ObjectMeta is the part of Kubernetes' ObjectMeta that this system reads or writes; the rest survives as unknown fields.
type ObjectMeta struct {
	Name         string `json:"name,omitempty"`
	GenerateName string `json:"generateName,omitempty"` // of a WorkloadEndpoint: its pod's; it names nothing here
	Namespace    string `json:"namespace,omitempty"`    // "" for cluster-scoped kinds
	UID          string `json:"uid,omitempty"`          // random UUID, set once at creation
	// ResourceVersion is etcd's ModRevision in decimal. It is shown to users and never stored.
	ResourceVersion   string            `json:"resourceVersion,omitempty"`
	CreationTimestamp time.Time         `json:"creationTimestamp,omitzero"`  // UTC, whole seconds
	DeletionTimestamp *time.Time        `json:"deletionTimestamp,omitempty"` // nil: not being deleted
	Labels            map[string]string `json:"labels,omitempty"`
	Annotations       map[string]string `json:"annotations,omitempty"`
}

// own makes the maps and times of m its own.
func (m *ObjectMeta) own() {
	m.Labels, m.Annotations = maps.Clone(m.Labels), maps.Clone(m.Annotations)
	if m.DeletionTimestamp != nil {
		t := *m.DeletionTimestamp
		m.DeletionTimestamp = &t
	}
}

// set gives m a label or annotation without touching a map that others hold.
func set(m map[string]string, key, value string) map[string]string {
	if m[key] == value && value != "" {
		return m
	}
	out := make(map[string]string, len(m)+1)
	maps.Copy(out, m)
	out[key] = value
	return out
}

// Header is embedded first in every enveloped resource.
type Header struct {
	TypeMeta
	Metadata ObjectMeta `json:"metadata"`
}

// Meta returns the metadata for reading and writing in place.
func (h *Header) Meta() *ObjectMeta { return &h.Metadata }

func (h *Header) typeMeta() *TypeMeta { return &h.TypeMeta }

// Object is an enveloped resource: a pointer to one of the kinds of this package.
type Object interface {
	Meta() *ObjectMeta
	KindOf() Kind
	typeMeta() *TypeMeta
}

// Kind describes a resource kind. Kinds of one name are equal.
type Kind struct {
	Name       string // as in "kind": IPPool
	Plural     string // lower case, as in etcd keys: ippools
	Namespaced bool
	Aliases    string // other words that people use for it, lower case, with spaces between
	Names      NameRule
	Hidden     bool // not for people: the operator's command does not show it
	ReadOnly   bool // the system's own: people look at it and do not write it
}

// Key is the etcd key of the object of this kind with that name. The namespace is ignored for cluster-scoped kinds.
func (k Kind) Key(namespace, name string) string {
	if k.Namespaced {
		return ResourcesRoot + k.Plural + "/" + namespace + "/" + name // at once: each endpoint that is told of is asked for its key
	}
	return k.Prefix() + name
}

// Prefix is the etcd key prefix below which all objects of this kind lie, with its trailing slash.
func (k Kind) Prefix() string { return ResourcesRoot + k.Plural + "/" }

// KeyOf is the etcd key of an object, from its kind and metadata.
func KeyOf(o Object) string { return o.KindOf().Key(o.Meta().Namespace, o.Meta().Name) }

// Created fills what a creator sets when it is absent: uid and creation time (now, in UTC and whole seconds).
func Created(o Object, uid string, now time.Time) {
	m := o.Meta()
	if m.UID == "" {
		m.UID = uid
	}
	if m.CreationTimestamp.IsZero() {
		m.CreationTimestamp = Seconds(now)
	}
}

// Seconds is t as it is stored: UTC and whole seconds.
func Seconds(t time.Time) time.Time { return t.UTC().Truncate(time.Second) }
