package objects

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/muslin-cni/muslin/pkg/api"
)

// Patch changes an object by a JSON merge patch (RFC 7386): lists are replaced, and null takes a field away. The patched object is read as
// strictly as a file. The object must still be what it was when the patch was applied to it.
func (c *Client) Patch(ctx context.Context, k api.Kind, namespace, name string, patch []byte) error {
	if k.ReadOnly {
		return &ReadOnlyError{Op: "patch", Kind: k.Name}
	}
	old, err := c.Get(ctx, k, namespace, name)
	if err != nil {
		return err
	}
	var change any
	if err := json.Unmarshal(patch, &change); err != nil {
		return fmt.Errorf("read patch: %w", err)
	}
	if _, ok := change.(map[string]any); !ok {
		return errors.New(`read patch: want an object, for example {"spec":{"disabled":true}}`)
	}
	text, err := api.Text(old.Object, nil)
	if err != nil {
		return err
	}
	var now any
	if err := json.Unmarshal(text, &now); err != nil {
		return err
	}
	if text, err = json.Marshal(merge(now, change)); err != nil {
		return err
	}
	o, err := k.Read(text)
	if err != nil {
		return err
	}
	if api.KeyOf(o) != api.KeyOf(old.Object) {
		return fmt.Errorf("patch of %s: name and namespace cannot be changed", api.Identify(old.Object))
	}
	return c.Update(ctx, o)
}

// merge is the function MergePatch of RFC 7386, section 2.
func merge(target, patch any) any {
	p, ok := patch.(map[string]any)
	if !ok {
		return patch
	}
	t, ok := target.(map[string]any)
	if !ok {
		t = map[string]any{}
	}
	out := make(map[string]any, len(t)+len(p))
	for k, v := range t {
		out[k] = v
	}
	for k, v := range p {
		if v == nil {
			delete(out, k)
			continue
		}
		out[k] = merge(out[k], v)
	}
	return out
}

// LabelChange is what to do to one label.
type LabelChange struct {
	Key, Value string
	Remove     bool
	Overwrite  bool // also where the label is there
}

// LabelExistsError says that a label is there.
type LabelExistsError struct{ Key string }

// LabelMissingError says that a label is not there.
type LabelMissingError struct{ Key string }

func (e *LabelExistsError) Error() string  { return fmt.Sprintf("key %s is already present", e.Key) }
func (e *LabelMissingError) Error() string { return fmt.Sprintf("key %s does not exist", e.Key) }

// Label sets or removes one label of an object and reports whether it had been there. The errors are a *LabelExistsError, a *LabelMissingError,
// or those of Update.
func (c *Client) Label(ctx context.Context, k api.Kind, namespace, name string, change LabelChange) (had bool, err error) {
	if k.ReadOnly {
		return false, &ReadOnlyError{Op: "label", Kind: k.Name}
	}
	if !change.Remove {
		if err := api.CheckLabel(change.Key, change.Value); err != nil {
			return false, err
		}
	}
	for range tries {
		old, err := c.Get(ctx, k, namespace, name)
		if err != nil {
			return false, err
		}
		o := api.Clone(old.Object)
		m := o.Meta()
		_, had = m.Labels[change.Key]
		switch {
		case change.Remove && !had:
			return had, &LabelMissingError{Key: change.Key}
		case change.Remove:
			delete(m.Labels, change.Key)
		case had && !change.Overwrite:
			return had, &LabelExistsError{Key: change.Key}
		default:
			if m.Labels == nil {
				m.Labels = map[string]string{}
			}
			m.Labels[change.Key] = change.Value
		}
		err = c.Update(ctx, o)
		if _, conflict := errors.AsType[*ConflictError](err); !conflict {
			return had, err
		}
	}
	return had, fmt.Errorf("label %s: others change it all the time: try again", identify(k, namespace, name))
}

// Preview is what is stored under the object's name, nil if nothing is, and what would be after Apply, both as JSON without what the
// datastore itself adds and without fields that the kind does not know. What is wrong with the object is an error as of Apply.
func (c *Client) Preview(ctx context.Context, given api.Object) (was, will []byte, err error) {
	o, err := writable("apply", given)
	if err != nil {
		return nil, nil, err
	}
	if err := api.Validate(o); err != nil {
		return nil, nil, err
	}
	old, err := c.Get(ctx, o.KindOf(), o.Meta().Namespace, o.Meta().Name)
	if _, absent := errors.AsType[*NotFoundError](err); err != nil && !absent {
		return nil, nil, err
	} else if !absent {
		bare := api.Clone(old.Object)
		m := bare.Meta()
		m.UID, m.ResourceVersion, m.CreationTimestamp = "", "", time.Time{}
		if was, err = api.Text(bare, nil); err != nil {
			return nil, nil, err
		}
	}
	will, err = api.Text(o, nil)
	return was, will, err
}
