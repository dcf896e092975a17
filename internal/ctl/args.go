package ctl

import (
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// complete writes out abbreviated long options: --out=yaml is --output=yaml as long as no other option begins so.
func complete(root *cobra.Command, args []string) []string {
	cmd, _, err := root.Find(args)
	if err != nil {
		return args
	}
	cmd.InheritedFlags() // merges the root's options into the command's
	out := make([]string, len(args))
	copy(out, args)
	value := false // the argument is the value of the option before it
	for i, arg := range out {
		switch {
		case value:
			value = false
		case arg == "--":
			return out
		case strings.HasPrefix(arg, "--"):
			name, rest, given := strings.Cut(arg[2:], "=")
			full := longName(cmd, name)
			flag := cmd.Flags().Lookup(full)
			if flag == nil {
				continue
			}
			out[i] = "--" + full
			if given {
				out[i] += "=" + rest
			}
			value = !given && flag.NoOptDefVal == ""
		case len(arg) == 2 && arg[0] == '-':
			flag := cmd.Flags().ShorthandLookup(arg[1:])
			value = flag != nil && flag.NoOptDefVal == ""
		}
	}
	return out
}

// longName is the name of the only option whose name begins so; the name itself if it is an option, or if none or several begin so.
func longName(cmd *cobra.Command, name string) string {
	if name == "" || name == "help" || cmd.Flags().Lookup(name) != nil {
		return name
	}
	var found []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if strings.HasPrefix(f.Name, name) {
			found = append(found, f.Name)
		}
	})
	if len(found) != 1 {
		return name
	}
	return found[0]
}
