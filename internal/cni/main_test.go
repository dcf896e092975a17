package cni

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/muslin-cni/muslin/internal/nettest"
)

// binEnv names the folder that TestMain puts the programs into.
const binEnv = "MUSLIN_TEST_BIN"

// hurried is the name under which this test program is the plugin with short limits.
const hurried = "muslin-hurried"

// lost is the name under which this test program enters the network namespace of its first argument, in the way of its second, and cannot find back.
const lost = "muslin-lost"

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == lost {
		fmt.Println("it went on:", loseWay(os.Args[1], os.Args[2]))
		return
	}
	if filepath.Base(os.Args[0]) == hurried {
		p := Plugin{Stdout: os.Stdout, Limits: Limits{
			Work: 10 * time.Second, Lock: 300 * time.Millisecond, Turn: time.Second, Undo: 2 * time.Second, Queue: 8 * time.Second,
		}}
		skel.PluginMainFuncs(skel.CNIFuncs{Add: p.Add, Del: p.Del}, version.All, hurried)
		return
	}
	os.Exit(runWithPrograms(m))
}

// runWithPrograms runs the tests with the real programs, and this one as the hurried plugin, in a folder.
func runWithPrograms(m *testing.M) int {
	dir, err := os.MkdirTemp("", "muslin-cni")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	build := exec.Command("go", "build", "-buildvcs=false", "-o", dir, "../../cmd/muslin", "../../cmd/muslin-ipam")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the programs: %v\n%s", err, out)
		return 1
	}
	if err := nettest.ReferencePlugins(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	self, err := os.Executable()
	for name, program := range map[string]string{hurried: self, lost: self, "calico": "muslin", "calico-ipam": "muslin-ipam"} {
		if err == nil {
			err = os.Symlink(program, filepath.Join(dir, name))
		}
	}
	if err == nil {
		err = os.Setenv(binEnv, dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}
