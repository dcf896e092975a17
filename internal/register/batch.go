package register

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"github.com/muslin-cni/muslin/internal/fault"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
)

// The bounds of a transaction that jobs share. etcd takes 128 operations and 1.5 MiB (--max-txn-ops, --max-request-bytes); a job that would make it
// larger waits for the next, and only one that is alone may be larger.
const (
	maxMembers = 30
	maxKeys    = 100     // that it compares: as many are read where a compare fails, and no more are written
	maxBytes   = 1 << 20 // of what it writes
)

// maxAtOnce is how often a job that met another's write is tried again without a pause.
const maxAtOnce = 2

// maxWork bounds the time for one batch, with all the transactions that it takes.
const maxWork = 10 * time.Second

// errAbandoned is the error of a caller that left while its job was under way.
var errAbandoned = fmt.Errorf("gave up waiting: %w", store.ErrUnknown)

// do has the job carried out, by this goroutine or by another that does the same, and returns its error. A job that met somebody else's write
// is tried again by itself; from the third time on it reads etcd.
func (h *Handler) do(ctx context.Context, j *job) error {
	j.ctx = ctx
	return ipam.RetryAfter(ctx, h.cfg.Pause, func(attempt int) error {
		j.fresh = j.fresh || attempt > 1
		j.err, j.done = nil, make(chan struct{})
		return h.once(ctx, j)
	})
}

// once waits for a transaction that the job may share, or makes one.
func (h *Handler) once(ctx context.Context, j *job) error {
	h.mu.Lock()
	h.waiting = append(h.waiting, j)
	h.mu.Unlock()
	for {
		select {
		case <-j.done:
			return j.err
		default:
		}
		if err := ctx.Err(); err != nil { // whose caller has left takes no turn any more
			if h.withdraw(j) {
				return err
			}
			return errors.Join(errAbandoned, err)
		}
		select {
		case <-j.done:
		case <-ctx.Done():
		case h.turn <- struct{}{}:
			h.cfg.Gather(ctx, h.began)
			h.began = h.cfg.Now()
			runtime.Gosched() // whoever is on his way to the queue comes along: often those whom the transaction before has let go
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

// putBack has jobs be the first of the next transaction. Those whose callers have left end: nobody would take them up.
func (h *Handler) putBack(jobs []*job) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var still []*job
	for _, j := range jobs {
		if err := j.ctx.Err(); err != nil {
			j.end(err)
			continue
		}
		still = append(still, j)
	}
	h.waiting = append(still, h.waiting...)
}

// next takes the jobs of the next transaction from the front, leaving for later those that concern the same keys as
// one before them, and those that start from another source.
func (h *Handler) next() []*job {
	h.mu.Lock()
	defer h.mu.Unlock()
	var batch, rest []*job
	keys := map[string]bool{}
	for _, j := range h.waiting {
		apart := j.handleKey != "" && keys[j.handleKey] || j.endpointKey != "" && keys[j.endpointKey] || len(batch) > 0 && j.fresh != batch[0].fresh
		keys[j.handleKey], keys[j.endpointKey] = true, true
		if apart || len(batch) == maxMembers {
			rest = append(rest, j)
			continue
		}
		batch = append(batch, j)
	}
	h.waiting = rest
	return batch
}

// run carries a batch out and ends its jobs. It does not stop when callers leave: a commit whose outcome nobody waited for
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
	endAll(h.waiting, errSilent)
	h.waiting = nil
}

// errSilent is the error of a job that was not begun.
var errSilent = fmt.Errorf("%w: it has not answered the command before this one", store.ErrUnavailable)

// silent reports that etcd did not answer in time.
func silent(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) && (errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrUnknown))
}

// work carries jobs out in one transaction. If a compare of it fails, those whose own reads have not changed stay and commit in the next; the
// others are ejected, to be planned again on what etcd has said. Where all would have to go, as with their block, they stay together once. It returns
// an error that was not a single job's.
func (h *Handler) work(ctx context.Context, batch []*job) error {
	for together := true; len(batch) > 0; together = false {
		members, err := h.attempt(ctx, batch)
		var refused *store.ConflictError
		switch {
		case err == nil:
			endAll(members, nil)
			return nil
		case !errors.As(err, &refused):
			return h.fail(ctx, members, err)
		}
		stay, met := apart(members, refused)
		h.learn(met, refused)
		if batch = stay; len(stay) == 0 && together && len(met) > 1 && !met[0].fresh {
			batch = met
			continue
		}
		h.again(met, err)
	}
	return nil
}

// again has jobs that met another's write, or what is in memory may be too old for, go into the next transaction, in the order in which they came, and ends those that have done so
// too often: who asks for them pauses.
func (h *Handler) again(met []*job, err error) {
	var still []*job
	for _, j := range met {
		if j.met++; j.met > maxAtOnce {
			j.end(err)
			continue
		}
		j.fresh = j.fresh || j.met > 1
		still = append(still, j)
	}
	h.putBack(still)
}

// fail ends the jobs of a transaction that was not carried out, or tries each alone where one of them may spoil it for all.
func (h *Handler) fail(ctx context.Context, members []*job, err error) error {
	if len(members) == 1 || hopeless(err) {
		endAll(members, err)
		return err
	}
	for _, j := range members {
		err = h.work(ctx, []*job{j})
	}
	return err
}

// learn takes over what a refused transaction has shown, so that the next plan of the jobs that met it starts from there. Where nobody takes it
// over, they have to read etcd.
func (h *Handler) learn(met []*job, refused *store.ConflictError) {
	shown := slices.Clone(refused.Current)
	for i, kv := range shown {
		if kv.Rev == 0 {
			shown[i].Rev = refused.Rev // it is gone at that revision
		}
	}
	h.written.learn(shown)
	if h.cfg.Refused != nil {
		h.cfg.Refused(shown)
	}
	for _, j := range met {
		j.fresh = j.fresh || h.cfg.Refused == nil
		i := slices.IndexFunc(refused.Current, func(kv store.KV) bool { return kv.Key == j.handleKey })
		if i >= 0 {
			j.shown = &refused.Current[i]
		}
	}
}

// apart tells the jobs that met a change from those that did not, which may stay.
func apart(members []*job, refused *store.ConflictError) (stay, met []*job) {
	for _, j := range members {
		if slices.ContainsFunc(refused.Current, func(kv store.KV) bool { return j.uses[kv.Key] }) {
			met = append(met, j)
			continue
		}
		stay = append(stay, j)
	}
	if len(met) == 0 {
		return nil, members // it is not known whose
	}
	return stay, met
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

// attempt plans jobs once and commits them. The error is that of the members, which have not ended.
func (h *Handler) attempt(ctx context.Context, batch []*job) (members []*job, err error) {
	for {
		var plan *ipam.Plan
		plan, members, err = h.share(ctx, batch)
		if err != nil || len(members) == 0 {
			return members, err
		}
		fenced := (h.doubt || plan.Leaving()) && plan.Fence(h.cfg.Machine)
		t := plan.Txn()
		if len(members) == 1 || t.Bytes() <= maxBytes {
			err = h.commit(ctx, t, members)
			h.doubt = errors.Is(err, store.ErrUnknown) || h.doubt && (err != nil || !fenced)
			return members, err
		}
		fewer := max(1, len(members)/4) // what makes it so large is mostly a block, and few jobs fewer change little
		h.putBack(members[fewer:])
		batch = members[:fewer]
	}
}

// share plans one transaction for as many of the jobs as may share it. The others have ended or wait for the next. After an error the members are
// all that have not ended.
func (h *Handler) share(ctx context.Context, batch []*job) (plan *ipam.Plan, members []*job, err error) {
	src, known := h.source(batch[0].fresh)
	facts, err := src.Facts(ctx, h.cfg.Node)
	if err != nil {
		return nil, batch, err
	}
	was, err := h.priors(ctx, batch, known)
	if err != nil {
		return nil, batch, err
	}
	plan = ipam.NewPlan(src, h.cfg.Node, facts, h.cfg.Now())
	var left, anew []*job // that the transaction has no room for; that are to be planned again
	for i, j := range batch {
		trial := plan.Clone()
		err := h.planOne(ctx, trial, j, was[i], known != nil, facts)
		switch {
		case err == nil && len(members) > 0 && trial.Size() > maxKeys:
			left = append(left, j)
		case err == nil:
			plan, j.uses, members = trial, trial.Uses(), append(members, j)
		case hopeless(err) && j.ctx.Err() == nil:
			return nil, slices.Concat(members, left, anew, batch[i:]), err
		case errors.Is(err, store.ErrConflict):
			anew = append(anew, j)
		default:
			j.end(err)
		}
	}
	h.putBack(left)
	h.again(anew, store.ErrConflict)
	return plan, members, nil
}

// planOne adds a job to the plan. A job is not refused on what is remembered, and may be out of date: it is to be tried again on etcd
// itself.
func (h *Handler) planOne(ctx context.Context, p *ipam.Plan, j *job, was prior, remembered bool, facts ipam.Facts) error {
	if err := j.ctx.Err(); err != nil {
		return err // the caller has left
	}
	j.fenced = false
	err := errors.Join(was.err, h.may(j, facts, remembered))
	if err == nil {
		err = j.plan(ctx, p, j, was)
	}
	if err != nil && remembered && !hopeless(err) {
		j.fresh = true
		return fmt.Errorf("%w: %w", store.ErrConflict, err)
	}
	return err
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

// commit carries out what the members' commands have come to.
func (h *Handler) commit(ctx context.Context, t *store.Txn, members []*job) error {
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
	h.written.fenced(members)
	h.cfg.Committed(changed)
	return fault.At(fault.HandlerCommitted)
}

// priors finds what there was before each job. From memory, an ADD's handle is taken to be absent, or what a refused transaction has shown: the
// commit finds out. What a DEL removes is read, unless this handler wrote it.
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
		if j.shown != nil {
			out[i].handle, out[i].err = store.Decode[api.Handle](*j.shown)
		}
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

// readPriors reads the jobs' keys from etcd in one request. What cannot be decoded is the error of that prior alone.
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
		p.err = errors.Join(errs[:]...)
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
