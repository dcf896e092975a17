// Package ctl is the operator's command: the verbs on resources, and the tree that all verbs hang in.
//
// It is used as calicoctl is: the same verbs, kinds, options, results and exit codes, and calicoctl's habits of writing options. What is
// different on purpose is listed with its reason in testdata/differences.md. Results go to standard output and everything else to
// standard error; the exit code is 1 for every failure.
package ctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/muslin-cni/muslin/internal/ctl/addresses"
	"github.com/muslin-cni/muslin/internal/ctl/apiconfig"
	"github.com/muslin-cni/muslin/internal/ctl/cli"
	"github.com/muslin-cni/muslin/internal/ctl/hosts"
	"github.com/muslin-cni/muslin/internal/ctl/migrate"
	"github.com/muslin-cni/muslin/internal/ctl/objects"
	"github.com/muslin-cni/muslin/internal/ctl/why"
	"github.com/muslin-cni/muslin/pkg/store"
)

// Settings are what the command takes from its process.
type Settings struct {
	Program string // argv[0]: a link named calicoctl or kubectl-muslin is called so in help and messages
	Version string // of this build
	In      io.Reader
	Out     io.Writer
	Err     io.Writer
	Env     func(name string) string
	Now     func() time.Time
	UUID    func() string // random, with dashes
	Config  string        // the usual place of the configuration file; "": apiconfig.DefaultPath
}

// Run runs the command with arguments as in os.Args[1:] and returns the exit code. It ends soon after ctx does.
func Run(ctx context.Context, set Settings, args []string) int {
	root := newCommand(set, args)
	root.SetArgs(complete(root, args))
	err := root.ExecuteContext(ctx)
	var usage *usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage):
		fmt.Fprintf(set.Err, "%v\n%s", usage, usage.cmd.UsageString())
	case !errors.Is(err, cli.ErrReported):
		fmt.Fprintln(set.Err, err)
	}
	return 1
}

// session is the settings and the options that all verbs have.
type session struct {
	Settings
	name          string // of the program, in messages
	config        string
	context       string // of kubectl; nothing to choose from with etcd
	logLevel      string
	allowMismatch bool
}

// newCommand is the whole command line, for these arguments. It writes to set.Out and set.Err; its errors are for the caller to print.
func newCommand(set Settings, args []string) *cobra.Command {
	if set.Config == "" {
		set.Config = apiconfig.DefaultPath
	}
	s := &session{Settings: set, name: display(set.Program)}
	root := &cobra.Command{
		Use:           strings.Fields(s.name)[0],
		Annotations:   map[string]string{cobra.CommandDisplayNameAnnotation: s.name},
		Short:         "Manage the networks of pods: their resources, addresses and nodes",
		Long:          about(s.name, set.Config),
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.ArbitraryArgs,
		RunE:          noVerb(strings.Join(args, " ")),
		// Options behind a word that is no verb are not what is wrong.
		FParseErrWhitelist: cobra.FParseErrWhitelist{UnknownFlags: true},
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if !slices.Contains(levels(), strings.ToLower(s.logLevel)) {
				return fmt.Errorf("unknown log level '%s': want one of %s", s.logLevel, strings.Join(levels(), ", "))
			}
			return nil
		},
	}
	root.SuggestionsMinimumDistance = 2
	root.SetIn(set.In)
	root.SetOut(set.Out)
	root.SetErr(set.Err)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return &usageError{cmd, err.Error()} })
	f := root.PersistentFlags()
	f.StringVarP(&s.config, "config", "c", "", "file that says where etcd is (default "+set.Config+" if it exists, else the environment)")
	f.StringVar(&s.context, "context", "", "accepted for scripts; there is no Kubernetes context to choose")
	f.StringVarP(&s.logLevel, "log-level", "l", "panic", "debug tells every request to etcd on standard error; the others are for scripts and tell nothing more: "+strings.Join(levels()[:5], ", "))
	f.BoolVar(&s.allowMismatch, "allow-version-mismatch", false, "work also on a cluster of another version than "+clientVersion)
	root.AddCommand(
		s.getCommand(), s.createCommand(), s.applyCommand(), s.replaceCommand(), s.patchCommand(), s.deleteCommand(),
		s.labelCommand(), s.validateCommand(), s.diffCommand(), s.versionCommand(),
	)
	for _, verb := range others() {
		root.AddCommand(verb(s.env()))
	}
	root.SetHelpCommand(helpCommand(root))
	refuseUnknown(root)
	s.suggestBelow(root)
	s.addExamples(root, "")
	return root
}

// refuseUnknown makes the commands that only hold others fail without a verb of theirs, or with a wrong one: a script must not take
// the help that it did not ask for as success. The others fail with their usage where they have too few arguments or too many.
func refuseUnknown(parent *cobra.Command) {
	for _, c := range parent.Commands() {
		refuseUnknown(c)
		if wanted := c.Args; wanted != nil {
			c.Args = func(cmd *cobra.Command, args []string) error {
				if err := wanted(cmd, args); err != nil {
					return misused(cmd, args, err.Error())
				}
				return nil
			}
		}
		if !c.HasSubCommands() || c.Runnable() {
			continue
		}
		c.Args, c.SuggestionsMinimumDistance = cobra.ArbitraryArgs, parent.SuggestionsMinimumDistance
		c.FParseErrWhitelist = parent.FParseErrWhitelist
		c.RunE = func(cmd *cobra.Command, args []string) error { return noVerb(cmd.CommandPath())(cmd, args) }
	}
}

func helpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:   "help [VERB...]",
		Short: "Explain a verb, as its --help does",
		RunE: func(_ *cobra.Command, args []string) error {
			cmd, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				return noVerb("")(cmd, rest)
			}
			cmd.InitDefaultHelpFlag()
			return cmd.Help()
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) (out []string, _ cobra.ShellCompDirective) {
			cmd, _, err := root.Find(args)
			if err != nil {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			for _, c := range cmd.Commands() {
				if c.IsAvailableCommand() {
					out = append(out, c.Name())
				}
			}
			return out, cobra.ShellCompDirectiveNoFileComp
		},
	}
}

// others are the verbs that packages of their own make.
func others() []func(cli.Env) *cobra.Command {
	return []func(cli.Env) *cobra.Command{addresses.Command, migrate.Command, hosts.Command, hosts.ClusterCommand, hosts.DoctorCommand, why.Command}
}

func (s *session) env() cli.Env {
	return cli.Env{Program: s.name, In: s.In, Out: s.Out, Err: s.Err, Now: s.Now, Connect: s.connect, Etcd: s.etcd, Getenv: s.Env}
}

// display is what the program is called: a plugin of kubectl's is two words.
func display(program string) string {
	base := filepath.Base(program)
	if verb, ok := strings.CutPrefix(base, "kubectl-"); ok {
		return "kubectl " + verb
	}
	return base
}

// examples are command lines as their user would write them.
func (s *session) examples(lines ...string) string {
	return "  " + s.name + " " + strings.Join(lines, "\n  "+s.name+" ")
}

// usageError is a command line that makes no sense; the command's usage follows it.
type usageError struct {
	cmd *cobra.Command
	msg string
}

func (e *usageError) Error() string { return e.msg }

// misused refuses a command line.
func misused(cmd *cobra.Command, args []string, hint string) error {
	line := strings.TrimSpace(cmd.CommandPath() + " " + strings.Join(args, " "))
	return &usageError{cmd, fmt.Sprintf("invalid option: '%s': %s. Use flag '--help' to read about a specific subcommand.", line, hint)}
}

// noVerb is what happens where no command was recognized in a line.
func noVerb(line string) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return &usageError{cmd, fmt.Sprintf("Invalid option: '%s'. Use flag '--help' to read about a specific subcommand.", line)}
		}
		msg := fmt.Sprintf("unknown command: %q", args[0])
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			msg += fmt.Sprintf("; did you mean %q?", near[0])
		}
		return &usageError{cmd, msg}
	}
}

// onObjects runs f on the datastore.
func (s *session) onObjects(ctx context.Context, f func(*objects.Client) error) error {
	return s.env().With(ctx, func(c *store.Client) error {
		return f(&objects.Client{
			Store: c, UUID: s.UUID, Now: s.Now,
			Notice: func(text string) { fmt.Fprintln(s.Err, text) },
		})
	})
}
