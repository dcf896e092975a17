package register

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/muslin-cni/muslin/internal/fault"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
)

const (
	// maxBatch bounds the jobs of one transaction. A job that claims no block writes three keys at most; one that makes the
	// transaction too large for etcd waits for the next.
	maxBatch = 24
	// maxWork bounds the time for one batch, conflicts and second attempts one by one included.
	maxWork = 10 * time.Second
)

// errFull is the error of a job that did not fit into the transaction.
var errFull = errors.New("the transaction has no room for more")

// errAbandoned is the error of a caller that left while its job was under way.
var errAbandoned = fmt.Errorf("gave up waiting: %w", store.ErrUnknown)

// do has the job carried out, by this goroutine or by another that does the same, and returns its error.
func (h *Handler) do(ctx context.Context, j *job) error {
	j.ctx = ctx
	h.mu.Lock()
	h.waiting = append(h.waiting, j)
	h.mu.Unlock()
	for {
		select {
		case <-j.done:
			return j.err
		default:
		}
		select {
		case <-j.done:
		case <-ctx.Done():
			if h.withdraw(j) {
				return ctx.Err()
			}
			return errors.Join(errAbandoned, ctx.Err())
		case h.turn <- struct{}{}:
			if batch := h.next(); len(batch) > 0 {
				h.run(batch)
			}
			<-h.turn
		}
	}
}

// withdraw takes back a job that nobody has begun.
func (h *Handler) withdraw(j *job) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	i := slices.Index(h.waiting, j)
	if i < 0 {
		return false
	}
	h.waiting = slices.Delete(h.waiting, i, i+1)
	return true
}

// next takes the jobs of the next transaction from the front, leaving for later those that concern the same keys as
// one before them.
func (h *Handler) next() []*job {
	h.mu.Lock()
	defer h.mu.Unlock()
	var batch, rest []*job
	keys := map[string]bool{}
	for _, j := range h.waiting {
		clash := j.handleKey != "" && keys[j.handleKey] || j.endpointKey != "" && keys[j.endpointKey]
		keys[j.handleKey], keys[j.endpointKey] = true, true
		if clash || len(batch) == maxBatch {
			rest = append(rest, j)
			continue
		}
		batch = append(batch, j)
	}
	h.waiting = rest
	return batch
}

// run carries a batch out and closes its jobs. It does not stop when callers leave: a commit whose outcome nobody waited for
// could take effect after the DEL that follows. Where etcd says nothing until its time is up, whoever has waited meanwhile does not wait as
// long once more.
func (h *Handler) run(batch []*job) {
	ctx, cancel := context.WithTimeout(context.Background(), maxWork)
	defer cancel()
	if err := h.work(ctx, batch); silent(err) {
		h.dismiss()
	}
}

// dismiss ends all jobs that nobody has begun.
func (h *Handler) dismiss() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, j := range h.waiting {
		j.err = errSilent
		close(j.done)
	}
	h.waiting = nil
}

// errSilent is the error of a job that was not begun.
var errSilent = fmt.Errorf("%w: it has not answered the command before this one", store.ErrUnavailable)

// silent reports that etcd did not answer in time.
func silent(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) && (errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrUnknown))
}

// work carries jobs out, together as far as they can be, and returns the last error that was not a single job's.
func (h *Handler) work(ctx context.Context, batch []*job) error {
	err := ipam.Retry(ctx, func(attempt int) error { return h.attempt(ctx, batch, attempt > 0) })
	if err != nil && len(batch) > 1 && !hopeless(err) {
		for _, j := range batch {
			err = h.work(ctx, []*job{j}) // one of them spoils it for all
		}
		return err
	}
	var later []*job
	for _, j := range batch {
		if err != nil {
			j.err = err
		}
		if errors.Is(j.err, errFull) {
			later = append(later, j)
			continue
		}
		close(j.done)
	}
	if len(later) > 0 {
		return h.work(ctx, later)
	}
	return err
}

// hopeless reports an error that each job alone would meet too, or after which none must be tried again.
func hopeless(err error) bool {
	for _, e := range []error{store.ErrUnavailable, store.ErrUnknown, store.ErrUnauthorized, ipam.ErrBusy, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// source is where the next plan starts from. known is nil if that is etcd itself.
func (h *Handler) source(fresh bool) (src ipam.Source, known Source) {
	if h.cfg.Source != nil && !fresh {
		known = h.cfg.Source()
	}
	if known == nil {
		return ipam.Etcd{Client: h.cfg.Client}, nil
	}
	return known, known
}

// attempt plans the batch once and commits it. Jobs that are refused, or for which there is no room, have their err set and take no
// part; on anything but fresh data they are not refused but tried again.
func (h *Handler) attempt(ctx context.Context, batch []*job, fresh bool) error {
	src, known := h.source(fresh)
	facts, err := src.Facts(ctx, h.cfg.Node)
	if err != nil {
		return err
	}
	was, err := h.priors(ctx, batch, known)
	if err != nil {
		return err
	}
	plan := ipam.NewPlan(src, h.cfg.Node, facts, h.cfg.Now())
	for i, j := range batch {
		if j.err = j.ctx.Err(); j.err != nil {
			continue // the caller has left
		}
		trial := plan.Clone()
		j.err = h.may(j, facts, known != nil)
		if j.err == nil {
			j.err = j.plan(ctx, trial, j, was[i])
		}
		var refusal *ipam.Refusal
		var unreadable *store.UnreadableError
		switch {
		case j.err == nil && i > 0 && trial.Size() > store.MaxKeys:
			j.err = errFull
		case j.err == nil:
			plan = trial
		case known != nil:
			return fmt.Errorf("%w: %w", store.ErrConflict, j.err)
		case !errors.As(j.err, &refusal) && !errors.As(j.err, &unreadable):
			return j.err
		}
	}
	return h.commit(ctx, plan.Txn())
}

// may refuses a job that this node must not do now. What only frees goes on where there is no ClusterInformation; that there is none is
// not believed of what is in memory.
func (h *Handler) may(j *job, facts ipam.Facts, remembered bool) error {
	ready := ipam.Ready
	if j.frees && !remembered {
		ready = ipam.Unlocked
	}
	if err := ready(facts.Cluster); err != nil || !j.asHolder {
		return err
	}
	if facts.Err != nil {
		return facts.Err
	}
	return ipam.Holds(facts.Identity, h.cfg.Node, h.cfg.Machine)
}

func (h *Handler) commit(ctx context.Context, t *store.Txn) error {
	if t.Empty() {
		return nil
	}
	if err := fault.At(fault.HandlerPlanned); err != nil {
		return err
	}
	changed, err := h.cfg.Client.Commit(ctx, t)
	if err != nil {
		return err
	}
	h.written.note(changed)
	h.cfg.Committed(changed)
	return fault.At(fault.HandlerCommitted)
}

// priors finds what there was before each job. From memory, an ADD's handle is taken to be absent: the commit finds out. What a
// DEL removes is read, unless this handler wrote it.
func (h *Handler) priors(ctx context.Context, batch []*job, known Source) ([]prior, error) {
	out := make([]prior, len(batch))
	var read []*job
	for i, j := range batch {
		if p, ok := h.recall(j, known); ok {
			out[i] = p
			continue
		}
		if known == nil || len(j.wants) == 0 {
			read = append(read, j)
			continue
		}
		out[i].handle.Key = j.handleKey
		if j.endpointKey != "" {
			out[i].endpoint = known.Endpoint(j.endpointKey)
		}
		if j.profileKey != "" {
			out[i].profile = known.Profile(j.req.Network)
		}
		out[i].endpoint.Key, out[i].profile.Key = j.endpointKey, j.profileKey
	}
	if len(read) == 0 {
		return out, nil
	}
	found, err := h.readPriors(ctx, read)
	if err != nil {
		return nil, err
	}
	for i, j := range batch {
		if p, ok := found[j]; ok {
			out[i] = p
		}
	}
	return out, nil
}

// readPriors reads the jobs' keys from etcd in one request.
func (h *Handler) readPriors(ctx context.Context, jobs []*job) (map[*job]prior, error) {
	var ranges []store.Range
	seen := map[string]bool{"": true}
	for _, j := range jobs {
		for _, key := range []string{j.handleKey, j.endpointKey, j.profileKey} {
			if !seen[key] {
				seen[key] = true
				ranges = append(ranges, store.Range{Key: key})
			}
		}
	}
	got, _, err := h.cfg.Client.Read(ctx, ranges...)
	if err != nil {
		return nil, err
	}
	kvs := map[string]store.KV{}
	for _, g := range got {
		for _, kv := range g {
			kvs[kv.Key] = kv
		}
	}
	out := map[*job]prior{}
	for _, j := range jobs {
		var errs [3]error
		var p prior
		p.handle, errs[0] = decode[api.Handle](kvs, j.handleKey)
		p.endpoint, errs[1] = decode[api.WorkloadEndpoint](kvs, j.endpointKey)
		p.profile, errs[2] = decode[api.Profile](kvs, j.profileKey)
		if err := errors.Join(errs[:]...); err != nil {
			return nil, err
		}
		out[j] = p
	}
	return out, nil
}

func decode[T api.Value](kvs map[string]store.KV, key string) (store.Entry[T], error) {
	kv, ok := kvs[key]
	if !ok {
		return store.Entry[T]{Key: key}, nil
	}
	return store.Decode[T](kv)
}
