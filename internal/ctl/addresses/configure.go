package addresses

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/muslin-cni/muslin/internal/ctl/cli"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
)

// setting is one option of configure.
type setting struct {
	flag, name string
	set        func(c *api.IPAMConfig, text string) error
}

func settings() []setting {
	return []setting{
		{"strictaffinity", "StrictAffinity", func(c *api.IPAMConfig, text string) (err error) {
			if c.StrictAffinity, err = strconv.ParseBool(text); err != nil {
				err = errors.New("want true or false")
			}
			return err
		}},
		{"max-blocks-per-host", "MaxBlocksPerHost", func(c *api.IPAMConfig, text string) error {
			n, err := strconv.ParseInt(text, 10, 32)
			if err != nil {
				return errors.New("want a number")
			}
			c.MaxBlocksPerHost = int(n)
			return nil
		}},
		{"kubevirt-ip-persistence", "KubeVirtVMAddressPersistence", func(c *api.IPAMConfig, text string) error {
			if text != "Enabled" && text != "Disabled" {
				return errors.New("want Enabled or Disabled")
			}
			c.KubeVirt = &text
			return nil
		}},
	}
}

func configureCommand(env cli.Env) *cobra.Command {
	c := &cobra.Command{
		Use:   "configure [--strictaffinity=<true/false>] [--max-blocks-per-host=<N>] [--kubevirt-ip-persistence=<Enabled|Disabled>]",
		Short: "Change the settings that hold for all pools",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return configure(c, env) },
	}
	f := c.Flags()
	f.String("strictaffinity", "", "true: a node uses no addresses of other nodes' blocks")
	f.String("max-blocks-per-host", "", "how many blocks a node may have, 0: no limit of yours; needs strict affinity")
	f.String("kubevirt-ip-persistence", "", "Enabled: a virtual machine keeps its addresses when it is restarted or moved")
	return c
}

func configure(c *cobra.Command, env cli.Env) error {
	var given []setting
	for _, s := range settings() {
		if !c.Flags().Changed(s.flag) {
			continue
		}
		if err := s.set(&api.IPAMConfig{}, c.Flag(s.flag).Value.String()); err != nil {
			return fmt.Errorf("invalid value '%s' for --%s: %w", c.Flag(s.flag).Value, s.flag, err)
		}
		given = append(given, s)
	}
	if len(given) == 0 {
		return errNoOption
	}
	err := env.With(c.Context(), func(client *store.Client) error {
		_, err := store.Mutate(c.Context(), client, api.IPAMConfigKey, func(v *api.IPAMConfig, exists bool) (bool, error) {
			if !exists {
				*v = api.DefaultIPAMConfig()
			}
			for _, s := range given {
				if err := s.set(v, c.Flag(s.flag).Value.String()); err != nil {
					return false, err
				}
			}
			return true, ipam.CheckConfig(*v)
		})
		return err
	})
	if err != nil {
		return err
	}
	for _, s := range given {
		if _, err := fmt.Fprintf(env.Out, "Successfully set %s to: %s\n", s.name, c.Flag(s.flag).Value); err != nil {
			return err
		}
	}
	return nil
}

// readConfig is the configuration that holds.
func readConfig(ctx context.Context, c *store.Client) (api.IPAMConfig, error) {
	e, err := store.Get[api.IPAMConfig](ctx, c, api.IPAMConfigKey)
	if errors.Is(err, store.ErrNotFound) {
		return api.DefaultIPAMConfig(), nil
	}
	if err != nil {
		return api.IPAMConfig{}, err
	}
	return *e.Value, nil
}
