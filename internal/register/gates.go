package register

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/muslin-cni/muslin/internal/attach"
)

// gateEvery is how often a gate that is not ready is asked again.
const gateEvery = 5 * time.Second

// gates asks URLs whether attaching may go on.
type gates struct {
	ask func(ctx context.Context, url string) error // nil error: ready
}

// awaitReady returns when all the readiness gates of a request have answered.
func (h *Handler) awaitReady(ctx context.Context, req attach.Request) error {
	if err := h.gates.wait(ctx, req.ReadinessGates); err != nil {
		return &failed{attach.Error{
			Code: attach.CodeTryAgain, Msg: fmt.Sprintf("wait for the readiness gates of network %s: %v", req.Network, err),
			Details: "nothing was changed; see what keeps it from answering, or correct readiness_gates; the pod is tried again by itself",
		}, err}
	}
	return nil
}

// wait returns nil when each URL has once answered that it is ready, and an error after attach.ReadinessTimeout.
func (g gates) wait(ctx context.Context, urls []string) error {
	if len(urls) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, attach.ReadinessTimeout)
	defer cancel()
	for _, url := range urls {
		if err := g.waitFor(ctx, url); err != nil {
			return err
		}
	}
	return nil
}

func (g gates) waitFor(ctx context.Context, url string) error {
	again := time.NewTicker(gateEvery)
	defer again.Stop()
	var last error
	for {
		if err := g.askOnce(ctx, url); err == nil {
			return nil
		} else if ctx.Err() == nil || last == nil {
			last = err // and not that the time was up meanwhile
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w", url, last)
		case <-again.C:
		}
	}
}

func (g gates) askOnce(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, gateEvery)
	defer cancel()
	return g.ask(ctx, url)
}

// askHTTP takes a status of 2xx for ready.
func askHTTP(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	_, err = io.CopyN(io.Discard, res.Body, 1<<10) // so that the connection may be used again
	if errors.Is(err, io.EOF) {
		err = nil
	}
	err = errors.Join(err, res.Body.Close())
	if err != nil || res.StatusCode/100 == 2 {
		return err
	}
	return fmt.Errorf("it answers %s", res.Status)
}
