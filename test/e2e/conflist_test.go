package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
)

// chained is a host's list for Calico with two of the CNI project's plugins after it. What a runtime would put in for a pod
// (the port mapping, the rates) stands in it.
const chained = `{
	"name": "k8s-pod-network", "cniVersion": "1.0.0",
	"plugins": [
		{"type": "calico", "log_level": "info", "etcd_endpoints": "` + labEtcd + `", "nodename": "node-1", "ipam": {"type": "calico-ipam"}},
		{"type": "portmap", "snat": true, "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}},
		{"type": "bandwidth", "ingressRate": 8000000, "ingressBurst": 8000000, "egressRate": 8000000, "egressBurst": 8000000}
	]
}`

// hostOfCalico is a folder with our programs under Calico's names, and the CNI project's plugins beside them.
func hostOfCalico(t *testing.T) string {
	t.Helper()
	built, bin := programs(t), t.TempDir()
	for _, name := range []string{"muslin", "muslin-ipam", "muslin-node", "muslin-lab"} {
		if err := os.Symlink(filepath.Join(built, name), filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, program := range map[string]string{"calico": "muslin", "calico-ipam": "muslin-ipam"} {
		if err := os.Symlink(program, filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := nettest.ReferencePlugins(bin); err != nil {
		t.Fatal(err)
	}
	return bin
}

func TestPluginsChainedAfterCalicosNameServeThePod(t *testing.T) {
	nettest.Need(t, "root", "tc")
	o := lab.Defaults()
	o.Nodes = 1
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	l, err := lab.Up(ctx, lab.Config{Dir: fmt.Sprintf("/run/muslin-e2e-%d-chained", os.Getpid()), Bin: hostOfCalico(t), Options: o, Guarded: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if t.Failed() {
			logs(t, l, o.Nodes)
		}
		if err := l.Down(ctx); err != nil {
			t.Errorf("take the lab down: %v", err)
		}
	})
	run(t, l, "node-1", "sh", "-c", "echo '"+chained+"' >/etc/cni/net.d/10-muslin.conflist")
	pod := addPod(t, l, "web", "node-1")
	serve(t, l, pod.Name)

	if got := greeting(t, l, "172.30.1.1:8080"); got != "hello" {
		t.Errorf("through the host's port the pod says %q", got)
	}
	if got := run(t, l, "node-1", "tc", "qdisc"); strings.Count(got, "tbf") != 2 || !strings.Contains(got, "dev cali") {
		t.Errorf("queueing disciplines are\n%s\nwant one on the pod's host side and one on its mirror", got)
	}
	if err := l.RemovePod(t.Context(), pod.Name); err != nil {
		t.Fatal(err)
	}
	if got := run(t, l, "node-1", "tc", "qdisc") + run(t, l, "node-1", "ip", "link"); strings.Contains(got, "tbf") || strings.Contains(got, " cali") || strings.Contains(got, "bwp") {
		t.Errorf("left after DEL:\n%s", got)
	}
	if got := run(t, l, "node-1", "iptables-save", "-t", "nat"); strings.Contains(got, "8080") {
		t.Errorf("left after DEL:\n%s", got)
	}
}

// serve greets whoever connects to the pod's port 80, until the test ends.
func serve(t *testing.T, l *lab.Lab, pod string) {
	t.Helper()
	var ln net.Listener
	err := l.WithinPod(pod, func() (err error) {
		ln, err = net.Listen("tcp", ":80")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "hello")
			_ = c.Close()
		}
	}()
}

// greeting is what a host outside hears at an address.
func greeting(t *testing.T, l *lab.Lab, addr string) string {
	t.Helper()
	var heard []byte
	err := l.Within("outside", func() error {
		c, err := net.DialTimeout("tcp", addr, 5*time.Second)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			return err
		}
		heard, err = io.ReadAll(c)
		return err
	})
	if err != nil {
		t.Error(err)
	}
	return string(heard)
}
