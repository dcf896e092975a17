package kube

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

// Only says which objects of a resource are of interest.
type Only struct {
	Namespace string // "": all
	Fields    string // a field selector; "": all
}

// follower keeps the objects of one resource as the API server has them. While that is away, what it knew stays.
type follower struct {
	what     Resource
	informer cache.SharedIndexInformer
	changed  func(o any)
	since    time.Time // when somebody first asked for them
	log      *slog.Logger

	mu      sync.Mutex
	failing string // why the API server does not answer, as logged; "": it does
}

// follow prepares a follower, which begins when it is run. changed is told of every object that has come, changed or gone, and of nil when the first list
// has been read, which may hold none.
func follow(api API, what Resource, only Only, changed func(o any), log *slog.Logger) *follower {
	indexers := cache.Indexers{}
	if what == EndpointSlices {
		indexers[byService] = serviceOfSlice
	}
	f := &follower{what: what, changed: changed, log: log, since: time.Now()}
	f.informer = cache.NewSharedIndexInformerWithOptions(api.Lists(what, only), what.object(), cache.SharedIndexInformerOptions{Indexers: indexers})
	tell := func(o any) {
		f.answered()
		if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
			o = gone.Obj
		}
		changed(o)
	}
	// None of these fails but for an informer that runs already.
	_ = f.informer.SetTransform(strip)
	_ = f.informer.SetWatchErrorHandlerWithContext(func(_ context.Context, _ *cache.Reflector, err error) { f.failed(err) })
	_, _ = f.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: tell, UpdateFunc: func(_, o any) { tell(o) }, DeleteFunc: tell,
	})
	return f
}

// run follows until ctx ends.
func (f *follower) run(ctx context.Context) {
	ctx = klog.NewContext(ctx, logr.FromSlogHandler(quiet{f.log.Handler()}))
	var told sync.WaitGroup
	told.Go(func() { // a resource without objects has no events
		if cache.WaitForCacheSync(ctx.Done(), f.informer.HasSynced) {
			f.answered()
			f.changed(nil)
		}
	})
	f.informer.RunWithContext(ctx)
	told.Wait()
}

// synced tells whether the first list has come.
func (f *follower) synced() bool { return f.informer.HasSynced() }

// failed logs why the API server does not answer: once, and again for another reason.
func (f *follower) failed(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err.Error() == f.failing {
		return
	}
	f.failing = err.Error()
	f.log.Warn("the Kubernetes API server does not answer; what is known stays", "resource", f.what, "error", err)
}

func (f *follower) answered() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failing != "" {
		f.log.Info("the Kubernetes API server answers again", "resource", f.what)
	}
	f.failing = ""
}

// quiet leaves out of a log what client-go says of its own work; what concerns the operator is said by failed.
type quiet struct{ slog.Handler }

// Enabled is for errors alone.
func (q quiet) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelError && q.Handler.Enabled(ctx, l)
}
