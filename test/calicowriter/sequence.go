// Package calicowriter replays, write by write, what Calico's own programs do to addresses in etcd.
//
// Each of Calico's writers changes several keys, one compare-and-swap each, and may be overtaken or die between any two of them. A Sequence
// is one such run that a test can hold still at every one of those moments: behind a write (Next), and in front of one, when what the
// write rests on has been read already (Read). What is written, in which order, and what happens on a conflict follows
// observations of Calico v3.32.1; the values are of package api, and blocks are computed by package block.
//
// Left out is what does not touch addresses: Felix's status keys, events, retries after the connection to etcd broke.
package calicowriter

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"time"

	"github.com/google/uuid"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/muslin-cni/muslin/pkg/api"
)

// Writer is one of Calico's programs at work for one node: its CNI plugin, calicoctl, or its controllers.
type Writer struct {
	Etcd *clientv3.Client
	Node string           // of the plugin, or the one that is worked on
	Now  func() time.Time // nil: time.Now
	UUID func() string    // of objects that it creates; nil: random
}

// moment is where a sequence stands still.
type moment int

const (
	beforeWrite moment = iota + 1
	afterWrite
)

// errAbandoned ends a run whose test has let go of it.
var errAbandoned = errors.New("abandoned")

// Sequence is one run of a writer, at rest until Next, Read or Finish. For one caller at a time, who calls Abandon at the end.
type Sequence struct {
	run    *run
	resume func() (moment, bool)
	stop   func()
	at     moment
	done   bool
	err    error
}

// run is what the procedures of a writer work with.
type run struct {
	Writer
	ctx   context.Context // of the call that makes the run go on: the run has none of its own
	pause func(moment) bool
	ended bool

	addrs  []netip.Addr // that the caller was told are its own
	writes []string
}

// sequence makes a procedure steppable.
func (w Writer) sequence(what string, procedure func(*run) error) *Sequence {
	if w.Now == nil {
		w.Now = time.Now
	}
	if w.UUID == nil {
		w.UUID = uuid.NewString
	}
	s := &Sequence{run: &run{Writer: w}}
	s.resume, s.stop = iter.Pull(func(yield func(moment) bool) {
		s.run.pause = yield
		if err := procedure(s.run); err != nil {
			s.err = fmt.Errorf("%s: %w", what, err)
		}
	})
	return s
}

// Next goes on through the next write, with the reads before it that have not been made yet. done says that there is none left: the
// run has ended, with err. A write that is refused because the key has changed counts as one.
func (s *Sequence) Next(ctx context.Context) (done bool, err error) { return s.until(ctx, afterWrite) }

// Read goes on up to the next write and stops in front of it. Otherwise as Next.
func (s *Sequence) Read(ctx context.Context) (done bool, err error) {
	if s.at == beforeWrite {
		return s.done, s.err
	}
	return s.until(ctx, beforeWrite)
}

func (s *Sequence) until(ctx context.Context, m moment) (bool, error) {
	for !s.done {
		s.run.ctx = ctx
		at, more := s.resume()
		s.at, s.done = at, !more
		if more && at == m {
			return false, nil
		}
	}
	return true, s.err
}

// Finish goes on to the end of the run and returns its error.
func (s *Sequence) Finish(ctx context.Context) error {
	for {
		if done, err := s.Next(ctx); done {
			return err
		}
	}
}

// Done reports whether the run has ended.
func (s *Sequence) Done() bool { return s.done }

// Abandon ends the run where it is, as if its process had died. It does nothing to a run that has ended.
func (s *Sequence) Abandon() { s.stop() }

// Addrs is the addresses that the run has told its caller are now its own; none before it is done.
func (s *Sequence) Addrs() []netip.Addr {
	if !s.done || s.err != nil {
		return nil
	}
	return s.run.addrs
}

// Writes is what was written so far, in order: "PUT <key>" and "DELETE <key>".
func (s *Sequence) Writes() []string { return s.run.writes }

// The outcomes of a single-key operation that the procedures branch on.
var (
	errMissing  = errors.New("resource does not exist")
	errExists   = errors.New("resource already exists")
	errConflict = errors.New("update conflict")
)

// entry is a value with the revision that it was read or written at.
type entry[T api.Value] struct {
	key   string
	value *T
	raw   []byte
	rev   int64
}

func get[T api.Value](r *run, key string) (entry[T], error) {
	if r.ended {
		return entry[T]{}, errAbandoned
	}
	res, err := r.Etcd.Get(r.ctx, key)
	if err != nil {
		return entry[T]{}, fmt.Errorf("get %s: %w", key, err)
	}
	if len(res.Kvs) == 0 {
		return entry[T]{key: key}, fmt.Errorf("get %s: %w", key, errMissing)
	}
	return decode[T](key, res.Kvs[0].Value, res.Kvs[0].ModRevision)
}

func list[T api.Value](r *run, prefix string) ([]entry[T], error) {
	if r.ended {
		return nil, errAbandoned
	}
	res, err := r.Etcd.Get(r.ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", prefix, err)
	}
	out := make([]entry[T], len(res.Kvs))
	for i, kv := range res.Kvs {
		if out[i], err = decode[T](string(kv.Key), kv.Value, kv.ModRevision); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func decode[T api.Value](key string, raw []byte, rev int64) (entry[T], error) {
	v, err := api.Decode[T](raw)
	if err != nil {
		return entry[T]{}, fmt.Errorf("read %s: %w", key, err)
	}
	return entry[T]{key, v, raw, rev}, nil
}

// create writes a key that must not exist.
func create[T api.Value](r *run, key string, v *T) (entry[T], error) {
	return put(r, entry[T]{key: key}, v)
}

// update replaces a value that must not have changed since it was read.
func update[T api.Value](r *run, e entry[T], v *T) (entry[T], error) { return put(r, e, v) }

func put[T api.Value](r *run, e entry[T], v *T) (entry[T], error) {
	raw, err := api.Encode(v, e.raw)
	if err != nil {
		return e, err
	}
	rev, err := r.write("PUT", e.key, e.rev, clientv3.OpPut(e.key, string(raw)))
	return entry[T]{e.key, v, raw, rev}, err
}

// remove deletes a key that must not have changed since it was read.
func remove[T api.Value](r *run, e entry[T]) error {
	_, err := r.write("DELETE", e.key, e.rev, clientv3.OpDelete(e.key))
	return err
}

// write is one compare-and-swap of one key, between two pauses.
func (r *run) write(verb, key string, rev int64, op clientv3.Op) (int64, error) {
	if r.ended || !r.pause(beforeWrite) {
		r.ended = true
		return 0, errAbandoned
	}
	cmp := clientv3.Compare(clientv3.ModRevision(key), "=", rev)
	res, err := r.Etcd.Txn(r.ctx).If(cmp).Then(op).Else(clientv3.OpGet(key)).Commit()
	if err != nil {
		return 0, fmt.Errorf("write %s: %w", key, err)
	}
	if res.Succeeded {
		r.writes = append(r.writes, verb+" "+key)
	}
	if !r.pause(afterWrite) {
		r.ended = true
		return 0, errAbandoned
	}
	switch {
	case res.Succeeded:
		return res.Header.Revision, nil
	case rev == 0:
		return 0, fmt.Errorf("create %s: %w", key, errExists)
	case len(res.Responses[0].GetResponseRange().Kvs) == 0:
		return 0, fmt.Errorf("write %s: %w", key, errMissing)
	}
	return 0, fmt.Errorf("write %s: %w", key, errConflict)
}

// retries is how often Calico begins anew after a conflict.
const retries = 100

// errTooMany is the error after the last of them.
var errTooMany = errors.New("max retries hit - excessive concurrent IPAM requests")

// retry calls f until it returns anything but a conflict.
func retry(f func() error) error {
	for range retries {
		if err := f(); !errors.Is(err, errConflict) {
			return err
		}
	}
	return errTooMany
}

// ignore passes over outcomes that do not matter to the caller.
func ignore(err error, outcomes ...error) error {
	for _, o := range outcomes {
		if errors.Is(err, o) {
			return nil
		}
	}
	return err
}
