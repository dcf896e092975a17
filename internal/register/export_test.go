package register

import "context"

// Waiting is how many jobs nobody has begun.
func (h *Handler) Waiting() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.waiting)
}

// Hold has the turn while f runs, so that what comes meanwhile waits.
func (h *Handler) Hold(ctx context.Context, f func()) error {
	select {
	case h.turn <- struct{}{}:
		f()
		<-h.turn
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
