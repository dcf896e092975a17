// Command muslin-node is the agent: one process on every node that programs routes, tunnels and NAT from etcd and serves the CNI
// plugin. Its settings come from the environment; --help lists them.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/muslin-cni/muslin/internal/agent"
)

var version = "unknown" // set by the linker

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := agent.Main(ctx, agent.Process{Args: os.Args[1:], Environ: os.Environ(), Stdout: os.Stdout, Stderr: os.Stderr, Version: version})
	stop()
	os.Exit(code)
}
