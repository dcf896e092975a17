// Command muslinctl is the operator's command: it reads and writes the resources in etcd, as calicoctl does.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/google/uuid"

	"github.com/muslin-cni/muslin/internal/ctl"
)

var version = "unknown" // set by the linker

func main() { os.Exit(run()) }

func run() int {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	return ctl.Run(ctx, ctl.Settings{
		Program: os.Args[0], Version: version, In: os.Stdin, Out: os.Stdout, Err: os.Stderr,
		Env: os.Getenv, Now: time.Now, UUID: uuid.NewString,
	}, os.Args[1:])
}
