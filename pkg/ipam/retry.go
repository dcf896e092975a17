package ipam

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/muslin-cni/muslin/pkg/store"
)

// maxAttempts bounds how often a transaction is planned anew. Whenever one of ours conflicts, somebody else's went through.
const maxAttempts = 100

// Retry calls f until it returns anything but a store.ErrConflict, for as long as ctx lasts. attempt counts from 0: from 1 on, f
// must read etcd itself, for what it had in memory was out of date. The error is f's, ctx's, or a *Refusal with ErrBusy.
func Retry(ctx context.Context, f func(attempt int) error) error {
	return RetryAfter(ctx, Pause, f)
}

// RetryAfter is Retry with a pause of the caller's own, which returns nil when it is time to try again.
func RetryAfter(ctx context.Context, pause func(ctx context.Context, attempt int) error, f func(attempt int) error) error {
	for attempt := range maxAttempts {
		err := f(attempt)
		if !errors.Is(err, store.ErrConflict) {
			return err
		}
		if err := pause(ctx, attempt); err != nil {
			return fmt.Errorf("try again after a conflict: %w", err)
		}
	}
	return refuse(ErrBusy, "try again; see who changes blocks that often", "gave up after %d conflicts: excessive concurrent IPAM requests", maxAttempts)
}

// Pause spreads competing writers: not at all at first, then over up to 20 ms. It returns ctx's error if that ends first.
func Pause(ctx context.Context, attempt int) error {
	if attempt < 2 {
		return ctx.Err()
	}
	t := time.NewTimer(rand.N(time.Duration(min(attempt, 20)) * time.Millisecond))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
