// Command muslin-controllers mirrors Kubernetes objects into etcd and takes back addresses that nobody uses: one process in a cluster. Its settings come
// from the environment and from KubeControllersConfiguration; --help lists them.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/muslin-cni/muslin/internal/controllers"
)

var version = "unknown" // set by the linker

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := controllers.Main(ctx, controllers.Process{
		Name: os.Args[0], Args: os.Args[1:], Environ: os.Environ(), Stdout: os.Stdout, Stderr: os.Stderr, Version: version,
	})
	stop()
	os.Exit(code)
}
