// Command muslin-ipam is the CNI IPAM module. It speaks CNI 0.1.0 to 1.1.0; on a host that was set up for Calico it also answers to
// the name calico-ipam.
package main

import (
	"fmt"
	"os"

	"github.com/containernetworking/cni/pkg/skel"
	cniversion "github.com/containernetworking/cni/pkg/version"

	"github.com/muslin-cni/muslin/internal/cni/module"
)

var version = "unknown" // set by the linker

func main() {
	if len(os.Args) == 2 && (os.Args[1] == "-v" || os.Args[1] == "--version") {
		fmt.Println(version)
		return
	}
	m := module.Module{Timeout: module.DefaultTimeout, Stdout: os.Stdout}
	skel.PluginMainFuncs(skel.CNIFuncs{Add: m.Add, Del: m.Del, Check: m.Check, GC: m.GC, Status: m.Status}, cniversion.All, "CNI IPAM module muslin-ipam "+version)
}
