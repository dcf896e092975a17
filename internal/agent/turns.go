package agent

import (
	"context"
	"sync"
)

// turns lets one command of a container go at a time, in the order in which they came. A plugin that was killed, or gave up, has left
// its ADD with the agent, which may still be asking Kubernetes for the pod: the DEL that follows must not overtake it. The zero
// value is ready.
type turns struct {
	mu   sync.Mutex
	held map[string]*turn // by container; guarded by mu
}

type turn struct {
	token chan struct{} // holds one value while a command goes
	users int           // who go or wait; guarded by turns.mu
}

// take waits until it is the caller's turn, who calls done afterwards, or until ctx ends.
func (q *turns) take(ctx context.Context, container string) (done func(), err error) {
	q.mu.Lock()
	t := q.held[container]
	if t == nil {
		t = &turn{token: make(chan struct{}, 1)}
		if q.held == nil {
			q.held = map[string]*turn{}
		}
		q.held[container] = t
	}
	t.users++
	q.mu.Unlock()
	select {
	case t.token <- struct{}{}: // who waits on a channel is served in order
		return func() {
			<-t.token
			q.leave(container, t)
		}, nil
	case <-ctx.Done():
		q.leave(container, t)
		return nil, ctx.Err()
	}
}

func (q *turns) leave(container string, t *turn) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if t.users--; t.users == 0 {
		delete(q.held, container)
	}
}
