package kube

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

// Resource is a kind of object by its name in paths.
type Resource string

// The resources that a node asks for.
const (
	Pods           Resource = "pods"
	Namespaces     Resource = "namespaces"
	Nodes          Resource = "nodes"
	Secrets        Resource = "secrets"
	Services       Resource = "services"
	EndpointSlices Resource = "endpointslices"
)

// object is an empty object of the resource.
func (r Resource) object() runtime.Object {
	switch r {
	case Pods:
		return &corev1.Pod{}
	case Namespaces:
		return &corev1.Namespace{}
	case Nodes:
		return &corev1.Node{}
	case Secrets:
		return &corev1.Secret{}
	case Services:
		return &corev1.Service{}
	default:
		return &discoveryv1.EndpointSlice{}
	}
}

func (r Resource) list() runtime.Object {
	switch r {
	case Pods:
		return &corev1.PodList{}
	case Namespaces:
		return &corev1.NamespaceList{}
	case Nodes:
		return &corev1.NodeList{}
	case Secrets:
		return &corev1.SecretList{}
	case Services:
		return &corev1.ServiceList{}
	default:
		return &discoveryv1.EndpointSliceList{}
	}
}

// ErrNotConfigured says that nothing tells where the API server is.
var ErrNotConfigured = errors.New("no Kubernetes API server is known: set KUBECONFIG, or run in a pod with a service account")

// Access says how to reach an API server, and as whom.
type Access struct {
	Config    *rest.Config
	Namespace string // of whoever asks; where nothing says it, kube-system
}

// podNamespace is where the kubelet tells a pod its namespace.
const podNamespace = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// AccessFrom reads a kubeconfig file, or, where path is "", what the kubelet gives to pods. The error is ErrNotConfigured where there is neither.
func AccessFrom(path string, env func(name string) string) (Access, error) {
	a := Access{Namespace: metav1.NamespaceSystem}
	if path != "" {
		loaded := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(&clientcmd.ClientConfigLoadingRules{ExplicitPath: path}, &clientcmd.ConfigOverrides{})
		conf, err := loaded.ClientConfig()
		if err != nil {
			return Access{}, fmt.Errorf("read KUBECONFIG %s: %w", path, err)
		}
		a.Config = conf
		if raw, err := loaded.RawConfig(); err == nil && raw.Contexts[raw.CurrentContext] != nil {
			a.Namespace = cmp.Or(raw.Contexts[raw.CurrentContext].Namespace, a.Namespace)
		}
		return a, nil
	}
	if env("KUBERNETES_SERVICE_HOST") == "" {
		return Access{}, ErrNotConfigured
	}
	conf, err := rest.InClusterConfig()
	if errors.Is(err, rest.ErrNotInCluster) || errors.Is(err, os.ErrNotExist) {
		return Access{}, ErrNotConfigured
	}
	if err != nil {
		return Access{}, fmt.Errorf("read the pod's service account: %w", err)
	}
	a.Config = conf
	if name, err := os.ReadFile(podNamespace); err == nil {
		a.Namespace = strings.TrimSpace(string(name))
	}
	return a, nil
}

// Server is an API server. It may be used concurrently. It knows the few types that a node needs and no others: client-go's own clients
// would load all.
type Server struct {
	core, discovery rest.Interface
	params          runtime.ParameterCodec
}

// Open prepares the connection to an API server. Nothing is sent yet.
func Open(a Access) (*Server, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, discoveryv1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("prepare Kubernetes' types: %w", err)
		}
	}
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	s := &Server{params: runtime.NewParameterCodec(scheme)}
	client, err := rest.HTTPClientFor(a.Config)
	if err != nil {
		return nil, fmt.Errorf("prepare the connection to Kubernetes: %w", err)
	}
	open := func(path string, v schema.GroupVersion) (rest.Interface, error) {
		c := rest.CopyConfig(a.Config)
		c.GroupVersion, c.APIPath = &v, path
		c.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
		c.ContentType, c.AcceptContentTypes = runtime.ContentTypeProtobuf, runtime.ContentTypeProtobuf+","+runtime.ContentTypeJSON
		c.UserAgent = "muslin-node"
		c.QPS = -1 // the server itself says when it is too much (API priority and fairness); a pod is not to wait for our own guess
		return rest.RESTClientForConfigAndClient(c, client)
	}
	if s.core, err = open("/api", corev1.SchemeGroupVersion); err == nil {
		s.discovery, err = open("/apis", discoveryv1.SchemeGroupVersion)
	}
	if err != nil {
		return nil, fmt.Errorf("prepare the connection to Kubernetes: %w", err)
	}
	return s, nil
}

func (s *Server) client(r Resource) rest.Interface {
	if r == EndpointSlices {
		return s.discovery
	}
	return s.core
}

// listTimeout bounds the answer to a list of a whole resource.
const listTimeout = time.Minute

// Lists reads and follows the objects of a resource that an Only lets through.
func (s *Server) Lists(r Resource, o Only) cache.ListerWatcher {
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
			ctx, cancel := context.WithTimeout(ctx, listTimeout)
			defer cancel()
			out := r.list()
			opts.FieldSelector = o.Fields
			return out, s.client(r).Get().Namespace(o.Namespace).Resource(string(r)).VersionedParams(&opts, s.params).Do(ctx).Into(out)
		},
		WatchFuncWithContext: func(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
			opts.FieldSelector, opts.Watch = o.Fields, true
			return s.client(r).Get().Namespace(o.Namespace).Resource(string(r)).VersionedParams(&opts, s.params).Watch(ctx)
		},
	}
}

// Get reads one object. namespace is "" for a resource without.
func (s *Server) Get(ctx context.Context, r Resource, namespace, name string) (runtime.Object, error) {
	out := r.object()
	return out, s.client(r).Get().NamespaceIfScoped(namespace, namespace != "").Resource(string(r)).Name(name).Do(ctx).Into(out)
}

// PatchNode merges conditions into those of a Node's status.
func (s *Server) PatchNode(ctx context.Context, name string, conditions ...corev1.NodeCondition) error {
	body, err := ConditionsPatch(conditions)
	if err != nil {
		return err
	}
	return s.core.Patch(types.StrategicMergePatchType).Resource(string(Nodes)).Name(name).SubResource("status").Body(body).Do(ctx).Error()
}

// ConditionsPatch is the strategic merge patch of a Node's status that sets conditions, each by its type, and leaves others.
func ConditionsPatch(conditions []corev1.NodeCondition) ([]byte, error) {
	return json.Marshal(map[string]any{"status": map[string]any{"conditions": conditions}})
}
