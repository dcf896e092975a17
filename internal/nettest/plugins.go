package nettest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// ReferencePlugins builds the CNI project's own plugins, those that test/cniplugins/go.mod names, into a folder beside whatever is there.
// It is called from within this module.
func ReferencePlugins(folder string) error {
	gomod, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return fmt.Errorf("find this module: %w", err)
	}
	root := filepath.Dir(strings.TrimSpace(string(gomod)))
	modfile := filepath.Join(root, "test", "cniplugins", "go.mod")
	build := exec.Command("go", "build", "-buildvcs=false", "-modfile="+modfile, "-o", folder, "tool")
	build.Dir = root
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the CNI project's plugins: %w: %s", err, out)
	}
	return nil
}
