package cni

import (
	"bytes"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/containernetworking/cni/pkg/version"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/cni/netconf"
	"github.com/muslin-cni/muslin/internal/kernel"
)

var update = flag.Bool("update", false, "rewrite golden files")

func TestGoldenResultOfEveryVersion(t *testing.T) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = "eth0", 1450
	a := &attachment{
		req:   attach.Request{Netns: "/run/netns/hcx-0"},
		pair:  &pair{host: kernel.Dev{Name: "calihcx-0", Index: 3}, pod: netlink.NewVeth(attrs)},
		mac:   kernel.MAC{0x42, 0x22, 0x76, 0xe0, 0x4d, 0x73},
		addrs: []netip.Addr{netip.MustParseAddr("10.244.62.192"), netip.MustParseAddr("fd00:10:244::c0")},
	}
	var got bytes.Buffer
	for _, v := range append([]string{""}, version.All.SupportedVersions()...) {
		fmt.Fprintf(&got, "-- %q --\n", v)
		a.conf = netconf.Conf{Module: netconf.Module{CNIVersion: v}}
		if err := (&Plugin{Stdout: &got}).print(a); err != nil {
			t.Fatalf("version %q: %v", v, err)
		}
		got.WriteByte('\n')
	}
	golden := filepath.Join("testdata", "results.txt")
	if *update {
		if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("results (-want +got); if this is meant, run with -update:\n%s", diff)
	}
}
