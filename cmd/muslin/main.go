// Command muslin is the CNI network plugin. It speaks CNI 0.1.0 to 1.1.0; on a host that was set up for Calico it also answers to the
// name calico.
package main

import (
	"fmt"
	"os"
	"runtime"

	"github.com/containernetworking/cni/pkg/skel"
	cniversion "github.com/containernetworking/cni/pkg/version"

	"github.com/muslin-cni/muslin/internal/cni"
)

var version = "unknown" // set by the linker

func main() {
	runtime.GOMAXPROCS(2) // one for the agent's answer, one for the veth pair: on many cores, more only cost start-up time
	if len(os.Args) == 2 && (os.Args[1] == "-v" || os.Args[1] == "--version") {
		fmt.Println(version)
		return
	}
	plugin := cni.Plugin{Limits: cni.DefaultLimits(), Stdout: os.Stdout}
	skel.PluginMainFuncs(skel.CNIFuncs{Add: plugin.Add, Del: plugin.Del, Check: plugin.Check, GC: plugin.GC, Status: plugin.Status},
		cniversion.All, "CNI network plugin muslin "+version)
}
