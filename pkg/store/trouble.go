package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
)

// trouble remembers why the last attempt to connect to an endpoint failed: gRPC waits for a better one until the deadline and then
// says no more than that it waited.
type trouble struct {
	mu   sync.Mutex
	last map[string]error
}

func (t *trouble) note(endpoint string, err error) {
	if errors.Is(err, context.Canceled) { // by us
		return
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		err = op.Err // the rest is the address
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.last == nil {
		t.last = map[string]error{}
	}
	t.last[endpoint] = err
}

func (t *trouble) clear(endpoint string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.last, endpoint)
}

// err is every endpoint that cannot be reached and why; nil if there is none.
func (t *trouble) err() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out endpointErrors
	for _, endpoint := range slices.Sorted(maps.Keys(t.last)) {
		out = append(out, fmt.Errorf("%s: %w", endpoint, t.last[endpoint]))
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// endpointErrors are errors on one line.
type endpointErrors []error

// Error is all texts.
func (e endpointErrors) Error() string {
	texts := make([]string, len(e))
	for i, err := range e {
		texts[i] = err.Error()
	}
	return strings.Join(texts, "; ")
}

// Unwrap is all errors.
func (e endpointErrors) Unwrap() []error { return e }
