package addresses

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/muslin-cni/muslin/internal/ctl/cli"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
)

type verifyOptions struct {
	format string
	except []string
}

func verifyCommand(env cli.Env) *cobra.Command {
	var o verifyOptions
	c := &cobra.Command{
		Use:   "verify [-o json] [--except <INVARIANT>]...",
		Short: "Say of each invariant of address management whether it holds",
		Long: "Say of each invariant of address management whether it holds, all as of one revision of etcd. Nothing is changed. The exit code is 1 if one is violated.\n\n" +
			"Unlike check, which counts and lists as calicoctl does and repairs, verify only judges: the same sentences that Muslin's transactions are model-checked against.\n\n" +
			"Others may break some of them for a while, and rightly so: the output names who. Two runs in a row tell what stays. --except leaves an\n" +
			"invariant out of the exit code, no-leak for example where other main plugins (bridge, macvlan) use muslin-ipam.\n\n" +
			"The invariants:\n" + invariantsText(),
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			return env.With(c.Context(), func(client *store.Client) error { return verify(c.Context(), env.Out, client, o) })
		},
	}
	f := c.Flags()
	f.StringVarP(&o.format, "output", "o", "", "json, or none for text")
	f.StringArrayVar(&o.except, "except", nil, "leave this invariant out of the exit code; may be repeated")
	return c
}

func invariantsText() string {
	var b strings.Builder
	for _, i := range ipam.Invariants() {
		fmt.Fprintf(&b, "  %-17s%s\n", i.Name, i.Holds)
	}
	return b.String()
}

// check refuses what cannot be asked for.
func (o verifyOptions) check() error {
	for _, name := range o.except {
		if !slices.ContainsFunc(ipam.Invariants(), func(i ipam.Invariant) bool { return i.Name == name }) {
			return fmt.Errorf("--except: there is no invariant %q: muslinctl ipam verify --help lists them", name)
		}
	}
	return cli.CheckFormat(o.format)
}

// verdicts is the outcome of verify, as JSON has it.
type verdicts struct {
	Revision   int64     `json:"revision"` // of etcd
	Holds      bool      `json:"holds"`    // all invariants, but for those excepted
	Invariants []verdict `json:"invariants"`
}

type verdict struct {
	Name       string    `json:"name"`
	Statement  string    `json:"statement"`
	Holds      bool      `json:"holds"`
	Excepted   bool      `json:"excepted,omitempty"`
	Meanwhile  string    `json:"mayBeBrokenMeanwhileBy,omitempty"`
	Violations []problem `json:"violations,omitempty"`
}

func verify(ctx context.Context, w io.Writer, c *store.Client, o verifyOptions) error {
	v, err := ipam.LoadView(ctx, c)
	if err != nil {
		return err
	}
	out := judge(v, o.except)
	if o.format == "json" {
		err = cli.PrintJSON(w, out)
	} else {
		_, err = io.WriteString(w, out.text())
	}
	if err == nil && !out.Holds {
		err = cli.ErrReported
	}
	return err
}

func judge(v ipam.View, except []string) verdicts {
	out := verdicts{Revision: v.Rev, Holds: true}
	for _, i := range ipam.Verify(v) {
		j := verdict{
			Name: i.Name, Statement: i.Holds, Meanwhile: i.Meanwhile,
			Holds: len(i.Violations) == 0, Excepted: slices.Contains(except, i.Name),
		}
		for _, f := range i.Violations {
			j.Violations = append(j.Violations, problemOf(f))
		}
		out.Holds = out.Holds && (j.Holds || j.Excepted)
		out.Invariants = append(out.Invariants, j)
	}
	return out
}

// text is a line for each invariant, and below one that is violated its violations: the object, what was found, what to do.
func (v verdicts) text() string {
	var b strings.Builder
	broken, excepted := 0, ""
	for _, i := range v.Invariants {
		state := "holds"
		switch {
		case i.Holds:
		case i.Excepted:
			state, excepted = "excepted", ", but for those excepted"
		default:
			state = "VIOLATED"
			broken++
		}
		fmt.Fprintf(&b, "%-9s %-17s%s\n", state, i.Name, i.Statement)
		for _, p := range i.Violations {
			fmt.Fprintf(&b, "    %s\n        %s\n        %s\n", strings.Join(p.Keys, ", "), p.Text, p.Remedy)
		}
		if !i.Holds && i.Meanwhile != "" {
			fmt.Fprintf(&b, "    Who may break it: %s.\n", i.Meanwhile)
		}
	}
	if broken == 0 {
		fmt.Fprintf(&b, "\nAll invariants hold at revision %d%s.\n", v.Revision, excepted)
	} else {
		fmt.Fprintf(&b, "\n%d of %d invariants are violated at revision %d.\n", broken, len(v.Invariants), v.Revision)
	}
	return b.String()
}
