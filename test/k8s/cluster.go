package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The cluster's addresses. They are its own, for so is its network; node N has 172.30.0.(10+N) and fd00:172:30::(10+N).
const (
	controlIP  = "172.30.0.1"
	controlIP6 = "fd00:172:30::1"
	clusterDNS = "10.96.0.10"

	servicesV4, servicesV6 = "10.96.0.0/16", "fd00:10:96::/112"
)

// markVar is in the environment of keepers and of nodes' services, with the cluster's name. (Agents warn about variables of Muslin that they do not know.)
const markVar = "K8S_HERE"

//go:embed node.sh
var nodeScript []byte

//go:embed dns.yaml
var dnsManifest string

// options say what cluster to bring up.
type options struct {
	Nodes     int
	ProxyMode string // of kube-proxy: iptables or nftables
	Held      bool   // it ends with the process that brought it up
}

// cluster is one that is up, or about to be. Its state is a folder, its life that of the keeper.
type cluster struct {
	Name     string
	Dir      string
	Options  options
	Programs programs
	Groups   []group // below which its control groups are

	leash *os.File // of one that is held
}

// node is a machine of the cluster.
type node struct{ Name, IP, IP6 string }

func (c *cluster) nodes() []node {
	var nodes []node
	for i := 1; i <= c.Options.Nodes; i++ {
		nodes = append(nodes, node{Name: fmt.Sprintf("node%d", i), IP: fmt.Sprintf("172.30.0.%d", 10+i), IP6: fmt.Sprintf("fd00:172:30::%d", 10+i)})
	}
	return nodes
}

func (c *cluster) bin(program string) string   { return filepath.Join(c.Programs.Bin, program) }
func (c *cluster) pki() string                 { return filepath.Join(c.Dir, "pki") }
func (c *cluster) etcdDir() string             { return filepath.Join(c.Dir, "etcd") }
func (c *cluster) nodeDir(name string) string  { return filepath.Join(c.Dir, name) }
func (c *cluster) kubeconfig() string          { return filepath.Join(c.pki(), "admin.conf") }
func (c *cluster) serviceRanges() string       { return servicesV4 + "," + servicesV6 }
func (c *cluster) stateFile() string           { return filepath.Join(c.Dir, "cluster.json") }
func (c *cluster) pidFile() string             { return filepath.Join(c.Dir, "keeper.pid") }
func (c *cluster) nodePIDFile(n string) string { return filepath.Join(c.nodeDir(n), "pid") }
func (c *cluster) offFile(n string) string     { return filepath.Join(c.nodeDir(n), "off") }

// nodeDisk are the folders, of a node's own, that hold what a machine has on its disk.
func nodeDisk() []string {
	return []string{"cni-conf", "cni-bin", "var/lib/calico", "var/lib/containerd", "var/lib/kubelet", "var/log"}
}

// clusterDir is where the cluster of that name has its state, on disk.
func clusterDir(name string) (string, error) {
	cache, err := cacheDir()
	return filepath.Join(cache, "clusters", name), err
}

// open is the cluster of that name that is up.
func open(name string) (*cluster, error) {
	dir, err := clusterDir(name)
	if err != nil {
		return nil, err
	}
	c := &cluster{Dir: dir}
	b, err := os.ReadFile(c.stateFile())
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("no cluster %q is up: `up` brings one up", name)
	}
	if err != nil {
		return nil, fmt.Errorf("read cluster: %w", err)
	}
	return c, json.Unmarshal(b, c)
}

// up brings a cluster up, and returns it when its nodes are registered. They are not ready before somebody connects their pods. What is left of an earlier one of
// that name goes first.
func up(ctx context.Context, name string, o options) (*cluster, error) {
	p, err := build(ctx)
	if err != nil {
		return nil, err
	}
	if err := down(ctx, name); err != nil {
		return nil, err
	}
	dir, err := clusterDir(name)
	if err != nil {
		return nil, err
	}
	c := &cluster{Name: name, Dir: dir, Options: o, Programs: p}
	if err := errors.Join(c.prepare(), c.startKeeper()); err != nil {
		return nil, err
	}
	if err := c.waitRegistered(ctx); err != nil {
		return nil, errors.Join(err, down(context.WithoutCancel(ctx), name))
	}
	if err := c.apply(ctx, dnsManifest); err != nil {
		return nil, errors.Join(err, down(context.WithoutCancel(ctx), name))
	}
	return c, nil
}

// prepare makes the cluster's folder.
func (c *cluster) prepare() error {
	var err error
	if c.Groups, err = ownGroups(); err != nil {
		return err
	}
	dirs := []string{filepath.Join(c.Dir, "log"), c.etcdDir()}
	for _, n := range c.nodes() {
		for _, sub := range append([]string{"log", "root"}, nodeDisk()...) {
			dirs = append(dirs, filepath.Join(c.nodeDir(n.Name), sub))
		}
	}
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make cluster's folder: %w", err)
		}
	}
	state, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("encode cluster: %w", err)
	}
	return errors.Join(
		c.makePKI(),
		os.WriteFile(filepath.Join(c.Dir, "node.sh"), nodeScript, 0o644),
		os.WriteFile(c.stateFile(), state, 0o644),
	)
}

// startKeeper starts the process that the cluster lives and dies with.
func (c *cluster) startKeeper() error {
	log, err := os.Create(filepath.Join(c.Dir, "log", "keeper.log"))
	if err != nil {
		return fmt.Errorf("make log: %w", err)
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make pipe: %w", err)
	}
	defer r.Close()
	self, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("encode cluster: %w", err)
	}
	cmd := exec.Command("/proc/self/exe", string(self))
	cmd.Args[0] = keeperName
	cmd.Env = append(os.Environ(), markVar+"="+c.Name)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles, cmd.Dir = log, log, []*os.File{r}, "/"
	if !c.Options.Held {
		cmd.ExtraFiles = append(cmd.ExtraFiles, w) // it holds its own leash
	}
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start keeper: %w", err)
	}
	c.leash = w
	go func() { _ = cmd.Wait() }()
	return os.WriteFile(c.pidFile(), []byte(strconv.Itoa(cmd.Process.Pid)), 0o644)
}

// down ends the cluster of that name, whatever state it is in, and removes every trace of it. No cluster is no error.
func down(ctx context.Context, name string) error {
	c, err := open(name)
	if err != nil {
		dir, err := clusterDir(name)
		if err != nil {
			return err
		}
		return os.RemoveAll(dir) // of one that never got so far as to have a process
	}
	if pid, err := c.keeperPID(); err == nil {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			return fmt.Errorf("end keeper: %w", err)
		}
	}
	if err := waitFor(ctx, 30*time.Second, "the cluster's processes to end", func() error {
		if pid, err := c.keeperPID(); err == nil {
			return fmt.Errorf("keeper %d is still there", pid)
		}
		return nil
	}); err != nil {
		return err
	}
	if err := waitFor(ctx, 10*time.Second, "the cluster's control groups to go", c.removeGroups); err != nil {
		return err
	}
	return os.RemoveAll(c.Dir)
}

// keeperPID is the keeper's number if it lives. A process that has got its number after it has not its mark.
func (c *cluster) keeperPID() (int, error) {
	pid, err := c.marked(c.pidFile())
	if err != nil {
		return 0, fmt.Errorf("cluster %s is not up: %w", c.Name, err)
	}
	return pid, nil
}

// nodePID is the number, outside, of a node's first process.
func (c *cluster) nodePID(name string) (int, error) {
	pid, err := c.marked(c.nodePIDFile(name))
	if err != nil {
		return 0, fmt.Errorf("%s of cluster %s is not up: %w", name, c.Name, err)
	}
	return pid, nil
}

// marked reads a process's number from a file and returns it if that is a living process of this cluster.
func (c *cluster) marked(file string) (int, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", file, err)
	}
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid)) // empty for a zombie
	if err != nil {
		return 0, err
	}
	if !strings.Contains("\x00"+string(env), "\x00"+markVar+"="+c.Name+"\x00") {
		return 0, fmt.Errorf("process %d is not of it", pid)
	}
	return pid, nil
}

// command is one that runs in the control plane's network, with kubectl's configuration.
func (c *cluster) command(ctx context.Context, args ...string) (*exec.Cmd, error) {
	pid, err := c.keeperPID()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{fmt.Sprintf("--net=/proc/%d/ns/net", pid), "--"}, args...)...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.kubeconfig())
	return cmd, nil
}

// kubectl is kubectl as the cluster's administrator.
func (c *cluster) kubectl(ctx context.Context, args ...string) (*exec.Cmd, error) {
	return c.command(ctx, append([]string{c.bin("kubectl")}, args...)...)
}

// apply hands objects to Kubernetes.
func (c *cluster) apply(ctx context.Context, objects string) error {
	cmd, err := c.kubectl(ctx, "apply", "-f", "-")
	if err != nil {
		return err
	}
	cmd.Stdin = strings.NewReader(objects)
	_, err = output(cmd, nil)
	return err
}

// onNode is a command that runs as one of the node's own.
func (c *cluster) onNode(ctx context.Context, name string, args ...string) (*exec.Cmd, error) {
	pid, err := c.nodePID(name)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"-t", strconv.Itoa(pid), "-m", "-u", "-i", "-n", "-p", "-C", "--root", "--wd=/", "--"}, args...)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin:/kubernetes:/opt/cni/bin", "HOME=/root"}
	return cmd, nil
}

// output runs a command and returns what it printed; its error has what it said.
func output(cmd *exec.Cmd, err error) (string, error) {
	if err != nil {
		return "", err
	}
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, said.String())
	}
	return string(out), nil
}

// waitRegistered returns when every node has said to the API server that it is there.
func (c *cluster) waitRegistered(ctx context.Context) error {
	return waitFor(ctx, 5*time.Minute, "the nodes to register", func() error {
		out, err := output(c.kubectl(ctx, "get", "nodes", "-o", "name"))
		if err != nil {
			return err
		}
		if n := len(strings.Fields(out)); n < c.Options.Nodes {
			return fmt.Errorf("%d of %d nodes are there", n, c.Options.Nodes)
		}
		return nil
	})
}

// waitFor tries until it works; the error of a limit that is reached has the last try's.
func waitFor(ctx context.Context, limit time.Duration, what string, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w: %w", what, ctx.Err(), err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// show runs a command with our own streams.
func show(cmd *exec.Cmd, err error, in io.Reader, out, errs io.Writer) error {
	if err != nil {
		return err
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, errs
	return cmd.Run()
}
