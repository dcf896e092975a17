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
			flag := flagNamed(cmd, name)
			if flag == nil {
				continue
			}
			out[i] = "--" + flag.Name
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

// flagNamed is the option of that name, or the only one whose name begins so; nil if there is none.
func flagNamed(cmd *cobra.Command, name string) *pflag.Flag {
	if name == "" || name == "help" {
		return nil
	}
	if f := cmd.Flags().Lookup(name); f != nil {
		return f
	}
	var found []*pflag.Flag
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if strings.HasPrefix(f.Name, name) {
			found = append(found, f)
		}
	})
	if len(found) != 1 {
		return nil
	}
	return found[0]
}
