// Package objects creates, changes and deletes resources of any kind by the rules of Calico's client.
//
// The goals, and how each is met:
//
//  1. What is stored is what Calico would have stored: defaults, validation, the metadata that a writer sets and that it keeps.
//  2. Nobody's change is lost: every write is a transaction at the revision that was read. Without a resourceVersion of the user's it
//     is tried again on what somebody else wrote meanwhile; with one it is refused.
//  3. Deleting a pool or a node is a procedure that may be interrupted anywhere and run again.
//  4. Many objects take few requests, and the outcome of each is as if it had been written alone: see Write.
//  5. A dry run goes through all checks and commits nothing.
package objects

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// page is how many keys a request for a list asks for.
const page = 1000

// Client works on one datastore. One caller at a time.
type Client struct {
	Store  *store.Client
	UUID   func() string // random, with dashes
	Now    func() time.Time
	DryRun bool              // check everything, write nothing
	Notice func(text string) // told what a user should know while a procedure goes on; one line, no newline

	found map[string]bool // keys of referenced objects that were there
}

// Stored is an object as it stands in the datastore, in its user's form with its resourceVersion set.
type Stored struct {
	Object api.Object
	Key    string
	Rev    int64
	raw    []byte
}

// Text is the object's JSON, with the fields that its kind does not know.
func (s Stored) Text() ([]byte, error) { return api.Text(s.Object, s.raw) }

// Of is an object that is not stored, for whoever shows both.
func Of(o api.Object) Stored { return Stored{Object: o} }

// Decode reads a stored value of a kind. The error is a *store.UnreadableError.
func Decode(k api.Kind, kv store.KV) (Stored, error) {
	o, err := k.Decode(kv.Value)
	if err != nil {
		return Stored{}, &store.UnreadableError{Key: kv.Key, Err: err}
	}
	o.Meta().ResourceVersion = strconv.FormatInt(kv.Rev, 10)
	return Stored{Object: o, Key: kv.Key, Rev: kv.Rev, raw: kv.Value}, nil
}

// Get reads one object. The error is a *NotFoundError if there is none.
func (c *Client) Get(ctx context.Context, k api.Kind, namespace, name string) (Stored, error) {
	if k.Name == "Profile" && name == api.DefaultAllowProfile {
		return Of(api.NewDefaultAllow()), nil
	}
	got, _, err := c.Store.Read(ctx, store.Range{Key: k.Key(namespace, name)})
	if err != nil {
		return Stored{}, err
	}
	if len(got[0]) == 0 {
		return Stored{}, &NotFoundError{Object: identify(k, namespace, name)}
	}
	return Decode(k, got[0][0])
}

// List is objects of one kind at one revision.
type List struct {
	Items []Stored
	Rev   int64
}

// List reads the objects of a kind, of one namespace or ("") of all, in the order in which people expect them. Objects that cannot be
// read are left out and named in the joined error, beside the others.
func (c *Client) List(ctx context.Context, k api.Kind, namespace string) (List, error) {
	prefix := k.Prefix()
	if k.Namespaced && namespace != "" {
		prefix = k.Key(namespace, "")
	}
	kvs, rev, err := c.Store.ReadAll(ctx, page, store.Range{Key: prefix, Prefix: true})
	if err != nil {
		return List{}, err
	}
	out := List{Rev: rev}
	var bad []error
	for _, kv := range kvs {
		s, err := Decode(k, kv)
		if err != nil {
			bad = append(bad, err)
			continue
		}
		out.Items = append(out.Items, s)
	}
	if k.Name == "Profile" {
		out.Items = append(out.Items, Of(api.NewDefaultAllow()))
	}
	slices.SortStableFunc(out.Items, func(a, b Stored) int { return api.Compare(a.Object, b.Object) })
	return out, errors.Join(bad...)
}

func identify(k api.Kind, namespace, name string) string {
	o := k.New()
	o.Meta().Namespace, o.Meta().Name = namespace, name
	return api.Identify(o)
}

// NotFoundError says that there is no such object.
type NotFoundError struct {
	Object string // Kind(name)
	Path   string // the field of another object that names it; "": the user did
}

func (e *NotFoundError) Error() string {
	if e.Path != "" {
		return fmt.Sprintf("resource does not exist: %s, which %s names", e.Object, e.Path)
	}
	return "resource does not exist: " + e.Object
}

// ExistsError says that an object cannot be created because it is there.
type ExistsError struct{ Object string }

func (e *ExistsError) Error() string { return "resource already exists: " + e.Object }

// ConflictError says that an object is not any more what the user has seen of it.
type ConflictError struct {
	Object     string
	Have, Want string // resourceVersions: what is stored, and what the user has seen
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("update conflict: %s: resourceVersion %s is out of date, the latest is %s: get it anew and repeat the change, "+
		"or leave resourceVersion out to overwrite", e.Object, e.Want, e.Have)
}

// ReadOnlyError says that people do not write objects of a kind.
type ReadOnlyError struct{ Op, Kind string }

func (e *ReadOnlyError) Error() string {
	return fmt.Sprintf("operation %s is not supported on %s: resource is readonly", e.Op, e.Kind)
}
