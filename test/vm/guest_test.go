package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
)

// Need does the asking.
func TestVMHasWhatOtherMachinesMayLack(t *testing.T) {
	nettest.Need(t, "vm", "dummy", "ipip", "vrf", "wireguard", "vxlan", "macvlan", "set", "iptables-nft", "iptables-legacy", "ipset")
}

func TestVMFiltersByBothKindsOfIptables(t *testing.T) {
	nettest.Need(t, "vm")
	for _, program := range []string{"iptables-nft", "iptables-legacy"} {
		ns := nettest.New(t)
		ns.Exec("ipset", "create", "some", "hash:net")
		rule := []string{"FORWARD", "-m", "set", "--match-set", "some", "src", "-m", "comment", "--comment", "probe", "-j", "DROP"}
		ns.Exec(append([]string{program, "-A"}, rule...)...)
		ns.Exec(append([]string{program, "-C"}, rule...)...)
	}
}

// What the guest's own root keeps from this machine, its share must too.
func TestVMCannotWriteToTheMachineAroundIt(t *testing.T) {
	nettest.Need(t, "vm")
	dir := t.TempDir()
	if err := unix.Mount(rootTag, dir, "virtiofs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	for _, folder := range []string{"/", "/tmp", "/run", "/dev/shm"} {
		file := filepath.Join(dir, folder, markFile)
		if err := os.WriteFile(file, nil, 0o600); err == nil {
			t.Errorf("wrote to %s of the machine around this one", folder)
		}
	}
}

func TestVMLeavesNoZombies(t *testing.T) {
	nettest.Need(t, "vm")
	// The shell ends at once, and the first process inherits its child.
	out := nettest.New(t).Exec("sh", "-c", "sleep 0.1 >/dev/null & echo $!")
	var pid int
	if _, err := fmt.Sscan(out, &pid); err != nil {
		t.Fatal(err)
	}
	nettest.Eventually(t, func() error {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil {
			return fmt.Errorf("process %d is still there", pid)
		}
		return nil
	})
}

func TestVMRunsALabInWhichAllPodsMeet(t *testing.T) {
	nettest.Need(t, "vm")
	ctx, cancel := context.WithTimeout(t.Context(), nettest.Patience(time.Minute))
	defer cancel()
	bin, err := filepath.Abs("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	l, err := lab.Up(ctx, lab.Config{Dir: "/run/muslin-vm-test", Bin: bin, Options: lab.Defaults(), Progress: func(s string) { t.Log(s) }, Guarded: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), nettest.Patience(time.Minute))
		defer cancel()
		if err := l.Down(ctx); err != nil {
			t.Error(err)
		}
	})
	for n := range lab.Defaults().Nodes {
		if _, err := l.AddPod(ctx, lab.PodSpec{Name: fmt.Sprintf("pod-%d", n+1), Node: fmt.Sprintf("node-%d", n+1)}); err != nil {
			t.Fatal(err)
		}
	}
	report, err := l.Check(ctx)
	if err != nil {
		t.Fatal(err)
	}
	failed := make(map[string]string)
	for _, p := range report.Pairs {
		if !p.OK {
			failed[p.From+" to "+p.To] = p.Problem
		}
	}
	if diff := cmp.Diff(map[string]string{}, failed); diff != "" || len(report.Pairs) == 0 {
		t.Fatalf("of %d ways these fail:\n%s", len(report.Pairs), diff)
	}
}
