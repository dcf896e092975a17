package why

import (
	"flag"
	"testing"

	"github.com/spf13/cobra"

	"github.com/muslin-cni/muslin/internal/ctl/cli"
	"github.com/muslin-cni/muslin/internal/ctl/clitest"
)

var update = flag.Bool("update", false, "rewrite what scripts compare with")

func TestMain(m *testing.M) { clitest.Main(m, Command, node) }

// node is the parent that "drops" has in the whole command.
func node(env cli.Env) *cobra.Command {
	c := &cobra.Command{Use: "node"}
	c.AddCommand(DropsCommand(env))
	return c
}

func TestGoldenScripts(t *testing.T) { clitest.Run(t, *update, nil) }
