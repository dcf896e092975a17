package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/nettest"
)

// commandTimeout bounds one CNI command of a test.
const commandTimeout = 20 * time.Second

// node is a host for a test: a network namespace, and a mount namespace with its own /run and /var/lib.
type node struct {
	*nettest.NS
	t     *testing.T
	mount *os.File
	cache string
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{NS: nettest.New(t), t: t, cache: t.TempDir()}
	n.NS.Do(func() {
		if err := n.makeMounts(); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { _ = n.mount.Close() })
	return n
}

func (n *node) makeMounts() error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for _, dir := range []string{"/run", "/var/lib"} {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	var err error
	n.mount, err = os.Open("/proc/thread-self/ns/mnt")
	return err
}

// do runs f on the host. Goroutines that f starts are elsewhere.
func (n *node) do(f func()) {
	n.t.Helper()
	n.NS.Do(func() {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			n.t.Fatal(err)
		}
		if err := unix.Setns(int(n.mount.Fd()), unix.CLONE_NEWNS); err != nil {
			n.t.Fatal(err)
		}
		f()
	})
}

// write writes a file on the host.
func (n *node) write(path, content string) {
	n.t.Helper()
	n.do(func() {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			n.t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			n.t.Fatal(err)
		}
	})
}

// links returns the names of the host's interfaces of ours, and of the lock files.
func (n *node) links() (out []string) {
	n.t.Helper()
	for line := range strings.Lines(n.Exec("ip", "-o", "link")) {
		if name := strings.Fields(line)[1]; strings.HasPrefix(name, "cali") {
			out = append(out, strings.SplitN(name, "@", 2)[0])
		}
	}
	n.do(func() {
		entries, err := os.ReadDir(attach.LockDir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			n.t.Fatal(err)
		}
		for _, e := range entries {
			out = append(out, "lock "+e.Name())
		}
	})
	return out
}

// conf is the network configuration of a test: the plugin's own section as JSON members.
type conf struct {
	plugin  string // "": muslin
	name    string // of the network; "": hc-net
	version string // "": 1.0.0
	members string // "": the usual
}

const usual = `"ipam":{"type":"muslin-ipam"},"nodename_file_optional":true,"nodename":"node-1","capabilities":{"io.kubernetes.cri.pod-annotations":true}`

func (c conf) list(t *testing.T) *libcni.NetworkConfigList {
	t.Helper()
	for _, d := range []struct {
		s   *string
		val string
	}{{&c.plugin, "muslin"}, {&c.name, "hc-net"}, {&c.version, "1.0.0"}, {&c.members, usual}} {
		if *d.s == "" {
			*d.s = d.val
		}
	}
	list, err := libcni.NetworkConfFromBytes(fmt.Appendf(nil, `{"cniVersion":%q,"name":%q,"plugins":[{"type":%q,%s}]}`, c.version, c.name, c.plugin, c.members))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// pod is a container for a test.
type pod struct {
	*nettest.NS
	id string
	rt *libcni.RuntimeConf
}

// newPod makes the network namespace of a Kubernetes pod, or of a container that is none where name is "".
func newPod(t *testing.T, id, name string) *pod {
	t.Helper()
	p := &pod{NS: nettest.New(t), id: id}
	p.rt = &libcni.RuntimeConf{ContainerID: id, NetNS: p.Path(), IfName: "eth0"}
	if name != "" {
		p.rt.Args = [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", name}, {"K8S_POD_UID", "u-" + id}, {"K8S_POD_INFRA_CONTAINER_ID", id}}
	}
	return p
}

func (n *node) add(c conf, p *pod) (res types.Result, err error) {
	n.t.Helper()
	list := c.list(n.t)
	n.do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
		defer cancel()
		res, err = n.libcni().AddNetworkList(ctx, list, p.rt)
	})
	return res, err
}

// mustAdd returns the result in its newest form.
func (n *node) mustAdd(c conf, p *pod) *types100.Result {
	n.t.Helper()
	res, err := n.add(c, p)
	if err != nil {
		n.t.Fatalf("ADD: %v", err)
	}
	r, err := types100.GetResult(res)
	if err != nil {
		n.t.Fatal(err)
	}
	return r
}

func (n *node) del(c conf, p *pod) (err error) {
	n.t.Helper()
	list := c.list(n.t)
	n.do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
		defer cancel()
		err = n.libcni().DelNetworkList(ctx, list, p.rt)
	})
	return err
}

func (n *node) mustDel(c conf, p *pod) {
	n.t.Helper()
	if err := n.del(c, p); err != nil {
		n.t.Fatalf("DEL: %v", err)
	}
}

func (n *node) libcni() *libcni.CNIConfig {
	return libcni.NewCNIConfigWithCacheDir([]string{os.Getenv(binEnv)}, n.cache, nil)
}

// run executes a plugin without libcni, which would not pass some input on.
func (n *node) run(plugin, stdin string, env ...string) (stdout string, err error) {
	n.t.Helper()
	n.do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
		defer cancel()
		cmd := exec.CommandContext(ctx, programPath(plugin))
		cmd.Env = append(append(os.Environ(), "CNI_PATH="+os.Getenv(binEnv)), env...)
		cmd.Stdin = strings.NewReader(stdin)
		var out []byte
		out, err = cmd.Output()
		stdout = string(out)
	})
	return stdout, err
}

func programPath(plugin string) string { return filepath.Join(os.Getenv(binEnv), plugin) }

// codeOf returns the CNI code of an error.
func codeOf(err error) uint {
	var e *types.Error
	if !errors.As(err, &e) {
		return 0
	}
	return e.Code
}

// fakeAgent speaks the agent's side of the socket. It hands out addresses from a counter and keeps its endpoints in memory.
type fakeAgent struct {
	v6        bool
	onAdd     func(attach.Request, *attach.Reply) // may change the answer
	onLinked  func(attach.Linked) *attach.Error
	hangAdd   bool // never answer an ADD's first line
	hangUp    bool // close the connection instead
	hangLinks bool // never answer an ADD's second line
	stale     []attach.Stale
	status    *attach.Error
	ranges    []netip.Prefix // of the node, as Kubernetes has it

	mu       sync.Mutex
	next     netip.Addr
	pods     map[string]attach.Reply // by container ID
	requests []attach.Request
	done     sync.WaitGroup
}

// start listens on the node until the test ends.
func (a *fakeAgent) start(n *node) *fakeAgent {
	n.t.Helper()
	a.next, a.pods = netip.MustParseAddr("10.244.62.192"), map[string]attach.Reply{}
	var l net.Listener
	n.do(func() {
		err := os.MkdirAll(filepath.Dir(attach.Socket), 0o755)
		if err == nil {
			l, err = net.Listen("unix", attach.Socket)
		}
		if err != nil {
			n.t.Fatal(err)
		}
	})
	ctx, cancel := context.WithCancel(context.Background())
	a.done.Go(func() { a.accept(ctx, l) })
	n.t.Cleanup(func() {
		cancel()
		l.Close()
		a.done.Wait()
	})
	return a
}

func (a *fakeAgent) accept(ctx context.Context, l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		a.done.Go(func() {
			stop := context.AfterFunc(ctx, func() { c.Close() })
			defer stop()
			defer c.Close()
			a.answer(ctx, attach.NewConn(c))
		})
	}
}

func (a *fakeAgent) answer(ctx context.Context, c *attach.Conn) {
	var req attach.Request
	if c.Receive(&req) != nil {
		return
	}
	reply := a.handle(req)
	switch {
	case req.Verb == attach.Add && a.hangAdd:
		<-ctx.Done()
		return
	case req.Verb == attach.Add && a.hangUp:
		return
	}
	if c.Send(&reply) != nil || req.Verb != attach.Add && req.Verb != attach.Check || reply.Error != nil {
		return
	}
	var linked attach.Linked
	if c.Receive(&linked) != nil {
		return
	}
	if a.hangLinks {
		<-ctx.Done()
		return
	}
	var second attach.Reply
	if a.onLinked != nil {
		second.Error = a.onLinked(linked)
	}
	_ = c.Send(&second)
}

func (a *fakeAgent) handle(req attach.Request) attach.Reply {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.requests = append(a.requests, req)
	switch req.Verb {
	case attach.Del:
		delete(a.pods, req.ContainerID)
		return attach.Reply{}
	case attach.Check:
		return a.pods[req.ContainerID]
	case attach.Status:
		return attach.Reply{Error: a.status}
	case attach.Ranges:
		return attach.Reply{Ranges: a.ranges}
	case attach.GC:
		return attach.Reply{Stale: a.stale}
	case attach.Free:
		for _, s := range req.Stale {
			delete(a.pods, s.ContainerID)
		}
		return attach.Reply{}
	}
	reply, ok := a.pods[req.ContainerID]
	if !ok {
		reply = attach.Reply{Addrs: []netip.Addr{a.next}, MAC: req.MAC}
		if a.v6 {
			reply.Addrs = append(reply.Addrs, netip.MustParseAddr("fd00:10:244::c0"))
		}
		a.next = a.next.Next()
	}
	a.pods[req.ContainerID] = reply
	if a.onAdd != nil {
		a.onAdd(req, &reply)
	}
	return reply
}

// registered returns how many pods the agent has.
func (a *fakeAgent) registered() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.pods)
}

func (a *fakeAgent) lastRequest() attach.Request {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.requests[len(a.requests)-1]
}

func toJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b) + "\n"
}
