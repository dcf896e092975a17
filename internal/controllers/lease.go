package controllers

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// leaseName is the name of the Lease that whoever does the work holds.
const leaseName = "muslin-controllers"

// lease is how the one is chosen who does the work. The times are those of Kubernetes' own controllers.
type lease struct {
	client    kubernetes.Interface
	namespace string
	identity  string
	duration  time.Duration // after which another takes over from one that has died
	renew     time.Duration // within which the holder must renew, or it stops
	retry     time.Duration
	meters    *meters
	log       *slog.Logger
}

const (
	leaseDuration = 15 * time.Second
	leaseRenew    = 10 * time.Second
	leaseRetry    = 2 * time.Second
)

// hold waits for the lease, and calls work while it is held, with a context that ends when it is lost; then it waits anew, until ctx ends or work fails.
// It returns after work has. The lease is given up only once work has returned.
func (l *lease) hold(ctx context.Context, work func(context.Context) error) error {
	for ctx.Err() == nil {
		if err := l.once(ctx, work); err != nil {
			return err
		}
	}
	return nil
}

// once holds the lease once. The elector's own context ends after work has, so that what it releases is not in use any more.
func (l *lease) once(ctx context.Context, work func(context.Context) error) error {
	electing, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	t := turn{done: make(chan struct{})}
	var failure error
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Name: leaseName, Namespace: l.namespace},
			Client:     l.client.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: l.identity},
		},
		Name: leaseName, LeaseDuration: l.duration, RenewDeadline: l.renew, RetryPeriod: l.retry, ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(held context.Context) {
				if !t.begin() {
					return
				}
				defer close(t.done)
				defer stop()
				failure = l.lead(ctx, held, work)
			},
			OnStoppedLeading: func() {},
			OnNewLeader: func(id string) {
				if id != "" && id != l.identity {
					l.log.Info("another process does the work; this one waits", "holder", id)
				}
			},
		},
	})
	if err != nil {
		return fmt.Errorf("set up the choice of a leader: %w", err)
	}
	defer context.AfterFunc(ctx, func() {
		if !t.forgo() { // else work ends first, and then the election
			stop()
		}
	})()
	elector.Run(electing)
	if t.forgo() {
		<-t.done
	}
	return failure
}

// turn is whether work has begun, in one holding of the lease. The elector calls back from a goroutine of its own, perhaps after its end.
type turn struct {
	mu          sync.Mutex
	begun, over bool
	done        chan struct{} // closed when work that has begun has ended
}

// begin reports whether work may begin, and takes it that it does.
func (t *turn) begin() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.begun = t.begun || !t.over
	return t.begun
}

// forgo lets no work begin any more, and reports whether it has.
func (t *turn) forgo() (begun bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.over = true
	return t.begun
}

// lead works until the lease is lost or ctx ends.
func (l *lease) lead(ctx, held context.Context, work func(context.Context) error) error {
	l.log.Info("this process does the work now", "identity", l.identity)
	l.meters.leads(true)
	defer l.meters.leads(false)
	working, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(held, func() {
		if ctx.Err() == nil {
			l.log.Warn("the lease is lost, or the API server is away: work stops until it is held again")
		}
		cancel()
	})()
	return work(working)
}

// whereabouts are the namespace and the identity of this process.
func whereabouts(e environment, uuid string) (namespace, identity string) {
	namespace, identity = e.namespace, e.identity
	if namespace == "" {
		if text, err := os.ReadFile("/var/run/secrets/kubernetes.io/serviceaccount/namespace"); err == nil {
			namespace = strings.TrimSpace(string(text))
		}
	}
	if namespace == "" {
		namespace = "kube-system"
	}
	if identity == "" {
		if host, err := os.Hostname(); err == nil {
			identity = host
		}
	}
	return namespace, identity + "_" + uuid // two pods in one host's network have one host name
}
