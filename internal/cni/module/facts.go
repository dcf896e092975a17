package module

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/muslin-cni/muslin/internal/apiserver"
	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/cni/netconf"
	"github.com/muslin-cni/muslin/internal/kubeconv"
	"github.com/muslin-cni/muslin/internal/register"
)

// factsTimeout bounds what is asked of Kubernetes for one pod.
const factsTimeout = 5 * time.Second

// podFacts asks Kubernetes about pods as the configuration says; nil where it says nothing of Kubernetes. What of that cannot be used is an error
// of whoever asks: a DEL needs none of it.
func podFacts(conf *netconf.Module) register.PodFacts {
	k, p := conf.Kubernetes, conf.Policy
	settings := apiserver.Settings{
		Kubeconfig: k.Kubeconfig, Server: cmp.Or(p.APIRoot, k.APIRoot), Token: p.Token, CertFile: p.CertFile, KeyFile: p.KeyFile, CAFile: p.CAFile,
	}
	if settings.Kubeconfig == "" && settings.Server == "" {
		return nil
	}
	return func(ctx context.Context, ref attach.Pod) (register.Pod, error) {
		ctx, cancel := context.WithTimeout(ctx, factsTimeout)
		defer cancel()
		c, err := apiserver.NewFrom(settings)
		if err != nil {
			return register.Pod{}, err
		}
		defer c.Close()
		return read(ctx, c, ref)
	}
}

func read(ctx context.Context, c *apiserver.Client, ref attach.Pod) (register.Pod, error) {
	var pod corev1.Pod
	var namespace corev1.Namespace
	home := "/api/v1/namespaces/" + url.PathEscape(ref.Namespace)
	err := c.Get(ctx, home+"/pods/"+url.PathEscape(ref.Name), &pod)
	if errors.Is(err, apiserver.ErrNotFound) {
		return register.Pod{}, fmt.Errorf("%w: it was deleted, or is not there yet", err)
	}
	if err == nil && !kubeconv.IsPod(&pod, ref.UID) {
		err = fmt.Errorf("the API server has another pod of that name: its UID is %s, and the runtime's is %s", pod.UID, ref.UID)
	}
	if err == nil {
		err = c.Get(ctx, home, &namespace)
	}
	if err != nil {
		return register.Pod{}, err
	}
	return register.PodOf(&pod, &namespace), nil
}
