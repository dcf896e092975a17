package calicowriter

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/muslin-cni/muslin/pkg/api"
)

// Container is what the runtime asks Calico's plugin to connect.
type Container struct {
	Network string
	ID      string
	Pod     string // name in namespace default; "": the orchestrator is not Kubernetes
}

// Handle is the container's handle ID.
func (c Container) Handle() string { return api.PodHandle(c.Network, c.ID) }

// endpoint is the container's on a node.
func (c Container) endpoint(node string) *api.WorkloadEndpoint {
	w := &api.WorkloadEndpoint{Spec: api.WorkloadEndpointSpec{Orchestrator: "cni", Node: node, ContainerID: c.ID, Endpoint: "eth0", InterfaceName: "cali" + c.ID, Profiles: []string{c.Network}}}
	if c.Pod != "" {
		w.Spec.Orchestrator, w.Spec.Pod = "k8s", c.Pod
	}
	w.Metadata.Namespace, w.Metadata.Name = "default", api.WorkloadEndpointName(w.Spec)
	w.Metadata.Labels = map[string]string{api.LabelNamespace: "default", api.LabelOrchestrator: w.Spec.Orchestrator}
	return w
}

// Add is the plugin's ADD: an address, then the endpoint, then the network's profile if it is missing. For a pod that has an endpoint another
// address is taken all the same; a container of no orchestrator keeps those of the endpoint. If the endpoint cannot be written, what was
// allocated is released.
func (w Writer) Add(c Container) *Sequence {
	return w.sequence("ADD "+c.ID, func(r *run) error {
		if err := r.ready(); err != nil {
			return err
		}
		e := c.endpoint(r.Node)
		was, err := get[api.WorkloadEndpoint](r, api.KeyOf(e))
		if ignore(err, errMissing) != nil {
			return err
		}
		addrs, err := r.addresses(c, was.value)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			e.Spec.IPNetworks = append(e.Spec.IPNetworks, api.HostPrefix(a))
		}
		if was.value != nil {
			e.Metadata = was.value.Metadata
		}
		api.Created(e, r.UUID(), r.Now())
		if _, err := put(r, was, e); err != nil {
			if errors.Is(err, errAbandoned) {
				return err
			}
			return errors.Join(err, ignore(r.releaseByHandle(c.Handle()), errMissing))
		}
		r.addrs = addrs
		return r.profile(c.Network)
	})
}

func (r *run) ready() error {
	info, err := get[api.ClusterInformation](r, (*api.ClusterInformation)(nil).KindOf().Key("", "default"))
	if err == nil && !info.value.Ready() {
		err = errors.New("the cluster is currently not ready to process requests")
	}
	return err
}

// addresses are those of the endpoint that there is, or a new one.
func (r *run) addresses(c Container, was *api.WorkloadEndpoint) ([]netip.Addr, error) {
	if was != nil && c.Pod == "" {
		var out []netip.Addr
		for _, n := range was.Spec.IPNetworks {
			out = append(out, n.Addr())
		}
		return out, nil
	}
	attrs := map[string]string{api.AttrNode: r.Node, api.AttrTimestamp: r.Now().UTC().String()}
	if c.Pod != "" {
		attrs[api.AttrPod], attrs[api.AttrNamespace] = c.Pod, "default"
	}
	a, err := r.autoAssign(request{c.Handle(), attrs, api.UseWorkload})
	return []netip.Addr{a}, err
}

// profile creates the network's own.
func (r *run) profile(network string) error {
	key := (*api.Profile)(nil).KindOf().Key("", network)
	if _, err := get[api.Profile](r, key); !errors.Is(err, errMissing) {
		return err
	}
	p := &api.Profile{}
	p.Metadata.Name = network
	api.Created(p, r.UUID(), r.Now())
	_, err := create(r, key, p)
	return ignore(err, errExists)
}

// Del is the plugin's DEL: for a pod the endpoint first and then the addresses, else the other way around. An endpoint that is another
// container's by now stays.
func (w Writer) Del(c Container) *Sequence {
	return w.sequence("DEL "+c.ID, func(r *run) error {
		if err := r.ready(); err != nil {
			return err
		}
		steps := []func(Container) error{r.deleteEndpoint, r.releaseContainer}
		if c.Pod == "" {
			steps[0], steps[1] = steps[1], steps[0]
		}
		for _, step := range steps {
			if err := step(c); err != nil {
				return err
			}
		}
		return nil
	})
}

func (r *run) releaseContainer(c Container) error {
	return ignore(r.releaseByHandle(c.Handle()), errMissing)
}

// endpointTries is how often the deletion of an endpoint is tried.
const endpointTries = 6

func (r *run) deleteEndpoint(c Container) error {
	key := api.KeyOf(c.endpoint(r.Node))
	for range endpointTries {
		e, err := get[api.WorkloadEndpoint](r, key)
		if err != nil {
			return ignore(err, errMissing)
		}
		if e.value.Spec.ContainerID != c.ID {
			return nil
		}
		if err = remove(r, e); !errors.Is(err, errConflict) {
			return ignore(err, errMissing)
		}
	}
	return fmt.Errorf("error deleting endpoint: endpoint was modified before it could be deleted: %w", errConflict)
}

// Tunnel gives the node a VXLAN tunnel address: what its handle holds is released first, then one is taken, then the Node says so.
func (w Writer) Tunnel() *Sequence {
	return w.sequence("tunnel address of "+w.Node, func(r *run) error {
		node, err := get[api.Node](r, api.NodeKey(r.Node))
		if err != nil {
			return err
		}
		if node.value.Spec.IPv4VXLANTunnelAddr.IsValid() {
			return nil
		}
		id := api.VXLANHandle(r.Node, false)
		if err := ignore(r.releaseByHandle(id), errMissing); err != nil {
			return err
		}
		a, err := r.autoAssign(request{id, map[string]string{api.AttrNode: r.Node, api.AttrType: api.AttrTypeVXLAN}, api.UseTunnel})
		if err != nil {
			return err
		}
		next := *node.value
		next.Spec.IPv4VXLANTunnelAddr = a
		if _, err := update(r, node, &next); err != nil {
			if errors.Is(err, errAbandoned) {
				return err
			}
			return errors.Join(err, ignore(r.releaseByHandle(id), errMissing))
		}
		r.addrs = []netip.Addr{a}
		return nil
	})
}
