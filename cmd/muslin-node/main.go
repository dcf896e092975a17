// Command muslin-node is the agent: one process on every node that programs routes, tunnels and NAT from etcd and serves the CNI
// plugin. Its settings come from the environment.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/muslin-cni/muslin/internal/agent"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := agent.Main(ctx, os.Getenv, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "muslin-node:", err)
		os.Exit(1)
	}
}
