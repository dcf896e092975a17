package cni

import (
	"bytes"
	"encoding/json"
	"io"
	"slices"

	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/members"
)

// printTo writes a result in a version of CNI as the library would, which however works out first how every type in it can be written, and so spends a tenth
// of a millisecond on each ADD. What nearly every ADD returns is written member by member. The library writes the rest: versions before 0.3.0, whose results
// are made of other parts, and results of other plugins, passedOn, which may hold anything.
func printTo(w io.Writer, res *types100.Result, version string, passedOn bool) error {
	if passedOn || !slices.Contains([]string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}, version) {
		converted, err := res.GetAsVersion(version)
		if err != nil {
			return failure(attach.CodeBadVersion, err, "")
		}
		return converted.PrintTo(w)
	}
	text, err := members.Encode(shown(res, version))
	if err != nil {
		return err
	}
	var out bytes.Buffer
	if err := json.Indent(&out, text, "", "    "); err != nil {
		return err
	}
	_, err = out.WriteTo(w)
	return err
}

// shown lists the members of a result of ours.
func shown(res *types100.Result, version string) []members.Member {
	before1 := version < "1"
	var interfaces, ips, routes members.List
	for _, i := range res.Interfaces {
		x := object{{Name: "name", Value: &i.Name, Empty: true}, {Name: "mac", Value: &i.Mac}}
		if !before1 {
			x = append(x, members.Member{Name: "mtu", Value: &i.Mtu})
		}
		x = append(x, members.Member{Name: "sandbox", Value: &i.Sandbox})
		interfaces = append(interfaces, &x)
	}
	for _, ip := range res.IPs {
		var x object
		if before1 {
			family := "6"
			if ip.Address.IP.To4() != nil {
				family = "4"
			}
			x = append(x, members.Member{Name: "version", Value: &family})
		}
		address := ip.Address.String()
		x = append(x, members.Member{Name: "interface", Value: ip.Interface, Empty: true}, members.Member{Name: "address", Value: &address})
		ips = append(ips, &x)
	}
	for _, r := range res.Routes {
		dst, via := r.Dst.String(), ""
		if r.GW != nil {
			via = r.GW.String()
		}
		routes = append(routes, &object{{Name: "dst", Value: &dst}, {Name: "gw", Value: &via}})
	}
	out := []members.Member{
		{Name: "cniVersion", Value: &version}, {Name: "interfaces", Value: &interfaces}, {Name: "ips", Value: &ips}, {Name: "routes", Value: &routes},
	}
	switch {
	case !res.DNS.IsEmpty():
		out = append(out, members.Member{Name: "dns", Value: &res.DNS})
	case before1:
		out = append(out, members.Member{Name: "dns", Value: &object{}, Empty: true})
	}
	return out
}

type object []members.Member

func (o *object) Members() []members.Member { return *o }
