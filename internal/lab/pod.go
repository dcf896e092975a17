package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	podNamespace          = "default"
	annotationsCapability = "io.kubernetes.cri.pod-annotations"
	cniTimeout            = 100 * time.Second // the plugin's own is 90
)

// PodSpec says what pod to add.
type PodSpec struct {
	Name        string // a DNS label, unique in the lab
	Node        string
	Labels      map[string]string
	Annotations map[string]string
	IPv6Only    bool // no IPv4 address, in a dual-stack lab
}

func (p PodSpec) validate(s *state) error {
	if len(p.Name) > 63 || !regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`).MatchString(p.Name) {
		return fmt.Errorf("pod name %q: want a DNS label: lower case letters, digits and '-', at most 63", p.Name)
	}
	if s.Options.NoAgents {
		return errors.New("this lab was brought up without agents, so it cannot have pods")
	}
	if old, err := s.pod(p.Name); err == nil {
		return fmt.Errorf("pod %s exists already, on %s: choose another name or `muslin-lab pod rm %s`", p.Name, old.Node, p.Name)
	}
	if p.IPv6Only && !s.Options.DualStack {
		return errors.New("this lab has no IPv6: `muslin-lab up --dual-stack` makes one that has")
	}
	_, err := s.node(p.Node)
	return err
}

// AddPod makes a network namespace on the node and attaches it by the CNI plugin, called through libcni as a container runtime
// does. Where it fails it leaves nothing behind, unless the plugin's DEL fails too; then the pod stays listed, for RemovePod.
func (l *Lab) AddPod(ctx context.Context, spec PodSpec) (Pod, error) {
	pod := Pod{Name: spec.Name, Node: spec.Node, ContainerID: randomHex(32), UID: newUID(), Labels: spec.Labels, Annotations: spec.Annotations, IPv6Only: spec.IPv6Only}
	var at *state
	err := l.update(ctx, func(s *state) error { // first the name, so that whatever is left after kill -9 can be removed
		if err := spec.validate(s); err != nil {
			return err
		}
		s.Pods, at = append(s.Pods, pod), s
		return nil
	})
	if err != nil {
		return Pod{}, err
	}
	if err := l.attach(ctx, at, &pod); err != nil {
		cleanup := l.RemovePod(context.WithoutCancel(ctx), pod.Name)
		return Pod{}, errors.Join(fmt.Errorf("add pod %s to %s: %w", pod.Name, pod.Node, err), cleanup)
	}
	return pod, l.update(ctx, func(s *state) error {
		listed, err := s.pod(pod.Name)
		if err != nil {
			return err
		}
		*listed = pod
		return nil
	})
}

// RemovePod detaches the pod by the CNI plugin and removes its network namespace. If DEL fails the pod stays, to be removed again.
func (l *Lab) RemovePod(ctx context.Context, name string) error {
	s, err := l.load()
	if err != nil {
		return err
	}
	pod, err := s.pod(name)
	if err != nil {
		return err
	}
	if err := l.detach(ctx, s, pod); err != nil {
		return fmt.Errorf("remove pod %s from %s: %w", name, pod.Node, err)
	}
	return l.update(ctx, func(s *state) error {
		s.Pods = slices.DeleteFunc(s.Pods, func(p Pod) bool { return p.Name == name })
		return nil
	})
}

// attach makes the pod's namespace and fills in what ADD gave it.
func (l *Lab) attach(ctx context.Context, s *state, pod *Pod) error {
	ctx, cancel := context.WithTimeout(ctx, cniTimeout)
	defer cancel()
	pl, err := placeOfNode(s, pod.Node)
	if err != nil {
		return err
	}
	defer pl.close()
	if err := pl.run(func() error { return makeNetns(pod.netns()) }); err != nil {
		return err
	}
	return pl.run(func() error {
		call, err := newCNICall(s, pod)
		if err != nil {
			return err
		}
		began := time.Now()
		result, err := call.cni.AddNetworkList(ctx, call.list, call.conf)
		if err != nil {
			return fmt.Errorf("CNI ADD: %w", err)
		}
		pod.Took = time.Since(began)
		return pod.take(result)
	})
}

// detach is safe to repeat, whatever part of the pod still exists.
func (l *Lab) detach(ctx context.Context, s *state, pod *Pod) error {
	ctx, cancel := context.WithTimeout(ctx, cniTimeout)
	defer cancel()
	pl, err := placeOfNode(s, pod.Node)
	if err != nil {
		return err
	}
	defer pl.close()
	return pl.run(func() error {
		call, err := newCNICall(s, pod)
		if err != nil {
			return err
		}
		if err := call.cni.DelNetworkList(ctx, call.list, call.conf); err != nil {
			return fmt.Errorf("CNI DEL: %w", err)
		}
		return removeNetns(pod.netns())
	})
}

// netns is the pod's network namespace as its node sees it.
func (p *Pod) netns() string { return filepath.Join(netnsDir, p.Name) }

// place is where the pod's processes run: in its own network and the node's files.
func (p *Pod) place(s *state) (*place, error) {
	n, err := s.node(p.Node)
	if err != nil {
		return nil, err
	}
	pl, err := openPlace(n.Holder)
	if err != nil {
		return nil, fmt.Errorf("enter %s: %w", p.Node, err)
	}
	_ = pl.net.Close() // replaced
	pl.net, err = os.Open(n.path(p.netns()))
	if err != nil {
		pl.close()
		return nil, fmt.Errorf("enter pod %s: %w", p.Name, err)
	}
	pl.hostname = p.Name
	return pl, nil
}

func placeOfNode(s *state, name string) (*place, error) {
	n, err := s.node(name)
	if err != nil {
		return nil, err
	}
	pl, err := openPlace(n.Holder)
	if err != nil {
		return nil, fmt.Errorf("enter %s: %w: run `muslin-lab down` and `muslin-lab up`", name, err)
	}
	return pl, nil
}

// makeNetns makes a network namespace with lo up and names it, as `ip netns add` does. The calling thread is in it afterwards.
func makeNetns(path string) error {
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		return fmt.Errorf("name network namespace: %w", err)
	}
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("make network namespace: %w", err)
	}
	if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind network namespace: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}

// removeNetns ends the namespace that makeNetns, finished or not, left at path.
func removeNetns(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount network namespace: %w", err)
	}
	return removeFile(path)
}

// cniCall is what libcni needs to know. It is made and used in the pod's node.
type cniCall struct {
	cni  *libcni.CNIConfig
	list *libcni.NetworkConfigList
	conf *libcni.RuntimeConf
}

func newCNICall(s *state, pod *Pod) (cniCall, error) {
	list, err := libcni.NetworkConfFromFile(filepath.Join(cniConfDir, cniList))
	if err != nil {
		return cniCall{}, fmt.Errorf("read CNI configuration: %w", err)
	}
	if err := injectLabels(list, pod.Labels); err != nil {
		return cniCall{}, err
	}
	if pod.IPv6Only {
		only := map[string]any{"ipam": map[string]any{"type": "muslin-ipam", "assign_ipv4": "false", "assign_ipv6": "true"}}
		if err := inject(list, only); err != nil {
			return cniCall{}, err
		}
	}
	conf := &libcni.RuntimeConf{
		ContainerID: pod.ContainerID,
		NetNS:       pod.netns(),
		IfName:      "eth0",
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", podNamespace},
			{"K8S_POD_NAME", pod.Name},
			{"K8S_POD_UID", pod.UID},
		},
	}
	if len(pod.Annotations) > 0 {
		conf.CapabilityArgs = map[string]any{annotationsCapability: pod.Annotations}
	}
	return cniCall{libcni.NewCNIConfigWithCacheDir([]string{s.Bin}, cniCache, newPluginExec(s)), list, conf}, nil
}

// injectLabels puts the pod's labels where the plugin reads them: args.cni.labels of its configuration.
func injectLabels(list *libcni.NetworkConfigList, labels map[string]string) error {
	if len(labels) == 0 {
		return nil
	}
	type label struct {
		Key   string `json:"key"`
		Value string `json:"value"`
	}
	var all []label
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		all = append(all, label{key, labels[key]})
	}
	return inject(list, map[string]any{"args": map[string]any{"cni": map[string]any{"labels": all}}})
}

// inject sets keys of every plugin's configuration.
func inject(list *libcni.NetworkConfigList, keys map[string]any) error {
	for i, plugin := range list.Plugins {
		with, err := libcni.InjectConf(plugin, keys)
		if err != nil {
			return fmt.Errorf("add a pod's own keys to the CNI configuration: %w", err)
		}
		list.Plugins[i] = with
	}
	return nil
}

// pluginExec starts plugins with the lab's mark and a search path that does not depend on who runs the lab.
type pluginExec struct {
	invoke.DefaultExec
	env []string
}

func newPluginExec(s *state) *pluginExec {
	return &pluginExec{
		DefaultExec: invoke.DefaultExec{RawExec: &invoke.RawExec{}},
		env:         []string{idVar + "=" + s.ID, "PATH=" + searchPath(s.Bin)},
	}
}

// ExecPlugin is invoke.Exec's. Where a variable is given twice the last one holds.
func (e *pluginExec) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	return e.DefaultExec.ExecPlugin(ctx, path, stdin, slices.Concat(environ, e.env))
}

// take records the first address of each family.
func (p *Pod) take(result types.Result) error {
	r, err := types100.NewResultFromResult(result)
	if err != nil {
		return fmt.Errorf("read CNI result: %w", err)
	}
	for _, ip := range r.IPs {
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		switch addr = addr.Unmap(); {
		case !ok:
		case addr.Is4() && !p.Addr.IsValid():
			p.Addr = addr
		case addr.Is6() && !p.Addr6.IsValid():
			p.Addr6 = addr
		}
	}
	if len(p.Addrs()) == 0 {
		return errors.New("read CNI result: it has no address")
	}
	return nil
}

// newUID is a random UUID, as Kubernetes gives pods (RFC 9562, section 5.4).
func newUID() string {
	h := []byte(randomHex(16))
	h[12] = '4'
	h[16] = "89ab"[h[16]%4]
	return fmt.Sprintf("%s-%s-%s-%s-%s", h[:8], h[8:12], h[12:16], h[16:20], h[20:])
}
