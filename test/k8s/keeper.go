package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// keeperName is what the keeper is called as, so that a test's program can be one too.
const keeperName = "k8s-keeper"

// The keeper's further descriptors.
const (
	leashFile = 3 // its end of file is the end of whoever holds the cluster
	nodeGo    = 3 // of a node's first process: a line says that its network device is there
)

// keep makes the namespaces that this process was started in a cluster's, and keeps them. It does not return: its end is the cluster's.
func keep() {
	var c cluster
	err := json.Unmarshal([]byte(os.Args[1]), &c)
	if err == nil {
		err = c.begin()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "keeper:", err)
		os.Exit(1)
	}
	if _, err := os.NewFile(leashFile, "leash").Read(make([]byte, 1)); err != nil { // a cluster that stays has a leash that nobody lets go
		fmt.Fprintln(os.Stderr, "keeper:", err)
	}
	c.end()
	os.Exit(0)
}

// begin starts everything; nothing of it is ready yet.
func (c *cluster) begin() error {
	unix.CloseOnExec(leashFile)
	unix.CloseOnExec(leashFile + 1)
	if os.Getpid() != 1 {
		return errors.New("only `k8s up` starts keepers: this is not the first process of a PID namespace")
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", c.etcdDir(), "tmpfs", 0, ""); err != nil { // where fsync costs nothing
		return fmt.Errorf("mount etcd's folder: %w", err)
	}
	bridge, err := c.layFabric()
	if err != nil {
		return err
	}
	for _, p := range c.controlPlane() {
		go c.run(p)
	}
	for _, n := range c.nodes() {
		if err := c.makeGroups(n.Name); err != nil {
			return err
		}
		go c.keepNode(n, bridge)
	}
	return nil
}

// end removes what the kernel would leave of this process: control groups.
func (c *cluster) end() {
	_ = unix.Kill(-1, unix.SIGKILL) // all in this PID namespace but us
	for {
		if _, err := unix.Wait4(-1, nil, 0, nil); errors.Is(err, unix.ECHILD) {
			break
		}
	}
	_ = c.removeGroups() // `down` finds what is left
}

// layFabric makes the bridge that joins control plane and nodes, and returns its index.
func (c *cluster) layFabric() (int, error) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return 0, fmt.Errorf("find lo: %w", err)
	}
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
	if err := errors.Join(netlink.LinkSetUp(lo), netlink.LinkAdd(bridge), netlink.LinkSetUp(bridge)); err != nil {
		return 0, fmt.Errorf("make bridge: %w", err)
	}
	for _, prefix := range []string{controlIP + "/24", controlIP6 + "/64"} {
		addr, err := netlink.ParseAddr(prefix)
		if err != nil {
			return 0, fmt.Errorf("parse %s: %w", prefix, err)
		}
		addr.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(bridge, addr); err != nil {
			return 0, fmt.Errorf("give the bridge %s: %w", prefix, err)
		}
	}
	if err := routeToPods(bridge.Index); err != nil {
		return 0, err
	}
	// Frames between nodes are not this namespace's iptables' business. Without br_netfilter there is nothing to switch off.
	for _, name := range []string{"iptables", "ip6tables"} {
		_ = os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-"+name, []byte("0"), 0o644)
	}
	return bridge.Index, nil
}

// routeToPods sends what the API server has for pods to the first node, as a control plane that runs no pods has its routes from outside. That node knows on.
func routeToPods(bridge int) error {
	for pods, node := range map[string]string{podsV4: "172.30.0.11", podsV6: "fd00:172:30::11"} {
		to, err := netlink.ParseIPNet(pods)
		if err != nil {
			return fmt.Errorf("parse %s: %w", pods, err)
		}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: bridge, Dst: to, Gw: net.ParseIP(node)}); err != nil {
			return fmt.Errorf("route %s: %w", pods, err)
		}
	}
	return nil
}

// keepNode boots a node, and boots it again whenever it has ended, unless its power is off.
func (c *cluster) keepNode(n node, bridge int) {
	for {
		if _, err := os.Stat(c.offFile(n.Name)); err == nil {
			time.Sleep(200 * time.Millisecond)
			continue
		}
		fmt.Fprintln(os.Stderr, "keeper:", n.Name, "ended:", c.runNode(n, bridge))
		time.Sleep(time.Second)
	}
}

// runNode starts a node's first process in namespaces of its own, lets it go on once its network device is plugged in, and returns at its end.
func (c *cluster) runNode(n node, bridge int) error {
	log, err := os.OpenFile(filepath.Join(c.nodeDir(n.Name), "log", "node.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("make log: %w", err)
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make pipe: %w", err)
	}
	defer r.Close()
	defer w.Close()
	cmd := exec.Command("bash", filepath.Join(c.Dir, "node.sh"))
	cmd.Env, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles, cmd.Dir = c.nodeEnv(n), log, log, []*os.File{r}, "/"
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true,
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start its first process: %w", err)
	}
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: n.Name, MasterIndex: bridge, Flags: unix.IFF_UP}, PeerName: "eth0", PeerNamespace: netlink.NsPid(cmd.Process.Pid)}
	if err := netlink.LinkAdd(veth); err != nil {
		return errors.Join(fmt.Errorf("plug in: %w", err), w.Close(), cmd.Wait()) // without its line it ends
	}
	_, err = fmt.Fprintln(w, "go")
	return errors.Join(err, cmd.Wait())
}

// nodeEnv is what node.sh knows of its node.
func (c *cluster) nodeEnv(n node) []string {
	return []string{
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin", markVar + "=" + c.Name, "NODE=" + n.Name, "IP=" + n.IP, "IP6=" + n.IP6,
		"GATEWAY=" + controlIP, "GATEWAY6=" + controlIP6, "STATE=" + c.nodeDir(n.Name), "KUBERNETES=" + c.Programs.Bin, "IMAGES=" + c.Programs.Images,
		"PKI=" + c.pki(), "PROXY_MODE=" + c.Options.ProxyMode, "CLUSTER_DNS=" + clusterDNS,
	}
}

// service is a program that is started again whenever it ends.
type service struct {
	name string
	args []string
}

// controlPlane are the services beside the nodes.
func (c *cluster) controlPlane() []service {
	pki := func(name string) string { return filepath.Join(c.pki(), name) }
	etcd := "https://" + controlIP + ":2379"
	return []service{
		{"etcd", []string{"etcd", "--data-dir=" + filepath.Join(c.etcdDir(), "data"), "--log-outputs=stderr",
			"--listen-client-urls=" + etcd, "--advertise-client-urls=" + etcd, "--listen-peer-urls=http://127.0.0.1:2380",
			"--client-cert-auth", "--trusted-ca-file=" + pki("etcd/etcd-ca"), "--cert-file=" + pki("etcd/etcd-cert"), "--key-file=" + pki("etcd/etcd-key")}},
		{"kube-apiserver", []string{c.bin("kube-apiserver"), "--etcd-servers=" + etcd, "--etcd-prefix=/registry",
			"--etcd-cafile=" + pki("etcd/etcd-ca"), "--etcd-certfile=" + pki("etcd-client/etcd-cert"), "--etcd-keyfile=" + pki("etcd-client/etcd-key"),
			"--advertise-address=" + controlIP, "--secure-port=6443", "--allow-privileged=true",
			"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
			"--client-ca-file=" + pki("ca.crt"), "--tls-cert-file=" + pki("apiserver.crt"), "--tls-private-key-file=" + pki("apiserver.key"),
			"--kubelet-client-certificate=" + pki("apiserver-kubelet.crt"), "--kubelet-client-key=" + pki("apiserver-kubelet.key"), "--kubelet-preferred-address-types=InternalIP",
			"--service-account-issuer=https://kubernetes.default.svc.cluster.local", "--service-account-key-file=" + pki("accounts.crt"), "--service-account-signing-key-file=" + pki("accounts.key"),
			"--requestheader-client-ca-file=" + pki("ca.crt"), "--requestheader-allowed-names=front-proxy", "--requestheader-username-headers=X-Remote-User",
			"--requestheader-group-headers=X-Remote-Group", "--requestheader-extra-headers-prefix=X-Remote-Extra-",
			"--proxy-client-cert-file=" + pki("front-proxy.crt"), "--proxy-client-key-file=" + pki("front-proxy.key"),
			"--service-cluster-ip-range=" + c.serviceRanges()}},
		{"kube-controller-manager", []string{c.bin("kube-controller-manager"), "--kubeconfig=" + pki("controller-manager.conf"), "--leader-elect=false",
			"--use-service-account-credentials=true", "--service-account-private-key-file=" + pki("accounts.key"), "--root-ca-file=" + pki("ca.crt"),
			"--allocate-node-cidrs=false", "--service-cluster-ip-range=" + c.serviceRanges()}},
		{"kube-scheduler", []string{c.bin("kube-scheduler"), "--kubeconfig=" + pki("scheduler.conf"), "--leader-elect=false"}},
	}
}

// run keeps a service running, and its output in a file, for as long as this process lives.
func (c *cluster) run(s service) {
	log, err := os.OpenFile(filepath.Join(c.Dir, "log", s.name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		fmt.Fprintln(os.Stderr, "keeper:", err)
		return
	}
	for {
		cmd := exec.CommandContext(context.Background(), s.args[0], s.args[1:]...)
		cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, "/"
		fmt.Fprintf(log, "keeper: %s\nkeeper: it ended: %v\n", strings.Join(s.args, " "), cmd.Run())
		time.Sleep(time.Second)
	}
}
