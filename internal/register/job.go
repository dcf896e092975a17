package register

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
)

// job is one command on its way.
type job struct {
	req         attach.Request
	endpoint    api.WorkloadEndpoint // as it shall be, but for the addresses
	handleKey   string
	endpointKey string       // "": there is none
	profileKey  string       // of the network's own profile; "": it has none
	brought     []netip.Addr // the pod's addresses, where none is allocated
	floating    []netip.Addr // at which it is to be reached too
	plugged     []string     // directions whose bandwidth a plugin keeps
	exchange    bool         // an older container of the pod gives its addresses up for this one
	wants       []ipam.Request
	asHolder    bool // only the machine that has the node's name may do it
	frees       bool // it gives nothing out
	recalls     bool // it undoes an ADD, and what is remembered of that will do
	plan        func(context.Context, *ipam.Plan, *job, prior) error

	ctx   context.Context // the caller's: a job lives as long as the call that it stands for
	fresh bool            // it is planned on etcd itself, and not on what is in memory
	met   int             // how often it has met another's write
	shown *store.KV       // its handle, as a refused transaction has shown it; nil: none has

	// The outcome, which belongs to whoever carries the job out until done is closed.
	uses   map[string]bool // the keys that its part of the transaction compares
	fenced bool            // nothing was there, and no ADD can come late
	addrs  []netip.Prefix
	mac    string
	err    error
	done   chan struct{}
}

// end is the job's outcome.
func (j *job) end(err error) {
	j.err = err
	close(j.done)
}

func endAll(jobs []*job, err error) {
	for _, j := range jobs {
		j.end(err)
	}
}

// prior is what etcd held before a job. Entries with Rev 0 do not exist.
type prior struct {
	handle   store.Entry[api.Handle]
	endpoint store.Entry[api.WorkloadEndpoint]
	profile  store.Entry[api.Profile]
	err      error // why any of them cannot be decoded
}

// belongsTo reports whether the endpoint exists and is that container's.
func belongsTo(e store.Entry[api.WorkloadEndpoint], container string) bool {
	return e.Exists() && e.Value.Spec.ContainerID == container
}

// newJob works out whom a request is about.
func newJob(node string, req attach.Request) (*job, error) {
	if err := check(req); err != nil {
		return nil, err
	}
	s := api.WorkloadEndpointSpec{Orchestrator: "cni", Node: node, ContainerID: req.ContainerID, Endpoint: req.IfName}
	namespace := "default"
	if req.Pod.Namespace != "" && req.Pod.Name != "" {
		s.Orchestrator, s.Pod, namespace = "k8s", req.Pod.Name, req.Pod.Namespace
	}
	j := &job{req: req}
	j.endpoint.Spec = s
	j.endpoint.Metadata = api.ObjectMeta{Name: api.WorkloadEndpointName(s), Namespace: namespace}
	j.endpointKey = api.KeyOf(&j.endpoint)
	j.handleKey = api.HandleKey(api.PodHandle(req.Network, req.ContainerID))
	return j, nil
}

// check refuses names that would not make the keys that they should.
func check(req attach.Request) error {
	for _, f := range []struct {
		what, value string
		code        uint
		optional    bool
	}{
		{"the network's name", req.Network, attach.CodeBadConfig, false},
		{"CNI_CONTAINERID", req.ContainerID, attach.CodeBadEnv, false},
		{"CNI_IFNAME", req.IfName, attach.CodeBadEnv, false},
		{"K8S_POD_NAMESPACE", req.Pod.Namespace, attach.CodeBadEnv, true},
		{"K8S_POD_NAME", req.Pod.Name, attach.CodeBadEnv, true},
	} {
		if f.value == "" && f.optional {
			continue
		}
		if f.value == "" || strings.ContainsAny(f.value, "/ \t\r\n\x00") || strings.HasPrefix(f.value, "-") || strings.HasSuffix(f.value, "-") {
			return &attach.Error{Code: f.code, Msg: fmt.Sprintf("read request: %s is %q", f.what, f.value), Details: "it must be set, and have no slash, no white space and no dash at either end"}
		}
	}
	return nil
}

// newAdd completes the endpoint that the request asks for, and its wishes for addresses.
func (h *Handler) newAdd(ctx context.Context, req attach.Request) (*job, error) {
	j, err := newJob(h.cfg.Node, req)
	if err != nil {
		return nil, err
	}
	if err := h.awaitReady(ctx, req); err != nil {
		return nil, err
	}
	pod, err := h.podFacts(ctx, req)
	if err != nil {
		return nil, err
	}
	return h.complete(j, pod)
}

// newAllocation is newAdd for a main plugin of another project, which has read annotations by itself: Kubernetes is asked for what selects
// pools alone.
func (h *Handler) newAllocation(ctx context.Context, req attach.Request) (*job, error) {
	j, err := newJob(h.cfg.Node, req)
	if err != nil {
		return nil, err
	}
	pod := Pod{Annotations: req.Annotations}
	if req.PolicyType == "k8s" && h.cfg.PodFacts != nil {
		told, err := h.podFacts(ctx, req)
		if err != nil {
			return nil, err
		}
		pod.NamespaceLabels = told.NamespaceLabels
	}
	return h.complete(j, pod)
}

// complete makes of a job what the request and the pod ask for.
func (h *Handler) complete(j *job, pod Pod) (*job, error) {
	req := j.req
	w, err := wishesOf(req, pod)
	if err != nil {
		return nil, err
	}
	j.plan, j.asHolder = h.planAdd, true
	if w.mac != "" {
		j.req.MAC = w.mac
	}
	j.mac, j.brought, j.floating, j.exchange, j.plugged = j.req.MAC, w.brought, w.floating, w.exchange, w.plugged
	if req.PolicyType == "" {
		profile := (*api.Profile)(nil).KindOf()
		j.profileKey = profile.Key("", req.Network)
	}
	s, m := &j.endpoint.Spec, &j.endpoint.Metadata
	s.Profiles, s.InterfaceName, s.AllowSpoofed, s.QoSControls = pod.Profiles, req.HostIf, w.spoofed, w.qos
	s.Ports, s.ServiceAccountName = pod.Ports, pod.ServiceAccount
	m.Labels, m.GenerateName = map[string]string{}, pod.GenerateName
	for k, v := range pod.Labels {
		m.Labels[k] = v
	}
	m.Labels[api.LabelNamespace], m.Labels[api.LabelOrchestrator] = m.Namespace, s.Orchestrator
	if len(j.brought) == 0 {
		j.wants = h.wants(j, w, pod.NamespaceLabels)
	}
	return j, nil
}

// podFacts returns what is known of the pod: from Kubernetes if the network's policy says so, else from the request.
func (h *Handler) podFacts(ctx context.Context, req attach.Request) (Pod, error) {
	switch {
	case req.PolicyType == "":
		return Pod{Labels: req.Labels, Annotations: req.Annotations, Profiles: []string{req.Network}}, nil
	case req.PolicyType != "k8s":
		return Pod{}, &attach.Error{Code: attach.CodeBadConfig, Msg: fmt.Sprintf("read network %s: policy.type %q is not known", req.Network, req.PolicyType), Details: `use "k8s", or leave it out`}
	case h.cfg.PodFacts == nil:
		return Pod{}, &attach.Error{Code: attach.CodeBadConfig, Msg: fmt.Sprintf("read network %s: policy.type is \"k8s\", and this node has no access to Kubernetes for the facts of pods", req.Network), Details: "give it a kubeconfig, or leave policy.type out"}
	case req.Pod.Namespace == "" || req.Pod.Name == "":
		return Pod{}, &attach.Error{Code: attach.CodeBadEnv, Msg: fmt.Sprintf("read network %s: policy.type is \"k8s\", and CNI_ARGS names no pod", req.Network), Details: "the runtime sets K8S_POD_NAMESPACE and K8S_POD_NAME there; leave policy.type out for containers that are no pods"}
	}
	pod, err := h.cfg.PodFacts(ctx, req.Pod)
	if err != nil {
		return Pod{}, &failed{attach.Error{Code: attach.CodeTryAgain, Msg: fmt.Sprintf("read pod %s/%s from Kubernetes: %v", req.Pod.Namespace, req.Pod.Name, err), Details: "try again"}, err}
	}
	return pod, nil
}

// wants lists one request for each family. With no family asked for it is IPv4.
func (h *Handler) wants(j *job, w wishes, namespace map[string]string) []ipam.Request {
	attrs := map[string]string{api.AttrNode: h.cfg.Node, api.AttrTimestamp: h.cfg.Now().UTC().String()}
	if j.endpoint.Spec.Pod != "" {
		attrs[api.AttrPod], attrs[api.AttrNamespace] = j.endpoint.Spec.Pod, j.endpoint.Metadata.Namespace
	}
	var out []ipam.Request
	for _, f := range []struct {
		v6, asked bool
		pools     []string
	}{{false, w.v4, w.pools4}, {true, w.v6, w.pools6}} {
		if !f.asked {
			continue
		}
		r := ipam.Request{
			Handle: strings.TrimPrefix(j.handleKey, api.HandlesRoot), Attrs: attrs, V6: f.v6, Use: api.UseWorkload, Pools: f.pools, Namespace: namespace,
		}
		if i := slices.IndexFunc(w.exact, func(a netip.Addr) bool { return a.Is6() == f.v6 }); i >= 0 {
			r.Addr, r.Pools = w.exact[i], nil // the address alone says which pool
		}
		out = append(out, r)
	}
	return out
}
