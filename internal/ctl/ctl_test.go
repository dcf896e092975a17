package ctl_test

import (
	"context"
	"flag"
	"os"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/muslin-cni/muslin/internal/ctl"
	"github.com/muslin-cni/muslin/internal/ctl/clitest"
)

var update = flag.Bool("update", false, "rewrite what scripts compare with")

func TestMain(m *testing.M) {
	run := func() { os.Exit(ctl.Run(context.Background(), settings(), os.Args[1:])) }
	testscript.Main(m, map[string]func(){"muslinctl": run, "calicoctl": run, "kubectl-muslin": run})
}

func settings() ctl.Settings {
	return ctl.Settings{
		Program: os.Args[0], Version: "v0.0.0-test", In: os.Stdin, Out: os.Stdout, Err: os.Stderr,
		Env: os.Getenv, Now: time.Now, UUID: uuid.NewString, Config: os.Getenv("USUAL_CONFIG"),
	}
}

func TestGoldenScripts(t *testing.T) { clitest.Run(t, *update, nil) }
