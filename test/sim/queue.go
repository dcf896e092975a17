package sim

import (
	"context"
	"slices"
	"sync"
)

// queues let commands for one interface go in the order in which they were begun: those that wait for one attach lock look for it at the same moments of the
// world's time, and nobody would decide which of them finds it free first.
type queues struct {
	mu      sync.Mutex
	waiting map[string][]chan struct{} // by interface; the first one's turn it is
}

// enter waits for its turn. leave must be called where there is no error.
func (q *queues) enter(ctx context.Context, name string) (leave func(), err error) {
	turn := make(chan struct{})
	q.mu.Lock()
	if q.waiting == nil {
		q.waiting = map[string][]chan struct{}{}
	}
	if q.waiting[name] = append(q.waiting[name], turn); len(q.waiting[name]) == 1 {
		close(turn)
	}
	q.mu.Unlock()
	leave = func() { q.leave(name, turn) }
	select {
	case <-turn:
	case <-ctx.Done():
	}
	if err := ctx.Err(); err != nil { // also where its turn came at the same moment
		leave()
		return nil, err
	}
	return leave, nil
}

func (q *queues) leave(name string, turn chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	all := q.waiting[name]
	i := slices.Index(all, turn)
	if all = slices.Delete(all, i, i+1); i == 0 && len(all) > 0 {
		close(all[0])
	}
	if q.waiting[name] = all; len(all) == 0 {
		delete(q.waiting, name)
	}
}
