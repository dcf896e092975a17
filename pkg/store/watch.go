package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// silences is how many timeouts a watch may say nothing, though it was asked to, before it is given up.
const silences = 3

// Reasons for ending a watch from this side.
var (
	errSilent = errors.New("etcd says nothing")
	errClosed = errors.New("watch closed")
)

// Batch is what happened to the keys of a watch in one or more whole revisions.
type Batch struct {
	Rev     int64 // the watch has seen everything up to this revision
	Changes []KV  // oldest first; a key may occur more than once. A nil Value is a deletion, at revision Rev of the KV. May be empty
}

// Watcher follows one key range on one stream. It ends with the first error and never resumes by itself, so that the
// caller knows when it may have to list again.
//
// One watcher on one range is what keeps a revision whole: etcd sends the events of a revision to one watcher in one message
// as long as it is not told to fragment. That Rev is never ahead of the events needs etcd 3.4.25 or 3.5.8, or later.
type Watcher struct {
	client  *Client
	what    string // the range, as traces name it
	stream  pb.Watch_WatchClient
	cancel  context.CancelCauseFunc
	cause   func() error // why the watch was ended from this side; nil while it was not
	timeout time.Duration
	sending sync.Mutex // a stream has one sender at a time

	// What Next alone uses.
	rev        int64 // seen so far
	changes    []KV  // the memory of the last batch
	ask, still *time.Timer
}

// Watch follows the keys from (included) to end (not included) after a revision. It returns when etcd has confirmed the watch, or
// ErrUnavailable within the client's timeout; that the revision is compacted is for Next to say. The watch ends with ctx too. The
// caller calls Close.
func (c *Client) Watch(ctx context.Context, from, end string, after int64) (*Watcher, error) {
	began := time.Now()
	ctx, cancel := context.WithCancelCause(ctx)
	late := time.AfterFunc(c.timeout, func() { cancel(errSilent) })
	defer late.Stop()
	w := &Watcher{client: c, what: "watch " + keys([]byte(from), []byte(end)), cancel: cancel, cause: func() error { return context.Cause(ctx) }, timeout: c.timeout, rev: after}
	err := w.create(ctx, from, end)
	c.tell(fmt.Sprintf("%s after %d", w.what, after), began, err)
	if err != nil {
		w.Close()
		return nil, err
	}
	return w, nil
}

func (w *Watcher) create(ctx context.Context, from, end string) error {
	etcd, err := w.client.etcd(ctx)
	if err != nil {
		return w.sort(err)
	}
	// A member that lost its leader ends the watch rather than being silently behind.
	w.stream, err = etcd.watch.Watch(clientv3.WithRequireLeader(ctx),
		grpc.WaitForReady(true), grpc.MaxCallRecvMsgSize(math.MaxInt32), grpc.ForceCodecV2(newWatchCodec()))
	if err != nil {
		return w.sort(err)
	}
	// The last revision that is known is asked for again, and skipped: etcd tells no progress to a watch that begins in the future.
	req := &pb.WatchCreateRequest{Key: []byte(from), RangeEnd: []byte(end), StartRevision: max(w.rev, 1), ProgressNotify: true}
	if err := w.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: req}}); err != nil {
		return w.sort(err)
	}
	_, err = w.receive()
	return err
}

// Next waits for the next batch. When nothing happens it asks etcd how far it is and returns an empty batch after about one timeout.
// Errors end the watch: ErrCompacted if etcd no longer has what follows the last batch, ErrUnavailable if the connection is lost or
// silent for three timeouts. One caller at a time.
func (w *Watcher) Next() (Batch, error) {
	b, err := w.Lent()
	b.Changes = slices.Clone(b.Changes)
	for i := range b.Changes {
		b.Changes[i].Value = bytes.Clone(b.Changes[i].Value)
	}
	return b, err
}

// Lent is Next for who is done with a batch when he asks for the next one: then the memory of its changes and their values is used again. Keys last.
func (w *Watcher) Lent() (Batch, error) {
	began := time.Now()
	w.wind()
	defer w.ask.Stop()
	defer w.still.Stop()
	res, err := w.receive()
	if err != nil {
		w.client.tell(w.what, began, err)
		return Batch{}, err
	}
	b := Batch{Changes: slices.Grow(w.changes[:0], len(res.Events))}
	for _, e := range res.Events {
		if e.Kv.ModRevision <= w.rev {
			continue
		}
		kv := KV{Key: string(e.Kv.Key), Rev: e.Kv.ModRevision}
		if e.Type == mvccpb.Event_PUT {
			kv.Value = present(e.Kv.Value)
		}
		b.Changes = append(b.Changes, kv)
	}
	b.Rev = w.advance(res)
	if w.changes = b.Changes; cap(w.changes) > keptEvents {
		w.changes = nil
	}
	if w.client.cfg.Trace != nil {
		w.client.tell(fmt.Sprintf("%s: %d changes up to %d", w.what, len(b.Changes), b.Rev), began, nil)
	}
	return b, nil
}

// wind has etcd asked how far it is after a timeout, and the watch given up after several.
func (w *Watcher) wind() {
	if w.ask == nil {
		w.ask = time.AfterFunc(w.timeout, w.RequestProgress)
		w.still = time.AfterFunc(silences*w.timeout, func() { w.cancel(errSilent) })
		return
	}
	w.ask.Reset(w.timeout)
	w.still.Reset(silences * w.timeout)
}

// advance notes how far the watch is. The header of a message with events may be ahead of them while the watch catches up.
func (w *Watcher) advance(res *pb.WatchResponse) int64 {
	to := res.Header.GetRevision()
	if n := len(res.Events); n > 0 {
		to = res.Events[n-1].Kv.ModRevision
	}
	w.rev = max(w.rev, to)
	return w.rev
}

// RequestProgress makes Next return soon with the revision that etcd has reached, unless etcd is still sending older
// events. It does not wait for the answer. Any goroutine may call it.
func (w *Watcher) RequestProgress() {
	// A failure to send ends the stream, and Next returns it.
	_ = w.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}})
}

// Close ends the watch; a waiting Next returns. Calls after the first do nothing.
func (w *Watcher) Close() { w.cancel(errClosed) }

func (w *Watcher) send(req *pb.WatchRequest) error {
	w.sending.Lock()
	defer w.sending.Unlock()
	return w.stream.Send(req)
}

// receive waits for one message, which may be a confirmation, progress or events.
func (w *Watcher) receive() (*pb.WatchResponse, error) {
	res, err := w.stream.Recv()
	if err != nil {
		return nil, w.sort(err)
	}
	switch {
	case res.CompactRevision != 0:
		return nil, fmt.Errorf("watch after revision %d: %w: etcd begins at %d", w.rev, ErrCompacted, res.CompactRevision)
	case res.Canceled:
		return nil, w.sort(refusal(res.CancelReason))
	}
	return res, nil
}

// sort says why the watch ended: what was done on this side, or what etcd said.
func (w *Watcher) sort(err error) error {
	switch cause := w.cause(); {
	case errors.Is(cause, errSilent):
		return fmt.Errorf("watch: %w", w.client.away(cause))
	case cause != nil:
		return fmt.Errorf("watch: %w", cause)
	case errors.Is(err, io.EOF):
		return fmt.Errorf("watch: %w: etcd ended the stream", ErrUnavailable)
	}
	return fmt.Errorf("watch: %w", w.client.readError(rpctypes.Error(err)))
}

// refusal is the error that etcd wrote into a message as text.
func refusal(reason string) error {
	for _, known := range []error{
		rpctypes.ErrGRPCPermissionDenied, rpctypes.ErrGRPCInvalidAuthToken, rpctypes.ErrGRPCUserEmpty, rpctypes.ErrGRPCAuthOldRevision,
	} {
		if reason == known.Error() {
			return rpctypes.Error(known)
		}
	}
	return errors.New(reason)
}
