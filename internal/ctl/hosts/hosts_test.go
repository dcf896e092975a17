package hosts

import (
	"context"
	"flag"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/attachlock"
	"github.com/muslin-cni/muslin/internal/ctl/clitest"
)

var update = flag.Bool("update", false, "rewrite what scripts compare with")

func TestMain(m *testing.M) { clitest.Main(m, Command) }

func TestGoldenScripts(t *testing.T) { clitest.Run(t, *update, nil) }

func TestStatusTellsAnAgentThatServesFromOneThatStarts(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "agent.sock")
	expect := func(want string) {
		t.Helper()
		err := status(t.Context(), socket)
		if got := errText(err); !strings.HasPrefix(got, want) || want == "" && got != "" {
			t.Errorf("status is %q, want %q", got, want)
		}
	}
	expect("Calico process is not running.")

	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	lock, err := attachlock.Acquire(ctx, filepath.Dir(socket), attach.AgentLock)
	if err != nil {
		t.Fatal(err)
	}
	expect("Calico process is running, but has not programmed this host yet")

	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	expect("")

	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	lock.Release()
	expect("Calico process is not running.")
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
