package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/cni/netconf"
	"github.com/muslin-cni/muslin/internal/kernel"
)

var update = flag.Bool("update", false, "rewrite golden files")

func TestResultOfPluginsBeforeOursIsPassedOn(t *testing.T) {
	n, p := newNode(t), newPod(t, "c1", "nginx")
	(&fakeAgent{}).start(n)
	const prev = `"prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"net0","mac":"02:00:00:00:00:01","sandbox":"/run/netns/x"}],` +
		`"ips":[{"interface":0,"address":"192.0.2.1/24"}],"routes":[{"dst":"192.0.2.0/24"}],"dns":{"nameservers":["192.0.2.53"]}}`
	env := []string{"CNI_CONTAINERID=c1", "CNI_NETNS=" + p.Path(), "CNI_IFNAME=eth0", "CNI_ARGS=K8S_POD_NAMESPACE=default;K8S_POD_NAME=nginx"}
	out, err := n.run("muslin", fmt.Sprintf(`{"cniVersion":"1.0.0","name":"hc-net","type":"muslin",%s,%s}`, usual, prev), append(env, "CNI_COMMAND=ADD")...)
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var got types100.Result
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Interfaces) != 3 || got.Interfaces[0].Name != "net0" || len(got.IPs) != 2 || *got.IPs[1].Interface != 2 || got.Interfaces[2].Name != "eth0" ||
		len(got.Routes) != 3 || len(got.DNS.Nameservers) != 1 {
		t.Errorf("the result is %s", out)
	}
	out, err = n.run("muslin", fmt.Sprintf(`{"cniVersion":"1.0.0","name":"hc-net","type":"muslin",%s,"prevResult":%s}`, usual, out), append(env, "CNI_COMMAND=CHECK")...)
	if err != nil {
		t.Errorf("CHECK of it: %v: %s", err, out)
	}
}

// TestResultIsWhatTheLibraryPrints holds what is written without the library to what it would have written.
func TestResultIsWhatTheLibraryPrints(t *testing.T) {
	plain := &attachment{
		req: attach.Request{Netns: "/run/netns/<c>"}, pair: &pair{host: kernel.Dev{Name: "cali1", Index: 3}, pod: kernel.Dev{Name: "eth0", Index: 2}, mtu: 1450},
		mac: kernel.MAC{0x42}, addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")},
	}
	bare, resolved := *plain, *plain
	bare.addrs, bare.pair = nil, &pair{}
	resolved.conf.DNS = types.DNS{Nameservers: []string{"192.0.2.53"}, Search: []string{"example.org"}}
	for name, a := range map[string]*attachment{"two families": plain, "no address": &bare, "DNS": &resolved} {
		for _, v := range version.All.SupportedVersions() {
			var ours, theirs bytes.Buffer
			converted, err := a.result().GetAsVersion(v)
			if err != nil && name == "no address" {
				continue // which the oldest versions cannot say
			}
			if err := errors.Join(err, converted.PrintTo(&theirs), printTo(&ours, a.result(), v, false)); err != nil {
				t.Fatal(err)
			}
			var got, want any
			if err := errors.Join(json.Unmarshal(ours.Bytes(), &got), json.Unmarshal(theirs.Bytes(), &want)); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s, version %s: %s", name, v, diff)
			}
		}
	}
}

func TestGoldenResultOfEveryVersion(t *testing.T) {
	a := &attachment{
		req:   attach.Request{Netns: "/run/netns/hcx-0"},
		pair:  &pair{host: kernel.Dev{Name: "calihcx-0", Index: 3}, pod: kernel.Dev{Name: "eth0", Index: 2}, mtu: 1450},
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
