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
	"github.com/muslin-cni/muslin/internal/ctl/cli"
)

var version = "unknown" // set by the linker

// grace is how long a command that was told to end may take for it.
const grace = time.Second

func main() { os.Exit(run()) }

func run() int {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	code := make(chan int, 1)
	go func() {
		code <- ctl.Run(ctx, ctl.Settings{
			Program: os.Args[0], Version: version, In: os.Stdin, Out: cli.ForTerminal(os.Stdout), Err: cli.ForTerminal(os.Stderr),
			Env: os.Getenv, Now: time.Now, UUID: uuid.NewString,
		}, os.Args[1:])
	}()
	select {
	case c := <-code:
		return c
	case <-ctx.Done():
	}
	cancel() // a second signal ends the process at once
	select {
	case c := <-code:
		return c
	case <-time.After(grace): // it waits for a terminal or a pipe, which nothing interrupts
		return 1
	}
}
