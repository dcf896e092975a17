package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/muslin-cni/muslin/internal/config"
	"github.com/muslin-cni/muslin/internal/startup"
)

// Process is what muslin-node has from the world outside.
type Process struct {
	Args           []string // without the program's name
	Environ        []string // NAME=value
	Stdout, Stderr io.Writer
	Version        string
}

const usage = `muslin-node is the agent of a node: it programs routes, tunnels and NAT from etcd and serves the CNI plugin.

  muslin-node             run until SIGTERM or SIGINT; what it has put into the kernel stays
  muslin-node config      print every setting as it would take effect here, and what made it so
  muslin-node install     put CNI programs, etcd's certificates and the network configuration on this host, the last once
                          the agent serves pods; then stay and renew them (SLEEP=false: end), as CNI_… variables say
  muslin-node uninstall [--force | --stay]
                          take everything of ours off this host: routes, devices, rules, sets, files, the plugin's log;
                          --force: pods too; --stay: then stay until SIGTERM or SIGINT, as a pod of a DaemonSet has to
  muslin-node -shutdown   write down that the node is going down, as a preStop hook does
  muslin-node --version
  muslin-node --help
`

// Main does what the arguments say and returns the exit code: 0, 1 for a failure, 2 for arguments that nobody understands. The agent runs
// until ctx ends.
func Main(ctx context.Context, p Process) int {
	verb := strings.Join(p.Args, " ")
	var err error
	switch strings.TrimLeft(verb, "-") {
	case "":
		err = Run(ctx, p)
	case "h", "help":
		err = help(p.Stdout)
	case "v", "version":
		_, err = fmt.Fprintln(p.Stdout, p.Version)
	case "config":
		err = printConfig(ctx, p)
	case "install":
		err = installHost(ctx, p)
	case "uninstall", "uninstall --force":
		err = uninstall(ctx, p, strings.HasSuffix(verb, "--force"))
	case "uninstall --stay":
		err = uninstallAndStay(ctx, p)
	case "shutdown":
		err = shutdown(ctx, p.Environ)
	default:
		_, _ = fmt.Fprintf(p.Stderr, "muslin-node: unknown argument %q; muslin-node --help says what there is\n", verb) // nobody is left to tell
		return 2
	}
	if err != nil {
		_, _ = fmt.Fprintln(p.Stderr, "muslin-node:", err)
		return 1
	}
	return 0
}

func help(w io.Writer) error {
	if _, err := io.WriteString(w, usage); err != nil {
		return err
	}
	return config.WriteHelp(w)
}

// lookup is an environment as a function. Of two values of one name the last counts, as in a shell.
func lookup(environ []string) config.Env {
	values := make(map[string]string, len(environ))
	for _, pair := range environ {
		name, text, _ := strings.Cut(pair, "=")
		values[name] = text
	}
	return func(name string) string { return values[name] }
}

// shutdown is for a hook that runs before the agent gets its signal: it writes down since when the node is down, and tells Kubernetes.
func shutdown(ctx context.Context, environ []string) error {
	env := lookup(environ)
	cfg, err := config.FromEnv(env)
	if cfg.ShutdownFile == "" {
		return err
	}
	return errors.Join(startup.SayDown(cfg.ShutdownFile, time.Now()), sayNetworkDown(ctx, cfg, env))
}
