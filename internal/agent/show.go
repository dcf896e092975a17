package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/muslin-cni/muslin/internal/config"
	"github.com/muslin-cni/muslin/internal/startup"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// showTimeout bounds how long etcd is waited for where someone wants to read the settings.
const showTimeout = 5 * time.Second

// printConfig prints every setting with its source. What cannot be read, or not be reached, is in the error, and the rest is printed all
// the same.
func printConfig(ctx context.Context, p Process) error {
	file, fileErr := config.ReadFile(lookup(p.Environ))
	env := config.Local(lookup(p.Environ), file)
	cfg, envErr := config.FromEnv(env)
	node, nameErr := startup.NodeName(cfg, env)
	sources := config.Sources{Env: env, File: file}
	etcdErr := readFelix(ctx, env, node, &sources)
	rows := config.NodeInForce(env)
	for i := range rows {
		if rows[i].Env == "NODENAME" && rows[i].Value == "" {
			rows[i].Value, rows[i].Source = node, "this host"
		}
	}
	known, unknown := config.Unheeded(p.Environ)
	for _, k := range known {
		name, why, _ := strings.Cut(k, ": ")
		rows = append(rows, config.InForce{Setting: config.Setting{Name: name}, Value: env(name), Source: "changes nothing: " + why})
	}
	_, bad := config.Effective(sources)
	for _, u := range unknown {
		bad = append(bad, "unknown variable "+u)
	}
	err := errors.Join(fileErr, envErr, nameErr, etcdErr)
	for _, b := range bad {
		err = errors.Join(err, errors.New(b))
	}
	return errors.Join(table(p, append(rows, config.FelixInForce(sources)...)), err)
}

func table(p Process, rows []config.InForce) error {
	w := tabwriter.NewWriter(p.Stdout, 0, 0, 2, ' ', 0)
	lines := []string{"SETTING\tVALUE\tSOURCE"}
	for _, r := range rows {
		lines = append(lines, fmt.Sprintf("%s\t%s\t%s", r.Name, cmp.Or(r.Value, "-"), r.Source))
	}
	if _, err := fmt.Fprintln(w, strings.Join(lines, "\n")); err != nil {
		return err
	}
	return w.Flush()
}

// readFelix adds to the sources what etcd has.
func readFelix(ctx context.Context, env config.Env, node string, into *config.Sources) error {
	cfg, err := store.FromEnv(env)
	if err != nil {
		return fmt.Errorf("FelixConfiguration is left out: %w", err)
	}
	c, err := store.New(cfg)
	if err != nil {
		return fmt.Errorf("FelixConfiguration is left out: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, showTimeout)
	defer cancel()
	into.Global, err = felixConfig(ctx, c, "default")
	if err == nil {
		into.Node, err = felixConfig(ctx, c, "node."+node)
	}
	if err != nil {
		err = fmt.Errorf("FelixConfiguration is left out: %w", err)
	}
	return errors.Join(err, c.Close())
}

// felixConfig is one FelixConfiguration; nil where there is none, or none that can be read: the loop names that.
func felixConfig(ctx context.Context, c *store.Client, name string) (*api.FelixConfiguration, error) {
	e, err := store.Get[api.FelixConfiguration](ctx, c, (*api.FelixConfiguration)(nil).KindOf().Key("", name))
	var unreadable *store.UnreadableError
	if errors.Is(err, store.ErrNotFound) || errors.As(err, &unreadable) {
		return nil, nil
	}
	return e.Value, err
}
