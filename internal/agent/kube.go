package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/config"
	"github.com/muslin-cni/muslin/internal/kube"
	"github.com/muslin-cni/muslin/internal/register"
	"github.com/muslin-cni/muslin/internal/startup"
)

// openCluster prepares to follow Kubernetes, if the environment says where it is, and returns how to ask for facts of pods; nil where it does not. An
// access that cannot be used stops nothing but the pods whose network wants such facts.
func (a *Agent) openCluster() register.PodFacts {
	server, namespace, err := openServer(a.cfg, a.env)
	switch {
	case errors.Is(err, kube.ErrNotConfigured):
		return nil
	case err != nil:
		a.log.Warn("Kubernetes cannot be asked", "error", err)
		return func(context.Context, attach.Pod) (register.Pod, error) { return register.Pod{}, err }
	}
	a.cluster = kube.New(kube.Config{API: server, Name: kubeName(a.cfg, a.node), Namespace: namespace, Log: a.log})
	a.guard.services.from = a.cluster
	if a.bgp != nil {
		a.bgp.kube = a.cluster
	}
	return factsFrom(a.cluster)
}

// kubeName is the node's name in Kubernetes.
func kubeName(cfg config.Node, node string) string { return cmp.Or(cfg.K8sNodeRef, node) }

func openServer(cfg config.Node, env config.Env) (server *kube.Server, namespace string, err error) {
	access, err := kube.AccessFrom(cfg.Kubeconfig, env)
	if err != nil {
		return nil, "", err
	}
	server, err = kube.Open(access)
	return server, access.Namespace, err
}

// factsFrom answers from what is followed.
func factsFrom(n *kube.Node) register.PodFacts {
	return func(ctx context.Context, ref attach.Pod) (register.Pod, error) {
		pod, namespace, err := n.Pod(ctx, ref)
		if err != nil {
			return register.Pod{}, err
		}
		return register.PodOf(pod, namespace), nil
	}
}

// membersChanged receives when the endpoints of services have changed that policies name; nil where there is no Kubernetes.
func (a *Agent) membersChanged() <-chan struct{} {
	if a.cluster == nil {
		return nil
	}
	return a.cluster.MembersChanged()
}

// sayTimeout bounds one attempt to tell Kubernetes something.
const sayTimeout = 10 * time.Second

// sayNetwork tells Kubernetes that pods on this node have a network, once they have, and tries until it is told or ctx ends.
func (a *Agent) sayNetwork(ctx context.Context) error {
	if a.cfg.Backend == config.None {
		return nil
	}
	select {
	case <-ctx.Done():
		return nil
	case <-a.isUp:
	}
	for retry := (backoff{}); ; {
		err := within(ctx, sayTimeout, func(ctx context.Context) error { return a.cluster.SayNetwork(ctx, true) })
		if err == nil || ctx.Err() != nil {
			return nil
		}
		if retry.wait == 0 {
			a.log.Warn("tell Kubernetes that the node is up; it is tried again", "error", err)
		}
		retry.next()
		select {
		case <-ctx.Done():
			return nil
		case <-retry.due():
			retry.fired()
		}
	}
}

func within(ctx context.Context, limit time.Duration, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return do(ctx)
}

// sayNetworkDown tells Kubernetes that pods on this node will have no network, where the environment says where it is. It tries for ten seconds.
func sayNetworkDown(ctx context.Context, cfg config.Node, env config.Env) error {
	server, _, err := openServer(cfg, env)
	if errors.Is(err, kube.ErrNotConfigured) || cfg.Backend == config.None {
		return nil
	}
	if err != nil {
		return err
	}
	node, err := startup.NodeName(cfg, env)
	if err != nil {
		return fmt.Errorf("tell Kubernetes: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, sayTimeout)
	defer cancel()
	for {
		err := kube.SayNetwork(ctx, server, kubeName(cfg, node), false)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(time.Second):
		}
	}
}
