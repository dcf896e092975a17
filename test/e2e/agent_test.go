package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/pkg/api"
)

func agentLog(t *testing.T, l *lab.Lab, node string) string {
	t.Helper()
	var b bytes.Buffer
	if err := l.Log(node, &b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestSecondAgentOnAHostIsRefused(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 1, lab.Direct })
	var out bytes.Buffer
	err := l.Exec(t.Context(), "node-1", lab.Command{Args: []string{"muslin-node"}, Stdout: &out, Stderr: &out})
	if err == nil || !strings.Contains(out.String(), "another agent runs on this host") {
		t.Errorf("a second agent ended with %v: %s", err, out.String())
	}
	addPod(t, l, "later", "node-1") // by the first agent's socket
}

func TestHostWithoutIP6tablesGoesOnWithIPv4(t *testing.T) {
	nettest.Need(t, "iptables-nft")
	path := t.TempDir()
	for _, name := range []string{"iptables-nft", "iptables-nft-save"} {
		program, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(program, filepath.Join(path, name)); err != nil {
			t.Fatal(err)
		}
	}
	l := up(t, func(o *lab.Options) {
		o.Nodes, o.Mode = 2, lab.VXLAN
		o.AgentEnv = []string{"PATH=" + path, "FELIX_IPV6SUPPORT=true", "CALICO_IPV6POOL_CIDR=fd00:9::/48"}
	})
	if r := check(t, l); !r.OK {
		t.Errorf("these ways fail:\n%s", strings.Join(failing(r), "\n"))
	}
	if n := strings.Count(agentLog(t, l, "node-1"), "ip6tables-nft is not installed"); n != 1 {
		t.Errorf("the agent says %d times what is missing, want 1", n)
	}
}

func TestRoutesComeBackWhileEtcdIsAway(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 2, lab.Direct })
	if r := check(t, l); !r.OK {
		t.Fatalf("these ways fail:\n%s", strings.Join(failing(r), "\n"))
	}
	routes := func() string { return run(t, l, "node-1", "ip", "route") }
	want := routes()
	if err := l.StopEtcd(t.Context()); err != nil {
		t.Fatal(err)
	}
	run(t, l, "node-1", "ip", "route", "flush", "proto", "80")
	nettest.Eventually(t, func() error {
		if d := cmp.Diff(want, routes()); d != "" {
			return fmt.Errorf("routes differ: %s", d)
		}
		return nil
	})
}

func TestBrokenObjectsAreNamedAndTheRestGoesOn(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 2, lab.VXLAN })
	const resources = "/calico/resources/v3/projectcalico.org/"
	const blocks = "/calico/ipam/v2/assignment/ipv4/block/"
	for _, kind := range []string{"ippools", "nodes", "workloadendpoints/default", "clusterinformations", "felixconfigurations", "profiles", "tiers"} {
		put(t, l, resources+kind+"/broken", "{")
		put(t, l, resources+kind+"/empty", "null")
		put(t, l, resources+kind+"/mistyped", `{"metadata": {"name": 7}, "spec": []}`)
	}
	put(t, l, resources+"ippools/host-bits", `{"kind": "IPPool", "metadata": {"name": "host-bits"}, "spec": {"cidr": "10.9.0.1/16"}}`)
	put(t, l, resources+"nodes/node-9", `{"kind": "Node", "metadata": {"name": "node-9"}}`)
	put(t, l, blocks+"192.168.0.0-26", "{")
	put(t, l, blocks+"rubbish", "null")
	put(t, l, blocks+"192.168.1.0-26", `{"cidr": "192.168.1.0/26", "affinity": "host:node-9", "allocations": [0, 99, -5], "unallocated": [7, 9999], "attributes": [null]}`)
	put(t, l, "/calico/ipam/v2/host/node-1/ipv4/block/192.168.0.0-26", "{")

	named := []string{
		resources + "ippools/broken", resources + "nodes/empty", resources + "tiers/mistyped", resources + "workloadendpoints/default/broken",
		"IPPool(host-bits)", "Node(node-9)", blocks + "192.168.0.0-26", blocks + "rubbish",
	}
	nettest.Eventually(t, func() error {
		for _, name := range named {
			if n := strings.Count(agentLog(t, l, "node-1"), `what="`+name); n != 1 {
				return fmt.Errorf("%s was named %d times", name, n)
			}
		}
		return nil
	})
	addPod(t, l, "before", "node-1")
	for _, node := range []string{"node-1", "node-2"} {
		if err := l.StopAgent(t.Context(), node); err != nil {
			t.Fatal(err)
		}
		if err := l.StartAgent(t.Context(), node); err != nil {
			t.Fatal(err)
		}
	}
	addPod(t, l, "after", "node-1")
	if r := check(t, l); !r.OK {
		t.Errorf("these ways fail:\n%s", strings.Join(failing(r), "\n"))
	}
	if text := agentLog(t, l, "node-1"); strings.Contains(text, "round failed") {
		t.Error("a round failed")
	}
}

func TestLockedDatastoreChangesNothing(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 2, lab.VXLAN })
	if r := check(t, l); !r.OK {
		t.Fatalf("these ways fail:\n%s", strings.Join(failing(r), "\n"))
	}
	before := kernelState(t, l, "node-1")
	change := func(key, from, to string) {
		t.Helper()
		value := values(t, l, key)[key]
		if !strings.Contains(value, from) {
			t.Fatalf("%s does not hold %s: %s", key, from, value)
		}
		put(t, l, key, strings.Replace(value, from, to, 1))
	}
	cluster, pool := api.ResourcesRoot+"clusterinformations/default", api.ResourcesRoot+"ippools/default-ipv4-ippool"
	change(cluster, `"datastoreReady":true`, `"datastoreReady":false`)
	change(pool, `"natOutgoing":true`, `"natOutgoing":false`)
	put(t, l, api.ResourcesRoot+"tiers/the-end", "nonsense") // when this is named, what came before has been seen
	nettest.Eventually(t, func() error {
		if !strings.Contains(agentLog(t, l, "node-1"), "tiers/the-end") {
			return errors.New("the agent has not seen the last of it")
		}
		return nil
	})
	if d := cmp.Diff(before, kernelState(t, l, "node-1")); d != "" {
		t.Errorf("the kernel changed while the datastore was locked (-before +after):\n%s", d)
	}
	change(cluster, `"datastoreReady":false`, `"datastoreReady":true`)
	nettest.Eventually(t, func() error {
		rules, err := try(t, l, "node-1", "iptables-save")
		if err == nil && strings.Contains(rules, "cali-nat-outgoing") {
			err = errors.New("pods are masqueraded still")
		}
		return err
	})
}

func TestEtcdThatLostItsDataCostsNoPodItsNetwork(t *testing.T) {
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 2, lab.VXLAN })
	if r := check(t, l); !r.OK {
		t.Fatalf("these ways fail:\n%s", strings.Join(failing(r), "\n"))
	}
	before := kernelState(t, l, "node-1")
	put(t, l, "/calico/", gone)
	nettest.Eventually(t, func() error {
		if !strings.Contains(agentLog(t, l, "node-1"), "seems to have lost its data") {
			return errors.New("the agent does not say that data are lost")
		}
		return nil
	})
	if d := cmp.Diff(before, kernelState(t, l, "node-1")); d != "" {
		t.Errorf("the kernel differs (-before +after):\n%s", d)
	}
}
