package feed

import "github.com/muslin-cni/muslin/pkg/store"

// Listed is the snapshot of a list of everything at one revision. With Watched and Committed it is all that a Feed does, without the feed: for whoever
// follows etcd by himself, or follows it for many.
func Listed(rev int64, kvs []store.KV) Snapshot {
	w := edit(newState(""), prefixes())
	w.listed(rev, kvs)
	return Snapshot{Rev: w.next.rev, s: w.next}
}

// Watched is the snapshot after what a watch has told, up to and including a revision. s is not changed.
func (s Snapshot) Watched(rev int64, changes []store.KV) Snapshot {
	w := edit(s.s, s.s.route)
	w.watched(rev, changes)
	return Snapshot{Rev: w.next.rev, s: w.next}
}

// Committed is the snapshot with a commit of one's own that the watch has yet to tell of. s is not changed.
func (s Snapshot) Committed(changes []store.KV) Snapshot {
	w := edit(s.s, s.s.route)
	w.committed(changes)
	return Snapshot{Rev: w.next.rev, s: w.next}
}
