package store

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
)

// readError sorts an error of a call that changes nothing.
func (c *Client) readError(err error) error {
	switch {
	case errors.Is(err, context.Canceled), codeOf(err) == codes.Canceled:
		return err
	case isUnauthorized(err):
		return fmt.Errorf("%w: %w: %s", ErrUnauthorized, err, remedy(err))
	case errors.Is(err, rpctypes.ErrCompacted):
		return fmt.Errorf("%w: %w", ErrCompacted, err)
	case errors.Is(err, ErrUnavailable): // DNS has been asked
		return err
	case isAway(err):
		return c.away(err)
	}
	return err
}

// away is ErrUnavailable with what is known about the endpoints.
func (c *Client) away(err error) error {
	if why := c.trouble.err(); why != nil {
		return fmt.Errorf("%w: %w: %w", ErrUnavailable, why, err)
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// remedy is what the operator can do about a refusal.
func remedy(err error) string {
	switch {
	case errors.Is(err, rpctypes.ErrAuthFailed):
		return "check ETCD_USERNAME and ETCD_PASSWORD"
	case errors.Is(err, rpctypes.ErrUserEmpty):
		return "set ETCD_USERNAME and ETCD_PASSWORD, or use a certificate whose common name is a user"
	case errors.Is(err, rpctypes.ErrPermissionDenied):
		return "give the user's role readwrite on the prefixes /calico/ and /muslin/"
	}
	return "check the user in etcd"
}

// writeError sorts an error of a commit. Once a request was sent, only the server can say that it was not carried out.
func (c *Client) writeError(err error, sent bool) error {
	var said rpctypes.EtcdError
	switch {
	case !sent || isUnauthorized(err):
		return c.readError(err)
	case errors.Is(err, rpctypes.ErrNoSpace):
		return fmt.Errorf("%w: compact and defragment it or raise its --quota-backend-bytes, then disarm its alarm (etcdctl alarm disarm): %w", ErrFull, err)
	case errors.As(err, &said) && !isAway(err):
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnknown, err)
}

// isAway reports whether etcd, or its leader, did not answer.
func isAway(err error) bool {
	code := codeOf(err)
	return errors.Is(err, context.DeadlineExceeded) || code == codes.Unavailable || code == codes.DeadlineExceeded
}

func isUnauthorized(err error) bool {
	for _, e := range []error{rpctypes.ErrPermissionDenied, rpctypes.ErrAuthFailed, rpctypes.ErrInvalidAuthToken, rpctypes.ErrUserEmpty} {
		if errors.Is(err, e) {
			return true
		}
	}
	code := codeOf(err)
	return code == codes.PermissionDenied || code == codes.Unauthenticated
}

// codeOf is the gRPC code of an error; etcd's client wraps the errors that it knows into a type that the status package does not.
func codeOf(err error) codes.Code {
	var said rpctypes.EtcdError
	if errors.As(err, &said) {
		return said.Code()
	}
	return status.Code(err)
}

// sentKey is the context key of the flag that sendTracker sets.
type sentKey struct{}

// trackSending returns a context whose calls set sent as soon as a request may have left this process.
func trackSending(ctx context.Context) (_ context.Context, sent *atomic.Bool) {
	sent = new(atomic.Bool)
	return context.WithValue(ctx, sentKey{}, sent), sent
}

// sendTracker is a gRPC stats handler: a call's header goes out only when it was given a connection.
type sendTracker struct{}

// TagRPC keeps the context.
func (sendTracker) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// HandleRPC notes that a request was sent.
func (sendTracker) HandleRPC(ctx context.Context, s stats.RPCStats) {
	if _, ok := s.(*stats.OutHeader); !ok {
		return
	}
	markSent(ctx)
}

// markSent notes that a request of the context was sent, if somebody tracks that.
func markSent(ctx context.Context) {
	if sent, ok := ctx.Value(sentKey{}).(*atomic.Bool); ok {
		sent.Store(true)
	}
}

// TagConn keeps the context.
func (sendTracker) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn does nothing.
func (sendTracker) HandleConn(context.Context, stats.ConnStats) {}
