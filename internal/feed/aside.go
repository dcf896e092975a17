package feed

import (
	"context"
	"errors"

	"github.com/muslin-cni/muslin/pkg/store"
)

// aside is the watch of the identity records. They are no part of the range that one watcher covers, and need not be: no other value
// depends on them, and whoever acts on one compares it in the transaction.
type aside struct {
	w    *store.Watcher
	done chan struct{}
	err  error // why it ended; to be read once done is closed
}

// overhear follows the identity records until stop, and ends the main watch when it cannot go on.
func (f *Feed) overhear(ctx context.Context, main *store.Watcher) (*aside, error) {
	f.mu.Lock()
	after := f.heard
	f.mu.Unlock()
	w, err := f.client.Watch(ctx, identitiesFrom, identitiesEnd, after)
	if err != nil {
		return nil, err
	}
	a := &aside{w: w, done: make(chan struct{})}
	go func() {
		defer main.Close()
		defer close(a.done)
		a.err = f.listen(w)
		f.ended(errors.Is(a.err, store.ErrCompacted))
	}()
	return a, nil
}

// listen takes over what the watch tells until it ends.
func (f *Feed) listen(w *store.Watcher) error {
	for {
		b, err := w.Lent()
		if err != nil {
			return err
		}
		if len(b.Changes) > 0 {
			f.publish(func(w *writer) { w.overheard(b.Changes) })
		}
		f.mu.Lock()
		f.heard = b.Rev
		f.mu.Unlock()
	}
}

// stop ends the watch and waits for it.
func (a *aside) stop() {
	a.w.Close()
	<-a.done
}

// reason is why the main watch ended, given its own error.
func (a *aside) reason(err error) error {
	select {
	case <-a.done:
		return a.err
	default:
		return err
	}
}
