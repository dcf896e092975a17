// Package store reads, writes and watches typed values in etcd, alone or many in one transaction.
//
// The goals, and how each is met:
//
//  1. Nothing hangs: every call has a deadline (Config.Timeout at most), and etcd away is ErrUnavailable within it.
//  2. Nothing is lost: an Entry remembers the bytes that it was read from, and writing it keeps the fields that we do not know.
//  3. A commit's outcome is never guessed: it is done, or refused with the values that stood in its way, or ErrUnknown.
//
// A Client is safe for concurrent use.
package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/pkg/api"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Errors that callers branch on. They are always wrapped with what was being done.
var (
	ErrNotFound     = errors.New("not found")
	ErrConflict     = errors.New("changed meanwhile")                  // a compare failed; see ConflictError
	ErrUnavailable  = errors.New("etcd cannot be reached")             // nothing was changed
	ErrUnknown      = errors.New("etcd did not say whether it did it") // the commit may or may not have happened: read again
	ErrUnauthorized = errors.New("etcd refused our credentials")
	ErrHandshake    = errors.New("TLS failed")         // an ErrUnavailable that certificates, ours or etcd's, are the reason of
	ErrFull         = errors.New("etcd is full")       // nothing was changed; what is deleted still can be
	ErrCompacted    = errors.New("revision compacted") // list again
)

// UnreadableError says that a key holds what cannot be decoded. Others' values do not suffer from it.
type UnreadableError struct {
	Key string
	Err error
}

// Error names the key and what is wrong.
func (e *UnreadableError) Error() string { return "read " + e.Key + ": " + e.Err.Error() }

// Unwrap is what is wrong.
func (e *UnreadableError) Unwrap() error { return e.Err }

// KV is a key with its raw value. Rev is etcd's ModRevision; 0 means that the key does not exist. Where changes are told,
// a nil Value with a Rev says that the key was deleted at that revision.
type KV struct {
	Key   string
	Value []byte
	Rev   int64
}

// Entry is a decoded value together with what it was read from. Value is nil when Rev is 0.
type Entry[T api.Value] struct {
	Key   string
	Value *T
	Rev   int64
	raw   []byte // nil if whole
	whole bool   // Value is known to say all that was stored
}

// Exists reports whether the key held a value.
func (e Entry[T]) Exists() bool { return e.Rev != 0 }

// Raw is the stored bytes that the entry was decoded from, or nil where Value is known to say all that they did: a large cluster's blocks
// would take their memory twice. Either way it is what api.Encode wants as the prior of Value's successor. Do not modify them.
func (e Entry[T]) Raw() []byte { return e.raw }

// Says reports whether what is stored is these bytes, or would be if this package had written it. An entry that does not exist says nothing.
func (e Entry[T]) Says(raw []byte) bool {
	stored := e.raw
	if e.whole {
		var err error
		if stored, err = api.Encode(e.Value, nil); err != nil {
			return false
		}
	}
	return e.Exists() && bytes.Equal(stored, raw)
}

// Decode turns raw data into an entry; a KV that does not exist becomes an entry without a value.
func Decode[T api.Value](kv KV) (Entry[T], error) { return DecodeAfter(kv, Entry[T]{}) }

// DecodeAfter is Decode of a value that may share what both say with another one, mostly the one whose place it takes. It is quicker where little
// is different.
func DecodeAfter[T api.Value](kv KV, before Entry[T]) (Entry[T], error) {
	e := Entry[T]{Key: kv.Key, Rev: kv.Rev, raw: kv.Value}
	if kv.Rev == 0 {
		return e, nil
	}
	like := before.Value
	if !before.whole {
		like = nil
	}
	v, whole, err := api.DecodeLike(kv.Value, like)
	if err != nil {
		return e, &UnreadableError{Key: kv.Key, Err: err}
	}
	e.Value, e.whole, e.raw = v, whole, nil
	if !whole {
		e.raw = bytes.Clone(kv.Value) // which may be a part of something larger
	}
	return e, nil
}

// Range is one part of a Read: a key, or everything below a prefix.
type Range struct {
	Key    string
	Prefix bool
}

// Read returns what the ranges hold, all at one revision, in the order of the ranges and by key within each. A single
// key that does not exist gives an empty list. rev is the revision at which all this was true.
func (c *Client) Read(ctx context.Context, ranges ...Range) (out [][]KV, rev int64, err error) {
	ops := make([]clientv3.Op, len(ranges))
	for i, r := range ranges {
		ops[i] = clientv3.OpGet(r.Key)
		if r.Prefix {
			ops[i] = clientv3.OpGet(r.Key, clientv3.WithPrefix())
		}
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	etcd, err := c.etcd(ctx)
	if err != nil {
		return nil, 0, fmt.Errorf("read %s: %w", describe(ranges), c.readError(err))
	}
	res, err := etcd.kv.Txn(ctx).Then(ops...).Commit() // one transaction, hence one revision
	if err != nil {
		return nil, 0, fmt.Errorf("read %s: %w", describe(ranges), c.readError(err))
	}
	out = make([][]KV, len(ranges))
	for i, r := range res.Responses {
		out[i] = fromEtcd(r.GetResponseRange().Kvs)
	}
	return out, res.Header.Revision, nil
}

// ReadAll returns what the ranges hold, all at the one revision rev, in the order of the ranges and by key within each. Unlike Read it
// fetches at most page keys a request, so that a cluster of any size fits into messages and deadlines. The error is ErrCompacted
// if etcd forgot the revision meanwhile: begin again.
func (c *Client) ReadAll(ctx context.Context, page int, ranges ...Range) (out []KV, rev int64, err error) {
	for _, r := range ranges {
		from, end := r.Key, ""
		if r.Prefix {
			end = clientv3.GetPrefixRangeEnd(r.Key)
		}
		for more := true; more; {
			var kvs []KV
			kvs, more, rev, err = c.readPage(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(int64(page)), clientv3.WithRev(rev))
			if err != nil {
				return nil, 0, fmt.Errorf("read %s: %w", r.Key, err)
			}
			out = append(out, kvs...)
			if more {
				from = kvs[len(kvs)-1].Key + "\x00"
			}
		}
	}
	return out, rev, nil
}

// readPage reads at the revision that an option names, or at the newest if it names 0; rev is that revision.
func (c *Client) readPage(ctx context.Context, from string, opts ...clientv3.OpOption) (kvs []KV, more bool, rev int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	op := clientv3.OpGet(from, opts...)
	res, err := c.get(ctx, op)
	if err != nil {
		return nil, false, 0, err
	}
	if rev = op.Rev(); rev == 0 {
		rev = res.Header.Revision
	}
	return fromEtcd(res.Kvs), res.More && len(res.Kvs) > 0, rev, nil
}

func (c *Client) get(ctx context.Context, op clientv3.Op) (*clientv3.GetResponse, error) {
	etcd, err := c.etcd(ctx)
	if err != nil {
		return nil, c.readError(err)
	}
	res, err := etcd.kv.Do(ctx, op)
	if err != nil {
		return nil, c.readError(err)
	}
	return res.Get(), nil
}

// Revision is the revision that etcd had reached at some moment after the call: whatever was committed before is at it or below.
func (c *Client) Revision(ctx context.Context) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	res, err := c.get(ctx, clientv3.OpGet(api.Root, clientv3.WithCountOnly()))
	if err != nil {
		return 0, fmt.Errorf("read etcd's revision: %w", err)
	}
	return res.Header.Revision, nil
}

// Compact lets etcd forget what keys held before a revision: whoever reads or watches from there gets ErrCompacted. That it was compacted that far
// already is no error.
func (c *Client) Compact(ctx context.Context, rev int64) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	etcd, err := c.etcd(ctx)
	if err != nil {
		return fmt.Errorf("compact etcd: %w", c.readError(err))
	}
	_, err = etcd.kv.Compact(ctx, rev)
	if err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
		return fmt.Errorf("compact etcd: %w", c.readError(err))
	}
	return nil
}

// One decodes what Read returned for the range of a single key; one that does not exist becomes an entry without a value.
func One[T api.Value](key string, kvs []KV) (Entry[T], error) {
	if len(kvs) == 0 {
		return Entry[T]{Key: key}, nil
	}
	return Decode[T](kvs[0])
}

// Get reads one value. The error is ErrNotFound if the key does not exist; the entry is usable with Put all the same.
func Get[T api.Value](ctx context.Context, c *Client, key string) (Entry[T], error) {
	got, _, err := c.Read(ctx, Range{Key: key})
	if err != nil {
		return Entry[T]{Key: key}, err
	}
	if len(got[0]) == 0 {
		return Entry[T]{Key: key}, fmt.Errorf("read %s: %w", key, ErrNotFound)
	}
	return Decode[T](got[0][0])
}

// List reads every value below a prefix. Values that cannot be decoded are left out and named in the joined error;
// the others are returned all the same, so that one bad object does not hide the rest.
func List[T api.Value](ctx context.Context, c *Client, prefix string) (out []Entry[T], rev int64, err error) {
	got, rev, err := c.Read(ctx, Range{Key: prefix, Prefix: true})
	if err != nil {
		return nil, 0, err
	}
	var bad []error
	for _, kv := range got[0] {
		e, err := Decode[T](kv)
		if err != nil {
			bad = append(bad, err)
			continue
		}
		out = append(out, e)
	}
	return out, rev, errors.Join(bad...)
}

// MaxKeys is how many keys one transaction may compare, and how many it may write: etcd's default of --max-txn-ops.
const MaxKeys = 128

// Txn collects the compares and writes of one transaction. The zero value is empty and ready. Each key may be written once.
type Txn struct {
	expect map[string]int64
	below  map[string]int64 // prefixes, and the revision up to which what they hold was seen
	writes []write
	err    error
}

type write struct {
	key   string
	value []byte // nil: delete
}

// Expect makes the transaction depend on the key's ModRevision; 0 means that the key must not exist.
func (t *Txn) Expect(key string, rev int64) {
	if t.expect == nil {
		t.expect = map[string]int64{}
	}
	if old, ok := t.expect[key]; ok && old != rev {
		t.fail(fmt.Errorf("%s is expected at revision %d and at %d", key, old, rev))
	}
	t.expect[key] = rev
}

// ExpectBelow makes the transaction depend on no key with that prefix having been written after a revision, at which all of them were read.
// Keys that were deleted since do not count. Where it fails, the ConflictError names what was written.
func (t *Txn) ExpectBelow(prefix string, rev int64) {
	if t.below == nil {
		t.below = map[string]int64{}
	}
	if old, ok := t.below[prefix]; ok {
		rev = min(rev, old)
	}
	t.below[prefix] = rev
}

// Delete removes the key, which must be at that ModRevision.
func (t *Txn) Delete(key string, rev int64) {
	t.Expect(key, rev)
	t.add(write{key: key})
}

// PutRaw writes bytes under a key, which must be at that ModRevision.
func (t *Txn) PutRaw(key string, value []byte, rev int64) {
	t.Expect(key, rev)
	t.add(write{key: key, value: present(value)})
}

// Put writes v in the place of what e was read as: created if e does not exist, else replaced at e's revision
// with the fields that T does not know kept.
func Put[T api.Value](t *Txn, e Entry[T], v *T) {
	prior := e.raw
	if e.complete() {
		prior = nil // nothing to keep: spares the search, which takes ten times as long as the rest for a full block
	}
	raw, err := api.Encode(v, prior)
	if err != nil {
		t.fail(fmt.Errorf("write %s: %w", e.Key, err))
		return
	}
	t.PutRaw(e.Key, raw, e.Rev)
}

// complete reports whether Value is all that raw says: no field of it is unknown to T.
func (e Entry[T]) complete() bool {
	if e.Value == nil || e.whole {
		return e.whole
	}
	known, err := api.Encode(e.Value, nil)
	return err == nil && bytes.Equal(known, e.raw)
}

// Empty reports whether the transaction would write nothing.
func (t *Txn) Empty() bool { return len(t.writes) == 0 }

// Bytes is the size of the keys and values that the transaction writes: etcd takes requests of 1.5 MiB (--max-request-bytes).
func (t *Txn) Bytes() (n int) {
	for _, w := range t.writes {
		n += len(w.key) + len(w.value)
	}
	return n
}

func (t *Txn) add(w write) {
	if slices.ContainsFunc(t.writes, func(o write) bool { return o.key == w.key }) {
		t.fail(fmt.Errorf("%s is written twice in one transaction", w.key))
		return
	}
	t.writes = append(t.writes, w)
}

func (t *Txn) fail(err error) { t.err = errors.Join(t.err, err) }

// ConflictError says which keys were not at the expected revision, and what they hold instead (Rev 0: nothing).
// It matches ErrConflict.
type ConflictError struct {
	Current []KV
	Rev     int64 // at which all this was true
}

// Error names the keys.
func (e *ConflictError) Error() string {
	keys := make([]string, len(e.Current))
	for i, kv := range e.Current {
		keys[i] = kv.Key
	}
	return strings.Join(keys, ", ") + " " + ErrConflict.Error()
}

// Is reports true for ErrConflict.
func (e *ConflictError) Is(target error) bool { return target == ErrConflict }

// Commit carries the transaction out. On success it returns what was written, all at the one new revision (deleted keys with
// a nil Value). A failed compare gives a ConflictError and changes nothing; ErrUnknown means that the outcome is not known.
// Any other error, ErrUnavailable and the end of ctx included, means that nothing was changed.
func (c *Client) Commit(ctx context.Context, t *Txn) ([]KV, error) {
	if t.err != nil {
		return nil, fmt.Errorf("build transaction: %w", t.err)
	}
	keys := slices.Sorted(maps.Keys(t.expect))
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	etcd, err := c.etcd(ctx)
	if err != nil {
		return nil, fmt.Errorf("commit to etcd: %w", c.readError(err))
	}
	ctx, sent := trackSending(ctx)
	res, err := etcd.commit(ctx, t.request(keys))
	if err != nil {
		return nil, fmt.Errorf("commit to etcd: %w", c.writeError(err, sent.Load()))
	}
	if !res.Succeeded {
		return nil, fmt.Errorf("commit to etcd: %w", conflict(keys, t.expect, res))
	}
	out := make([]KV, len(t.writes))
	for i, w := range t.writes {
		out[i] = KV{Key: w.key, Value: w.value, Rev: res.Header.Revision}
	}
	return out, nil
}

// request is what the transaction compares, what it does, and what it reads if a compare fails: the keys in their order, and then what was written
// below the prefixes. It is made of etcd's messages and not by its client, which would make and copy each of them three times over.
func (t *Txn) request(keys []string) *pb.TxnRequest {
	compared := len(keys) + len(t.below)
	r := &pb.TxnRequest{
		Compare: make([]*pb.Compare, 0, compared), Success: make([]*pb.RequestOp, 0, len(t.writes)), Failure: make([]*pb.RequestOp, 0, compared),
	}
	text := make(map[string][]byte, len(keys)) // a key is named in up to three places
	for _, k := range keys {
		text[k] = []byte(k)
		r.Compare = append(r.Compare, revision(pb.Compare_EQUAL, text[k], t.expect[k]))
		r.Failure = append(r.Failure, reading(&pb.RangeRequest{Key: text[k]}))
	}
	for _, p := range slices.Sorted(maps.Keys(t.below)) {
		begin, end := []byte(p), []byte(clientv3.GetPrefixRangeEnd(p))
		c := revision(pb.Compare_LESS, begin, t.below[p]+1)
		c.RangeEnd = end
		r.Compare = append(r.Compare, c)
		r.Failure = append(r.Failure, reading(&pb.RangeRequest{Key: begin, RangeEnd: end, MinModRevision: t.below[p] + 1}))
	}
	for _, w := range t.writes {
		op := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: text[w.key], Value: w.value}}}
		if w.value == nil {
			op.Request = &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: text[w.key]}}
		}
		r.Success = append(r.Success, op)
	}
	return r
}

// revision compares the revision of a key with a number.
func revision(how pb.Compare_CompareResult, key []byte, rev int64) *pb.Compare {
	return &pb.Compare{Result: how, Target: pb.Compare_MOD, Key: key, TargetUnion: &pb.Compare_ModRevision{ModRevision: rev}}
}

func reading(r *pb.RangeRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: r}}
}

func conflict(keys []string, expect map[string]int64, res *pb.TxnResponse) error {
	e := &ConflictError{Rev: res.Header.Revision}
	for i, r := range res.Responses {
		if i >= len(keys) {
			e.Current = append(e.Current, fromEtcd(r.GetResponseRange().Kvs)...)
			continue
		}
		now := KV{Key: keys[i]}
		if kvs := fromEtcd(r.GetResponseRange().Kvs); len(kvs) > 0 {
			now = kvs[0]
		}
		if now.Rev != expect[keys[i]] {
			e.Current = append(e.Current, now)
		}
	}
	return e
}

// Create writes a value that must not exist yet. The error matches ErrConflict if it does.
func Create[T api.Value](ctx context.Context, c *Client, key string, v *T) (Entry[T], error) {
	return Update(ctx, c, Entry[T]{Key: key}, v)
}

// Update writes v in the place of e, which must not have changed; the error matches ErrConflict if it has. The entry that it returns has its Raw, whatever
// Value says.
func Update[T api.Value](ctx context.Context, c *Client, e Entry[T], v *T) (Entry[T], error) {
	var t Txn
	Put(&t, e, v)
	done, err := c.Commit(ctx, &t)
	if err != nil {
		return e, err
	}
	wrote, err := Decode[T](done[0])
	wrote.raw = done[0].Value
	return wrote, err
}

func fromEtcd(kvs []*mvccpb.KeyValue) []KV {
	out := make([]KV, len(kvs))
	for i, kv := range kvs {
		out[i] = KV{Key: string(kv.Key), Value: present(kv.Value), Rev: kv.ModRevision}
	}
	return out
}

// present is value, but never nil, which would say that there is none.
func present(value []byte) []byte {
	if value == nil {
		return []byte{}
	}
	return value
}

func describe(ranges []Range) string {
	names := make([]string, len(ranges))
	for i, r := range ranges {
		names[i] = r.Key
	}
	return strings.Join(names, ", ")
}
