// It has one processor whatever its cgroup says from one second to the next.
//go:debug updatemaxprocs=0

// Command muslin is the CNI network plugin. It speaks CNI 0.1.0 to 1.1.0; on a host that was set up for Calico it also answers to the
// name calico.
package main

import (
	"fmt"
	"os"

	"github.com/containernetworking/cni/pkg/skel"
	cniversion "github.com/containernetworking/cni/pkg/version"

	"github.com/muslin-cni/muslin/internal/cni"
	_ "github.com/muslin-cni/muslin/internal/shortlived"
)

var version = "unknown" // set by the linker

func main() {
	if len(os.Args) == 2 && (os.Args[1] == "-v" || os.Args[1] == "--version") {
		fmt.Println(version)
		return
	}
	plugin := cni.Plugin{Limits: cni.DefaultLimits(), Stdout: os.Stdout}
	found := sparingNetnsCheck()
	skel.PluginMainFuncs(skel.CNIFuncs{Add: found.then(plugin.Add), Del: found.then(plugin.Del), Check: plugin.Check, GC: plugin.GC, Status: plugin.Status},
		cniversion.All, "CNI network plugin muslin "+version)
}

// variable is one of the environment's, as it was.
type variable struct {
	name, value string
	set         bool
}

// sparingNetnsCheck keeps skel from looking whether the pod's network namespace is the plugin's own, once ADD and DEL are done: the plugin has looked
// before, and skel does by an entry below /proc that is dear to clear away (see currentNetns in internal/cni).
func sparingNetnsCheck() variable {
	v := variable{name: "CNI_NETNS_OVERRIDE"}
	v.value, v.set = os.LookupEnv(v.name)
	_ = os.Setenv(v.name, "1") // fails for names that are none
	return v
}

// then puts the variable back before f, which may call other plugins. skel has read it by then.
func (v variable) then(f func(*skel.CmdArgs) error) func(*skel.CmdArgs) error {
	return func(args *skel.CmdArgs) error {
		if v.set {
			_ = os.Setenv(v.name, v.value)
		} else {
			_ = os.Unsetenv(v.name)
		}
		return f(args)
	}
}
