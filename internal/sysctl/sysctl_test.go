package sysctl

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/nettest"
)

func open(t *testing.T, root string) *Table {
	t.Helper()
	x, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := x.Close(); err != nil {
			t.Error(err)
		}
	})
	return x
}

func TestSettingsRoundTripOnTheKernel(t *testing.T) {
	ns := nettest.New(t)
	nettest.Pair(ns, "cali0", ns, "cali1")
	x := open(t, Root)
	index := ns.Index("cali0")
	key := func(path string) kernel.SysctlKey {
		return kernel.SysctlKey{Path: strings.ReplaceAll(path, "DEV", "cali0"), Index: index}
	}
	want := map[kernel.SysctlKey]string{
		key("net/ipv4/conf/DEV/proxy_arp"):    "1",
		key("net/ipv4/conf/DEV/rp_filter"):    "1",
		key("net/ipv4/neigh/DEV/proxy_delay"): "0",
		{Path: "net/ipv4/ip_forward"}:         "1",
	}
	ns.Do(func() {
		if err := x.Apply(t.Context(), kernel.Diff(nil, want)); err != nil {
			t.Error(err)
		}
		got, err := x.Read(t.Context(), slices.Collect(maps.Keys(want)))
		if err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	})
	if out := ns.Exec("cat", "/proc/sys/net/ipv4/conf/cali0/proxy_arp"); out != "1\n" {
		t.Errorf("proxy_arp is %q", out)
	}
}

// A runtime makes /proc/sys read-only in a container, and mounts the host's settings of the network as the manifest says.
func TestSettingsAreWrittenThroughTheHostsMountOfAContainer(t *testing.T) {
	ns := nettest.New(t)
	root := filepath.Join(t.TempDir(), Root)
	if err := os.MkdirAll(root+"/net", 0o755); err != nil {
		t.Fatal(err)
	}
	change := kernel.Diff(nil, map[kernel.SysctlKey]string{{Path: "net/ipv4/ip_forward"}: "1"})
	ns.Do(func() {
		err := errors.Join(
			unix.Unshare(unix.CLONE_NEWNS),
			unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
			unix.Mount(Root+"/net", root+"/net", "", unix.MS_BIND, ""),
			unix.Mount(Root, Root, "", unix.MS_BIND, ""),
			unix.Mount("", Root, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""),
		)
		if err != nil {
			t.Error(err)
			return
		}
		if err := open(t, Root).Apply(t.Context(), change); !errors.Is(err, unix.EROFS) || !strings.Contains(err.Error(), HostRoot) {
			t.Errorf("a container's own: error %v, want one that names %s", err, HostRoot)
		}
		if err := open(t, root).Apply(t.Context(), change); err != nil {
			t.Error(err)
		}
	})
	if out := ns.Exec("cat", "/proc/sys/net/ipv4/ip_forward"); out != "1\n" {
		t.Errorf("ip_forward is %q", out)
	}
}

func TestFreshTableReadsWhatItIsAskedFor(t *testing.T) {
	ns := nettest.New(t)
	x := open(t, Root)
	ns.Do(func() {
		if got, err := x.List(t.Context()); err != nil || len(got) != 0 {
			t.Errorf("a fresh table lists %v, %v", got, err)
		}
		here, missing := kernel.SysctlKey{Path: "net/ipv4/ip_forward"}, kernel.SysctlKey{Path: "net/ipv4/conf/cali9/proxy_arp", Index: 9}
		got, err := x.Read(t.Context(), []kernel.SysctlKey{here, missing})
		if diff := cmp.Diff(map[kernel.SysctlKey]string{here: "0"}, got); err != nil || diff != "" {
			t.Errorf("%v %s", err, diff)
		}
	})
}

func TestSettingOfAGoneDeviceIsNoError(t *testing.T) {
	x := open(t, t.TempDir())
	gone := map[kernel.SysctlKey]string{{Path: "net/ipv4/conf/cali9/proxy_arp", Index: 9}: "1"}
	if err := x.Apply(t.Context(), kernel.Diff(nil, gone)); err != nil {
		t.Error(err)
	}
	global := map[kernel.SysctlKey]string{{Path: "net/ipv4/ip_forward"}: "1"}
	if err := x.Apply(t.Context(), kernel.Diff(nil, global)); err == nil || !strings.Contains(err.Error(), "net/ipv4/ip_forward = 1") {
		t.Errorf("a missing setting of the host: %v", err)
	}
}

func TestNamesCannotLeadOutside(t *testing.T) {
	dir := t.TempDir()
	root, secret := filepath.Join(dir, "sys"), filepath.Join(dir, "secret")
	if err := os.MkdirAll(filepath.Join(root, "net"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(secret, []byte("untouched"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, filepath.Join(root, "net", "link")); err != nil {
		t.Fatal(err)
	}
	x := open(t, root)
	for _, path := range []string{"net/../../secret", "net/link", secret} {
		err := x.Apply(t.Context(), kernel.Diff(nil, map[kernel.SysctlKey]string{{Path: path, Index: 1}: "1"}))
		if err == nil {
			t.Errorf("%s was accepted", path)
		}
	}
	if b, err := os.ReadFile(secret); err != nil || string(b) != "untouched" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestRemovalKeepsTheValue(t *testing.T) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "x"), []byte("1\t2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	x := open(t, root)
	have, err := x.Read(t.Context(), []kernel.SysctlKey{{Path: "x"}})
	if err != nil || have[kernel.SysctlKey{Path: "x"}] != "1 2" {
		t.Fatalf("%v, %v", have, err)
	}
	if err := x.Apply(t.Context(), kernel.Diff(have, nil)); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(filepath.Join(root, "x")); string(b) != "1\t2\n" {
		t.Errorf("now %q", b)
	}
	if have, err := x.List(t.Context()); err != nil || len(have) != 0 {
		t.Errorf("still lists %v, %v", have, err)
	}
}

func TestRemadeDevicesLeaveNothingBehind(t *testing.T) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "x"), []byte("0\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	x := open(t, root)
	for index := range 10 {
		want := map[kernel.SysctlKey]string{{Path: "x", Index: index + 1}: "1"}
		if err := x.Apply(t.Context(), kernel.Diff(nil, want)); err != nil {
			t.Fatal(err)
		}
	}
	if have, err := x.List(t.Context()); err != nil || len(have) > 1 {
		t.Errorf("one setting is listed as %v, %v", have, err)
	}
}

func TestNumberIsReadAnewEachTime(t *testing.T) {
	ns := nettest.New(t)
	nettest.Pair(ns, "cali0", ns, "cali1")
	const path = "net/ipv4/conf/cali0/rp_filter"
	n := NewNumber(Root, path)
	ns.Do(func() {
		for _, want := range []string{"1", "2"} {
			if err := open(t, Root).Apply(t.Context(), kernel.Diff(nil, map[kernel.SysctlKey]string{{Path: path, Index: 1}: want})); err != nil {
				t.Error(err)
			}
			if got, err := n.Read(); err != nil || strconv.FormatUint(got, 10) != want {
				t.Errorf("it is %d, %v, and not %s", got, err, want)
			}
		}
		ns.Exec("ip", "link", "del", "cali0")
		if got, err := n.Read(); err == nil {
			t.Errorf("a setting that is gone is %d", got)
		}
		if _, err := n.Read(); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("after that: %v", err)
		}
		nettest.Pair(ns, "cali0", ns, "cali1")
		if _, err := n.Read(); err != nil {
			t.Errorf("a setting that has come again: %v", err)
		}
	})
	if err := errors.Join(n.Close(), n.Close()); err != nil {
		t.Error(err)
	}
}

func TestLongSettingIsReadWhole(t *testing.T) {
	dir := t.TempDir()
	want := strings.Repeat("32768 60999 ", 40) + "1"
	if err := os.WriteFile(filepath.Join(dir, "long"), []byte(want+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	key := kernel.SysctlKey{Path: "long"}
	if got, err := open(t, dir).Read(t.Context(), []kernel.SysctlKey{key}); err != nil || got[key] != want {
		t.Errorf("got %q, %v", got[key], err)
	}
}
