package rtnl

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/nettest"
)

func openVeths(t *testing.T, ns *nettest.NS) *Veths {
	t.Helper()
	var v *Veths
	var err error
	ns.Do(func() { v, err = OpenVeths() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	return v
}

func TestVethPairIsMadeFoundAndRemoved(t *testing.T) {
	host, pod := nettest.New(t), nettest.New(t)
	there, err := os.Open(pod.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = there.Close() }()
	ofHost, ofPod := openVeths(t, host), openVeths(t, pod)
	wanted := Veth{
		Name: "cali0", MAC: kernel.MAC{0xee, 0xee, 0xee, 0xee, 0xee, 0xee}, Peer: "eth0", PeerMAC: kernel.MAC{0x02, 1, 2, 3, 4, 5},
		PeerNS: int(there.Fd()), MTU: 1450, Queues: 2,
	}
	if err := ofHost.Add(wanted); err != nil {
		t.Fatal(err)
	}
	if err := ofHost.Add(wanted); !errors.Is(err, unix.EEXIST) {
		t.Errorf("the same pair again: %v", err)
	}
	for ns, want := range map[*nettest.NS][]string{
		host: {"cali0@", "mtu 1450", "ee:ee:ee:ee:ee:ee", "numtxqueues 2 ", "numrxqueues 2 ", ",UP"},
		pod:  {"eth0@", "mtu 1450", "02:01:02:03:04:05", "numtxqueues 2 ", "numrxqueues 2 "},
	} {
		text := ns.Exec("ip", "-d", "link", "show", "type", "veth")
		for _, w := range want {
			if !strings.Contains(text, w) {
				t.Errorf("%q is not in what ip shows:\n%s", w, text)
			}
		}
	}
	near, err := ofHost.Find("cali0")
	if err != nil {
		t.Fatal(err)
	}
	far, err := ofPod.At(near.Peer)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(End{Name: "eth0", Index: near.Peer, Kind: "veth", Peer: near.Index}, far); diff != "" {
		t.Errorf("the other end: %s", diff)
	}
	if index, err := ofHost.Index("cali0"); err != nil || index != near.Index {
		t.Errorf("its index is %d, %v", index, err)
	}
	if err := ofPod.Remove(far.Index); err != nil {
		t.Error(err)
	}
	_, byName := ofHost.Find("cali0")
	_, byIndex := ofPod.At(far.Index)
	_, index := ofHost.Index("cali0")
	for _, err := range []error{ofPod.Remove(far.Index), byName, byIndex, index} {
		if !errors.Is(err, unix.ENODEV) {
			t.Errorf("of what is gone: %v", err)
		}
	}
	if _, err := ofHost.Find("a-name-that-is-too-long"); err == nil || errors.Is(err, unix.ENODEV) {
		t.Errorf("a name that no interface can have: %v", err)
	}
}

func TestWhatIsNoVethIsFoundToBeNone(t *testing.T) {
	ns := nettest.New(t)
	ns.Exec("ip", "link", "add", "cali0", "type", "bridge")
	v := openVeths(t, ns)
	if e, err := v.Find("cali0"); err != nil || e.Kind != "bridge" || e.Peer != 0 {
		t.Errorf("it is %+v, %v", e, err)
	}
	if e, err := v.Find("lo"); err != nil || e.Kind != "" {
		t.Errorf("lo is %+v, %v", e, err)
	}
}
