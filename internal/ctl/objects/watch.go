package objects

import (
	"context"
	"strings"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// Change is what happened to an object.
type Change struct {
	Key    string
	Object Stored // zero: the object was deleted
	Err    error  // the object was written and cannot be read
}

// Watch calls each for every change of the kind's objects after a revision, in order, until ctx ends, each fails, or the watch
// breaks; that is its error. store.ErrCompacted means that changes may have been missed: list anew.
func (c *Client) Watch(ctx context.Context, k api.Kind, namespace string, after int64, each func(Change) error) error {
	from := k.Prefix()
	if k.Namespaced && namespace != "" {
		from = k.Key(namespace, "")
	}
	w, err := c.Store.Watch(ctx, from, strings.TrimSuffix(from, "/")+"0", after) // 0 follows / in ASCII
	if err != nil {
		return err
	}
	defer w.Close()
	for {
		batch, err := w.Next()
		if err != nil {
			return err
		}
		for _, kv := range batch.Changes {
			if err := each(changeOf(k, kv)); err != nil {
				return err
			}
		}
	}
}

func changeOf(k api.Kind, kv store.KV) Change {
	if kv.Value == nil {
		return Change{Key: kv.Key}
	}
	s, err := Decode(k, kv)
	return Change{Key: kv.Key, Object: s, Err: err}
}
