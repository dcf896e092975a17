// Package memetcd is an etcd of one member in this process's memory, for tests that need many of them, or many moments of one.
//
// The goals, and how each is met:
//
//  1. It is etcd to whoever speaks etcd's protocol: a Server is both services that a client needs, KV and Watch, and the package's tests hold it
//     and a real etcd to one suite, answer by answer.
//  2. It is deterministic: what it answers depends on nothing but the requests before, in their order. It has no clock and starts no goroutine.
//  3. Any moment of it can be kept and gone back to at no cost (State, Restore): a State is a persistent map, of which a commit copies one path.
//
// It has no leases, no users and no transactions within transactions: such requests are answered with codes.Unimplemented. Nor does it tell progress
// but when it is asked to.
package memetcd

import (
	"iter"
	"slices"
	"sync"

	"github.com/tidwall/btree"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/muslin-cni/muslin/pkg/store"
)

// Server is an etcd. It implements pb.KVClient and pb.WatchClient; all methods may be called concurrently. Requests are kept and answers are shared with
// others: neither may be modified.
type Server struct {
	mu      sync.Mutex
	now     State
	streams map[*stream]bool
}

var (
	_ pb.KVClient    = (*Server)(nil)
	_ pb.WatchClient = (*Server)(nil)
)

// New is an empty etcd, at revision 1.
func New() *Server {
	return &Server{now: State{rev: 1, keys: new(btree.Map[string, *mvccpb.KeyValue])}, streams: map[*stream]bool{}}
}

// Client is a new client of the server.
func (s *Server) Client() *store.Client { return store.Over(store.Services{KV: s, Watch: s}, 0) }

// State is all that a Server knows at one moment. It never changes, and costs no more than what changed since the one before. It may be read
// concurrently, and restored by one at a time.
type State struct {
	rev       int64
	compacted int64 // revisions before this one are forgotten
	keys      *btree.Map[string, *mvccpb.KeyValue]
	log       []change // every change since, oldest first
}

// change is one key's at one revision.
type change struct {
	kv   *mvccpb.KeyValue // with Version 0 if it was deleted
	prev *mvccpb.KeyValue // nil if there was none
}

// Rev is the revision that was reached.
func (s State) Rev() int64 { return s.rev }

// All yields every key in order. Do not modify them.
func (s State) All() iter.Seq[*mvccpb.KeyValue] {
	return func(yield func(*mvccpb.KeyValue) bool) {
		s.keys.Scan(func(_ string, kv *mvccpb.KeyValue) bool { return yield(kv) })
	}
}

// Get is what a key holds; nil if there is no such key.
func (s State) Get(key string) *mvccpb.KeyValue {
	kv, _ := s.keys.Get(key)
	return kv
}

// State is what the server knows now.
func (s *Server) State() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now.fork()
}

// fork is the same, of which either may be written without a trace in the other.
func (s State) fork() State {
	s.keys = s.keys.Copy()
	s.log = slices.Clip(s.log)
	return s
}

// Restore makes the server what it was, or what another one was, at that moment. Watches end with codes.Unavailable.
func (s *Server) Restore(to State) {
	s.mu.Lock()
	s.now = to.fork()
	s.mu.Unlock()
	s.Cut()
}

// ring wakes the watches, and forgets those whose callers have gone.
func (s *Server) ring() {
	for w := range s.streams {
		if w.ctx.Err() != nil {
			delete(s.streams, w)
			continue
		}
		w.ring()
	}
}

// Cut ends all watches, as the loss of connections does: with codes.Unavailable.
func (s *Server) Cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.streams {
		w.cut = true
		w.ring()
	}
	clear(s.streams)
}
