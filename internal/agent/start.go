package agent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/muslin-cni/muslin/internal/apiserver"
	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/attachlock"
	"github.com/muslin-cni/muslin/internal/config"
	"github.com/muslin-cni/muslin/internal/machineid"
	"github.com/muslin-cni/muslin/internal/startup"
	"github.com/muslin-cni/muslin/pkg/store"
)

// alone makes sure that no other agent works on this host: two would undo each other's work and take each other's socket. One that
// is just ending is waited for.
func alone(ctx context.Context) (*attachlock.Lock, error) {
	ctx, cancel := context.WithTimeout(ctx, otherAgentTimeout)
	defer cancel()
	lock, err := attachlock.Acquire(ctx, filepath.Dir(attach.Socket), attach.AgentLock)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return nil, fmt.Errorf("another agent runs on this host, stop one of the two: %w", err)
	case err != nil:
		return nil, fmt.Errorf("see that no other agent runs on this host: %w", err)
	}
	return lock, nil
}

const otherAgentTimeout = 3 * time.Second

// identify finds out which machine this is, and tells the host's other programs.
func (a *Agent) identify() error {
	sources := machineid.Host(a.cfg.MachineIDFile)
	id, made, err := sources.FindOrMake()
	if err != nil {
		return err
	}
	if made {
		a.log.Warn("this machine has no id of its own, so that a random one was made; it is lost with the file", "file", sources.Kept, "machine", id)
	}
	a.machine = id
	return sources.Say(id)
}

// startupDeps is what startup works with, the host's facts as they are now.
func (a *Agent) startupDeps() startup.Deps {
	return startup.Deps{
		Store: a.store, Host: a.monitor.Host(), IPv6: a.kernelIPv6, Machine: a.machine, Now: time.Now, UUID: uuid.NewString, Log: a.log,
		Default: a.rtnl.DefaultDevices, Kube: a.kube,
	}
}

// kubernetes is how to ask the API server; nil where there is none. Settings that cannot be read are an error of whoever asks.
func kubernetes(cfg config.Node, env config.Env) startup.Kubernetes {
	c, err := apiserver.New(cfg.Kubeconfig, env)
	switch {
	case err == nil:
		return c
	case errors.Is(err, apiserver.ErrNotConfigured):
		return nil
	default:
		return unreachable{err}
	}
}

// unreachable is an API server that cannot be asked.
type unreachable struct{ why error }

// Get says why.
func (u unreachable) Get(context.Context, string, any) error { return u.why }

// introduce says what of the environment will not do what whoever set it may expect.
func (a *Agent) introduce(environ []string) {
	known, unknown := config.Unheeded(environ)
	if len(known) > 0 {
		a.log.Info("variables that change nothing here", "variables", strings.Join(known, "; "))
	}
	for _, name := range unknown {
		a.log.Warn("unknown variable", "variable", name)
	}
}

// start does what has to be done before the loop, and waits for etcd as long as it takes.
func (a *Agent) start(ctx context.Context) error {
	waiting := false
	for {
		problems, err := startup.Run(ctx, a.node, a.cfg, a.startupDeps())
		a.addresses.say(problems)
		if err == nil {
			return a.keepName()
		}
		if ctx.Err() != nil {
			return nil
		}
		if !errors.Is(err, store.ErrUnavailable) && !errors.Is(err, store.ErrUnknown) {
			return fmt.Errorf("start node %s: %w", a.node, err)
		}
		if !waiting {
			a.log.Warn("waiting for etcd", "etcd", a.etcd, "error", err)
		}
		waiting = true
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

// keepName writes the node's name down, where the next start and the plugins look for it.
func (a *Agent) keepName() error {
	if err := startup.WriteFile(a.cfg.NodeNameFile, a.node); err != nil {
		return fmt.Errorf("keep the node's name in CALICO_NODENAME_FILE: %w", err)
	}
	return nil
}
