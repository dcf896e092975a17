package store

import (
	"context"
	"errors"
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
	last map[string]string
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
		t.last = map[string]string{}
	}
	t.last[endpoint] = err.Error()
}

func (t *trouble) clear(endpoint string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.last, endpoint)
}

// String is every endpoint that cannot be reached and why; "" if there is none.
func (t *trouble) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []string
	for _, endpoint := range slices.Sorted(maps.Keys(t.last)) {
		out = append(out, endpoint+": "+t.last[endpoint])
	}
	return strings.Join(out, "; ")
}

// dialer connects directly: a proxy of the environment is for the web.
func (t *trouble) dialer(scheme string) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, addr string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		if err != nil {
			t.note(scheme+addr, err)
		}
		return conn, err
	}
}
