package hosts

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/ctl/cli"
	"github.com/muslin-cni/muslin/internal/doctor"
)

// DoctorCommand is "doctor".
func DoctorCommand(env cli.Env) *cobra.Command {
	x := examiner{env: env, proc: "/proc", socket: attach.Socket}
	var o doctorOptions
	c := &cobra.Command{
		Use:   "doctor [--only=<CHECK,...>]",
		Short: "Say what is wrong on this node, in the order in which to mend it",
		Long: "Say what is wrong on this node, in the order in which to mend it: what comes first is the cause of what comes later. It works as root on the node itself,\n" +
			"and takes the settings of the agent that runs there, else those of /etc/muslin/muslin-node.env, else its own. It changes nothing.\n\n" +
			"Whatever hangs is given up after a few seconds and said to be not known: it ends within half a minute.\n\n" +
			"The exit code is 0 if there is no error, and 1 if there is one; with --strict also if there is a warning or something could not be found out. A mistake in\n" +
			"the command itself ends with 1 too, says so on standard error, and nothing on standard output.\n\nIt checks\n\n" + explained(),
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return x.examine(c.Context(), o) },
	}
	c.Flags().StringSliceVar(&o.only, "only", nil, "check only these")
	c.Flags().BoolVar(&o.strict, "strict", false, "fail on warnings too")
	c.Flags().StringVarP(&o.format, "output", "o", "", "output format: json")
	c.Flags().StringVar(&x.root, "root", "/", "where the host's files are: another folder in a container that the host's are mounted in")
	c.Flags().StringVar(&x.confDir, "cni-conf-dir", "/etc/cni/net.d", "the runtime's folder of network configurations")
	c.Flags().StringSliceVar(&x.binDirs, "cni-bin-dir", []string{"/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"}, "the runtime's folders of CNI programs")
	return c
}

// doctorOptions say what is examined, how it is told, and what counts as a failure.
type doctorOptions struct {
	only   []string // checks; none: all
	format string
	strict bool
}

// examine looks, tells what it has found, and fails if that is bad enough.
func (x examiner) examine(ctx context.Context, o doctorOptions) error {
	if err := cli.CheckFormat(o.format); err != nil {
		return err
	}
	checks, err := doctor.Select(o.only)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(x.env.Err, "doctor: it does not run as root: what only root may see is told as not known")
	}
	found := doctor.Examine(x.view(ctx), checks)
	if err := tell(x.env.Out, found, o.format); err != nil {
		return err
	}
	if worst := doctor.Worst(found); worst == doctor.Error || o.strict && worst != doctor.OK {
		return cli.ErrReported
	}
	return nil
}

// explained says of each check what it looks at.
func explained() string {
	var b strings.Builder
	for _, c := range doctor.Checks() {
		fmt.Fprintf(&b, "  %-13s %s\n", c.Name, c.About)
	}
	return strings.TrimRight(b.String(), "\n")
}

// tell prints findings: a line for each, and its remedy on the next.
func tell(w io.Writer, found []doctor.Finding, format string) error {
	if format == "json" {
		return cli.PrintJSON(w, found)
	}
	var b strings.Builder
	n := map[doctor.Severity]int{}
	for _, f := range found {
		n[f.Severity]++
		line := f.Check
		for _, part := range []string{f.Object, f.What} {
			if part != "" {
				line += ": " + oneLine(part)
			}
		}
		if f.Follows != "" {
			line += " (comes of " + f.Follows + ")"
		}
		fmt.Fprintf(&b, "%-7s  %s\n", f.Severity, line)
		if f.Remedy != "" {
			fmt.Fprintf(&b, "         -> %s\n", oneLine(f.Remedy))
		}
	}
	fmt.Fprintf(&b, "%d wrong, %d suspicious, %d not known\n", n[doctor.Error], n[doctor.Warning], n[doctor.Unknown])
	_, err := io.WriteString(w, b.String())
	return err
}

// oneLine is a text, which may be an error of several lines, on one.
func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }
