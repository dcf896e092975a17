package hosts

import (
	"flag"
	"testing"

	"github.com/muslin-cni/muslin/internal/ctl/clitest"
)

var update = flag.Bool("update", false, "rewrite what scripts compare with")

func TestMain(m *testing.M) { clitest.Main(m, Command) }

func TestGoldenScripts(t *testing.T) { clitest.Run(t, *update, nil) }

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
