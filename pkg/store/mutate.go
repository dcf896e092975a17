package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/muslin-cni/muslin/pkg/api"
)

// mutateTries bounds how often Mutate starts anew when others write the same key.
const mutateTries = 10

// Mutate reads a value, lets change edit it (a zero value with exists false if the key does not exist) and writes it back if
// change says so, creating it if need be. Where somebody else wrote in between, it starts anew with what they wrote. An error
// of change ends it and nothing is written.
func Mutate[T api.Value](ctx context.Context, c *Client, key string, change func(v *T, exists bool) (write bool, err error)) (Entry[T], error) {
	for range mutateTries {
		e, err := Get[T](ctx, c, key)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return e, err
		}
		v := e.Value
		if !e.Exists() {
			v = new(T)
		}
		write, err := change(v, e.Exists())
		if err != nil || !write {
			return e, err
		}
		done, err := Update(ctx, c, e, v)
		if !errors.Is(err, ErrConflict) {
			return done, err
		}
	}
	return Entry[T]{Key: key}, fmt.Errorf("write %s: %w %d times in a row", key, ErrConflict, mutateTries)
}
