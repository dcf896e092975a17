package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/muslin-cni/muslin/internal/hostside"
	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/pkg/api"
)

// runtime is a container runtime for one network of a test, on one node of a lab.
type runtime struct {
	t    *testing.T
	lab  *lab.Lab
	node string
	bin  string
	list *libcni.NetworkConfigList
	// Its cache, as runtimes have it; a second one knows of no container, so that libcni calls no DEL before GC.
	cache, empty string
}

// newRuntime has a network whose ADDs do not wait for an agent where none runs.
func newRuntime(t *testing.T, l *lab.Lab, node, bin, network string) *runtime {
	t.Helper()
	list, err := libcni.NetworkConfFromBytes(fmt.Appendf(nil,
		`{"cniVersion":"1.1.0","name":%q,"plugins":[{"type":"muslin","etcd_endpoints":%q,"policy_wait":"none","ipam":{"type":"muslin-ipam"}}]}`, network, labEtcd))
	if err != nil {
		t.Fatal(err)
	}
	return &runtime{t: t, lab: l, node: node, bin: bin, list: list, cache: t.TempDir(), empty: t.TempDir()}
}

// container is one of the runtime's. Two of them may be of one pod.
type container struct {
	id, pod string
	conf    *libcni.RuntimeConf
}

// container makes a network namespace for a container; remove ends it.
func (r *runtime) container(id, pod string) container {
	r.t.Helper()
	run(r.t, r.lab, r.node, "ip", "netns", "add", id)
	return container{id, pod, &libcni.RuntimeConf{
		ContainerID: id, NetNS: filepath.Join("/run/netns", id), IfName: "eth0",
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", pod}, {"K8S_POD_UID", "u-" + id}},
	}}
}

func (r *runtime) remove(c container) {
	r.t.Helper()
	run(r.t, r.lab, r.node, "ip", "netns", "del", c.id)
}

// unplugged waits until the host has lost its end of a container's interface: the kernel takes a namespace down after the command that
// removed it has ended.
func (r *runtime) unplugged(c container) {
	r.t.Helper()
	dev := hostside.InterfaceName("default", c.pod, c.id)
	nettest.Eventually(r.t, func() error {
		if out, err := try(r.t, r.lab, r.node, "ip", "link", "show", "dev", dev); err == nil {
			return fmt.Errorf("still there: %s", out)
		}
		return nil
	})
}

// marked is how the runtime starts plugins: with more variables, of which of two the last one counts.
type marked struct {
	invoke.DefaultExec
	env []string
}

// ExecPlugin is invoke.Exec's.
func (m *marked) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	return m.DefaultExec.ExecPlugin(ctx, path, stdin, slices.Concat(environ, m.env))
}

// call runs one command on the node.
func (r *runtime) call(cache string, env []string, do func(context.Context, *libcni.CNIConfig) error) error {
	r.t.Helper()
	return r.lab.Within(r.node, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		exec := &marked{invoke.DefaultExec{RawExec: &invoke.RawExec{}}, env}
		return do(ctx, libcni.NewCNIConfigWithCacheDir([]string{r.bin}, cache, exec))
	})
}

func (r *runtime) add(c container, env ...string) (res *types100.Result, err error) {
	r.t.Helper()
	err = r.call(r.cache, env, func(ctx context.Context, cni *libcni.CNIConfig) error {
		got, err := cni.AddNetworkList(ctx, r.list, c.conf)
		if err == nil {
			res, err = types100.NewResultFromResult(got)
		}
		return err
	})
	return res, err
}

func (r *runtime) del(c container, env ...string) error {
	r.t.Helper()
	return r.call(r.cache, env, func(ctx context.Context, cni *libcni.CNIConfig) error { return cni.DelNetworkList(ctx, r.list, c.conf) })
}

func (r *runtime) check(c container) error {
	r.t.Helper()
	return r.call(r.cache, nil, func(ctx context.Context, cni *libcni.CNIConfig) error {
		return cni.CheckNetworkList(ctx, r.list, c.conf)
	})
}

func (r *runtime) status() error {
	r.t.Helper()
	return r.call(r.cache, nil, func(ctx context.Context, cni *libcni.CNIConfig) error { return cni.GetStatusNetworkList(ctx, r.list) })
}

// gc names the containers that live.
func (r *runtime) gc(live []string, env ...string) error {
	r.t.Helper()
	args := &libcni.GCArgs{}
	for _, id := range live {
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: id, IfName: "eth0"})
	}
	return r.call(r.empty, env, func(ctx context.Context, cni *libcni.CNIConfig) error { return cni.GCNetworkList(ctx, r.list, args) })
}

// orphan is what a container of the network has in etcd.
type orphan struct {
	Container string
	Handle    bool
	Endpoint  string // its key; "": none
	Addrs     int    // that blocks give to the handle
	Counted   int    // that the handle counts
}

// whole reports whether it is all that an ADD leaves: then DEL, GC, and the agent at its start, can take it away.
func (o orphan) whole() bool {
	return o.Handle && o.Endpoint != "" && o.Addrs > 0 && o.Addrs == o.Counted
}

// leftOf lists what a network's containers have in etcd, by container.
func leftOf(t *testing.T, l *lab.Lab, network string) map[string]orphan {
	t.Helper()
	out := map[string]orphan{}
	edit := func(id string, change func(*orphan)) {
		o := out[id]
		o.Container = id
		change(&o)
		out[id] = o
	}
	for key, value := range values(t, l, api.Root) { // all at one moment
		switch {
		case strings.HasPrefix(key, api.HandlesRoot+network+"."):
			var h api.Handle
			decode(t, key, value, &h)
			edit(strings.TrimPrefix(key, api.HandlesRoot+network+"."), func(o *orphan) {
				o.Handle = true
				for _, n := range h.Block {
					o.Counted += n
				}
			})
		case strings.HasPrefix(key, api.ResourcesRoot+"workloadendpoints/"):
			var w api.WorkloadEndpoint
			decode(t, key, value, &w)
			if slices.Contains(w.Spec.Profiles, network) {
				edit(w.Spec.ContainerID, func(o *orphan) { o.Endpoint = key })
			}
		case strings.HasPrefix(key, api.BlocksRoot):
			var b api.Block
			decode(t, key, value, &b)
			for _, id := range owners(b, network) {
				edit(id, func(o *orphan) { o.Addrs++ })
			}
		}
	}
	return out
}

// owners lists the network's containers that hold addresses of a block, each as often as it does.
func owners(b api.Block, network string) (out []string) {
	for _, at := range b.Allocation {
		if at == nil || b.Attributes[*at].HandleID == nil {
			continue
		}
		if id, ok := strings.CutPrefix(*b.Attributes[*at].HandleID, network+"."); ok {
			out = append(out, id)
		}
	}
	return out
}
