package cni

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/google/go-cmp/cmp"
)

// supported is what VERSION is to list.
var supported = []string{"0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}

func TestEveryVersionThroughALibcniRuntime(t *testing.T) {
	n := newNode(t)
	d := newDatastore(n)
	for i, v := range supported {
		c, p := d.conf(noWait), newPod(t, fmt.Sprintf("c%d", i), "nginx")
		c.version = v
		res, err := n.add(c, p)
		if err != nil {
			t.Errorf("ADD at %s: %v", v, err)
			continue
		}
		if res.Version() != v {
			t.Errorf("ADD at %s gives a result of version %s", v, res.Version())
		}
		if v >= "0.4.0" {
			if err := n.check(c, p); err != nil {
				t.Errorf("CHECK at %s: %v", v, err)
			}
		}
		n.mustDel(c, p)
	}
	d.wantNothing()
}

func TestEveryVersionByDirectCall(t *testing.T) {
	n := newNode(t)
	d := newDatastore(n)
	for i, v := range append([]string{""}, supported...) {
		p := newPod(t, fmt.Sprintf("c%d", i), "")
		member := fmt.Sprintf(`"cniVersion":%q,`, v)
		if v == "" {
			member, v = "", "0.2.0"
		}
		stdin := fmt.Sprintf(`{%s"name":"hc-net","type":"muslin",%s,"dns":{"nameservers":["192.0.2.53"]}}`, member, d.conf(noWait).members)
		env := []string{"CNI_CONTAINERID=" + p.id, "CNI_NETNS=" + p.Path(), "CNI_IFNAME=eth0"}
		out, err := n.run("muslin", stdin, append(env, "CNI_COMMAND=ADD")...)
		if err != nil {
			t.Errorf("ADD at %q: %v, %s", v, err, out)
			continue
		}
		wantValid(t, v, out, p)
		if out, err := n.run("muslin", stdin, append(env, "CNI_COMMAND=DEL")...); err != nil || out != "" {
			t.Errorf("DEL at %q: %v, %s; want success without a word", v, err, out)
		}
	}
	d.wantNothing()
}

// wantValid holds a printed result to the types of its version and to what the specification asks of it.
func wantValid(t *testing.T, v, out string, p *pod) {
	t.Helper()
	res, err := create.Create(v, []byte(out))
	if err != nil {
		t.Errorf("result of version %s: %v\n%s", v, err, out)
		return
	}
	r, err := types100.NewResultFromResult(res)
	if err != nil {
		t.Errorf("result of version %s: %v\n%s", v, err, out)
		return
	}
	if len(r.IPs) != 1 || !strings.HasSuffix(r.IPs[0].Address.String(), "/32") || r.IPs[0].Gateway != nil {
		t.Errorf("version %s: want one address of one host without a gateway:\n%s", v, out)
	}
	hasDefault := slices.ContainsFunc(r.Routes, func(r *types.Route) bool {
		return r.Dst.String() == "0.0.0.0/0" && r.GW.String() == "169.254.1.1"
	})
	if !hasDefault || len(r.DNS.Nameservers) != 1 {
		t.Errorf("version %s: want a default route via 169.254.1.1, and the configuration's DNS:\n%s", v, out)
	}
	if v < "0.3.0" {
		return // knows no interfaces
	}
	i := slices.IndexFunc(r.Interfaces, func(i *types100.Interface) bool { return i.Name == "eth0" })
	if i < 0 || r.Interfaces[i].Mac == "" || r.Interfaces[i].Sandbox != p.Path() || r.IPs[0].Interface == nil || *r.IPs[0].Interface != i {
		t.Errorf("version %s: want the address on eth0, with MAC and sandbox:\n%s", v, out)
	}
	if v >= "1.1.0" && r.Interfaces[i].Mtu == 0 {
		t.Errorf("version %s: want the MTU:\n%s", v, out)
	}
}

func TestVersionThatIsNotServedIsRefused(t *testing.T) {
	n := newNode(t)
	for _, plugin := range []string{"muslin", "muslin-ipam"} {
		for _, c := range []struct{ version, code string }{{"1.2.0", `"code": 1,`}, {"9.0.0", `"code": 1,`}, {"one", `"code": `}} {
			out, err := n.run(plugin, fmt.Sprintf(`{"cniVersion":%q,"name":"hc-net","type":"muslin","ipam":{"type":"muslin-ipam"}}`, c.version),
				"CNI_COMMAND=ADD", "CNI_CONTAINERID=c1", "CNI_NETNS=/run/netns/c1", "CNI_IFNAME=eth0")
			if err == nil || !strings.Contains(out, c.code) {
				t.Errorf("%s at %s: %v, %s; want %s", plugin, c.version, err, out, c.code)
			}
		}
	}
}

func TestProgramsSayTheirVersion(t *testing.T) {
	n := newNode(t)
	for _, plugin := range []string{"muslin", "muslin-ipam"} {
		var said []string
		for _, arg := range []string{"-v", "--version"} {
			out := n.Exec(programPath(plugin), arg)
			said = append(said, strings.TrimSpace(out))
		}
		if diff := cmp.Diff([]string{"unknown", "unknown"}, said); diff != "" { // nothing was set when linking
			t.Errorf("%s (-want +got):\n%s", plugin, diff)
		}
		out, err := n.run(plugin, "", "CNI_COMMAND=VERSION")
		if want := fmt.Sprintf(`"supportedVersions":["%s"]`, strings.Join(supported, `","`)); err != nil || !strings.Contains(out, want) {
			t.Errorf("%s VERSION: %v, %s; want %s", plugin, err, out, want)
		}
	}
}
