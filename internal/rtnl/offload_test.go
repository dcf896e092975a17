package rtnl

import (
	"strings"
	"testing"

	"github.com/muslin-cni/muslin/internal/nettest"
)

func TestChecksumsOfADeviceAreTurnedOff(t *testing.T) {
	nettest.Need(t, "vxlan", "ethtool")
	ns := nettest.New(t)
	ns.Exec("ip", "link", "add", "vxlan.calico", "type", "vxlan", "id", "4096", "dstport", "4789")
	ns.Do(func() {
		if on, err := TxChecksum("vxlan.calico"); err != nil || !on {
			t.Fatalf("at first: %v, %v", on, err)
		}
		if err := TurnOffTxChecksum("vxlan.calico"); err != nil {
			t.Fatal(err)
		}
		if on, err := TxChecksum("vxlan.calico"); err != nil || on {
			t.Errorf("turned off: %v, %v", on, err)
		}
		for _, dev := range []string{"gone", "a-name-that-no-device-can-have"} {
			if err := TurnOffTxChecksum(dev); err == nil || !strings.Contains(err.Error(), dev) {
				t.Errorf("%s: %v", dev, err)
			}
		}
	})
	if out := ns.Exec("ethtool", "-k", "vxlan.calico"); !strings.Contains(out, "tx-checksum-ip-generic: off") {
		t.Errorf("ethtool says\n%s", out)
	}
}
