package nettest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// inVM is the value of NETTEST in the virtual machine of test/vm.
const inVM = "vm"

// Need skips the test if the machine lacks one of the named things, and says which. Names: root; iptables, ipset (their programs);
// vxlan, macvlan and set (ipsets in the kernel); those that OnlyInVM knows. Any other name is that of a program.
//
// The environment decides what missing means, so that nothing is skipped everywhere. With NETTEST=require the test fails, unless OnlyInVM knows
// the name: then it is skipped here, and the one boot of test/vm runs it. In there NETTEST is vm, and whatever is missing is a failure.
// That boot finds tests by their names: one that asks for what OnlyInVM knows is called TestVM…, or fails wherever it runs.
func Need(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		if OnlyInVM(name) && !strings.HasPrefix(t.Name(), "TestVM") {
			t.Fatalf("a test that needs %s must be named TestVM…: test/vm runs no others", name)
		}
		err := lacking(name)
		switch {
		case err == nil:
		case mayLack(name, os.Getenv("NETTEST")):
			t.Skipf("this machine lacks %s: %v", name, err)
		default:
			t.Fatalf("this machine lacks %s: %v", name, err)
		}
	}
}

// OnlyInVM reports whether a name that Need takes is of something that a machine for development may well lack and that the kernel in the virtual
// machine of test/vm has: a kind of link, or "vm", the virtual machine itself.
func OnlyInVM(name string) bool { return name == "vm" || vmLink(name) != nil }

// mayLack reports whether a test that needs name is skipped rather than failed if there is none.
func mayLack(name, nettest string) bool {
	switch nettest {
	case inVM:
		return false
	case "require":
		return OnlyInVM(name)
	default:
		return true
	}
}

// Patience stretches a deadline where the CPU is an emulated one, which computes 5 to 20 times slower: in the virtual machine of test/vm.
func Patience(d time.Duration) time.Duration {
	if os.Getenv("NETTEST") == inVM {
		return 10 * d
	}
	return d
}

func lacking(name string) error {
	if link := vmLink(name); link != nil {
		return inScratch(func() error { return netlink.LinkAdd(link) })
	}
	switch name {
	case "root":
		if os.Geteuid() != 0 {
			return fmt.Errorf("run the test as root")
		}
		return nil
	case "vm":
		if os.Getenv("NETTEST") != inVM {
			return fmt.Errorf("run the test in the virtual machine: make test-vm")
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

// vmLink is a link of a kind that OnlyInVM knows, nil for other names.
func vmLink(kind string) netlink.Link {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "probe"
	switch kind {
	case "dummy":
		return &netlink.Dummy{LinkAttrs: attrs}
	case "ipip": // with an end, for the module's own tunl0 has none, and there is only one of each
		return &netlink.Iptun{LinkAttrs: attrs, Local: net.IPv4(192, 0, 2, 1)}
	case "vrf":
		return &netlink.Vrf{LinkAttrs: attrs, Table: 1}
	case "wireguard":
		return &netlink.Wireguard{LinkAttrs: attrs}
	default:
		return nil
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
