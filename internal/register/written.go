package register

import (
	"strings"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// maxWritten bounds the handles that are remembered: more than the pods of a node, at some 300 bytes each.
const maxWritten = 4096

// written is the handles that this handler wrote last, by key: the feed does not follow handles. One that is missing costs a DEL a read, and
// one that is not in etcd any more as it was written makes the DEL's commit conflict. One without a value was deleted by this handler, or fenced: no
// commit for its container is under way any more.
type written map[string]store.KV

// note takes over what was committed.
func (w written) note(changed []store.KV) {
	for _, kv := range changed {
		if strings.HasPrefix(kv.Key, api.HandlesRoot) {
			w.add(kv)
		}
	}
}

// learn takes over what etcd holds instead of what was expected.
func (w written) learn(shown []store.KV) {
	for _, kv := range shown {
		switch {
		case !strings.HasPrefix(kv.Key, api.HandlesRoot):
		case kv.Value == nil:
			delete(w, kv.Key) // somebody else's work
		default:
			w.add(kv)
		}
	}
}

// fenced takes over what was found to be gone.
func (w written) fenced(jobs []*job) {
	for _, j := range jobs {
		if j.fenced {
			w.add(store.KV{Key: j.handleKey})
		}
	}
}

// gone reports whether this handler saw the container out, and nothing was done for it since.
func (w written) gone(handleKey string) bool {
	kv, ok := w[handleKey]
	return ok && kv.Value == nil
}

func (w written) add(kv store.KV) {
	for key := range w {
		if len(w) < maxWritten {
			break
		}
		delete(w, key) // any will do: most are of pods that another process has deleted
	}
	w[kv.Key] = kv
}

// recall finds what there was before a DEL in memory: the handle as this handler wrote it, and the container's endpoint. It must know
// of both, since the transaction compares only what it deletes. What is not in memory any more or turned out to be out of date is
// forgotten, and read.
func (h *Handler) recall(j *job, known Source) (prior, bool) {
	kv, ok := h.written[j.handleKey]
	if !ok || kv.Value == nil || !j.recalls {
		return prior{}, false
	}
	if known == nil {
		delete(h.written, j.handleKey)
		return prior{}, false
	}
	p := prior{}
	var err error
	if p.handle, err = store.Decode[api.Handle](kv); err != nil {
		return prior{}, false
	}
	if j.endpointKey == "" {
		return p, true
	}
	p.endpoint = known.Endpoint(j.endpointKey)
	return p, belongsTo(p.endpoint, j.req.ContainerID)
}
