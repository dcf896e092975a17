// Command muslin-lab runs a cluster of Muslin nodes on one machine, for people and scripts.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/muslin-cni/muslin/internal/lab"
)

var version = "unknown" // set by the linker

func main() { os.Exit(run()) }

// run is main with an exit code: that of the command that `exec` ran, or 1 for any other failure.
func run() int {
	program, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, "muslin-lab:", err)
		return 1
	}
	cmd := lab.NewCommand(lab.Settings{Dir: os.Getenv("MUSLIN_LAB_DIR"), Bin: filepath.Dir(program), Version: version})
	err = cmd.ExecuteContext(context.Background())
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() > 0 {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "muslin-lab:", err)
		return 1
	}
	return 0
}
