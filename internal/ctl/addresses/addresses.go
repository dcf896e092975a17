// Package addresses answers the operator's questions about addresses, and puts right what is wrong with them: the verbs below "ipam".
//
// Everything that writes is one transaction of etcd, compared with what it rested on, so that a command that is interrupted has done some of
// its transactions whole and can be run again.
package addresses

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/spf13/cobra"

	"github.com/muslin-cni/muslin/internal/ctl/cli"
)

// Command is "ipam" with its verbs.
func Command(env cli.Env) *cobra.Command {
	c := &cobra.Command{
		Use:   "ipam",
		Short: "Show, check and change how addresses are assigned",
		Args:  cobra.NoArgs,
	}
	c.AddCommand(showCommand(env), checkCommand(env), verifyCommand(env), releaseCommand(env), configureCommand(env), splitCommand(env))
	return c
}

// parseIP reads the address of a flag.
func parseIP(text string) (netip.Addr, error) {
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("invalid IP address specified: %s", text)
	}
	return a.Unmap(), nil
}

// exclusive is an error if more than one of the flags is given.
func exclusive(c *cobra.Command, flags ...string) error {
	given := ""
	for _, f := range flags {
		switch {
		case !c.Flags().Changed(f):
		case given != "":
			return fmt.Errorf("--%s and --%s exclude each other", given, f)
		default:
			given = f
		}
	}
	return nil
}

// errNoOption is what configure says when nothing is to be configured.
var errNoOption = errors.New("at least one configuration option must be specified")
