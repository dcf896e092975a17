package nettest

import (
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Need skips the test if the machine lacks one of the named things, and says which. With NETTEST=require in the environment
// the test fails instead. Names: root; iptables, ipset (their programs); vxlan, macvlan and set (ipsets in the kernel).
// Any other name is that of a program.
func Need(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		err := lacking(name)
		if err == nil {
			continue
		}
		if os.Getenv("NETTEST") == "require" {
			t.Fatalf("this machine lacks %s: %v", name, err)
		}
		t.Skipf("this machine lacks %s: %v", name, err)
	}
}

func lacking(name string) error {
	switch name {
	case "root":
		if os.Geteuid() != 0 {
			return fmt.Errorf("run the test as root")
		}
		return nil
	case "vxlan":
		return inScratch(addVXLAN)
	case "macvlan":
		return inScratch(addMacvlan)
	case "set":
		return inScratch(addSet)
	default:
		_, err := exec.LookPath(name)
		return err
	}
}

// inScratch runs f in a namespace that ends with it.
func inScratch(f func() error) error {
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	})
}

func addVXLAN() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "probe"
	return netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: 1, Port: 4789})
}

func addMacvlan() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "parent"
	parent := &netlink.Bridge{LinkAttrs: attrs}
	if err := netlink.LinkAdd(parent); err != nil {
		return err
	}
	attrs.Name, attrs.ParentIndex = "probe", parent.Attrs().Index
	return netlink.LinkAdd(&netlink.Macvlan{LinkAttrs: attrs})
}

func addSet() error {
	return netlink.IpsetCreate("probe", "hash:net", netlink.IpsetCreateOptions{})
}
