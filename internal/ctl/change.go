package ctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/rogpeppe/go-internal/diff"

	"github.com/muslin-cni/muslin/internal/ctl/cli"
	"github.com/muslin-cni/muslin/internal/ctl/objects"
	"github.com/muslin-cni/muslin/pkg/api"
)

func (s *session) patchCommand() *cobra.Command {
	var in input
	var patch string
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "patch KIND NAME -p PATCH",
		Short: "Change some fields of a resource",
		Long: `Change some fields of a resource. The patch is JSON or YAML with these fields alone; null takes a field away, and a list replaces the
whole list.`,
		Example: s.examples(
			`patch node node-1 -p '{"spec": {"bgp": {"routeReflectorClusterID": "244.0.0.1"}}}'`,
			`patch ippool pool-1 -p '{"spec": {"disabled": true}}'`,
		),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 || patch == "" {
				return misused(cmd, args, "want a kind, a name and -p PATCH")
			}
			k, err := kindNamed(args[0])
			if err != nil {
				return fmt.Errorf("failed to patch resource: %w", err)
			}
			target, err := in.named(k, args[1])
			if err != nil {
				return err
			}
			text, err := patchOf(patch)
			if err != nil {
				return fmt.Errorf("failed to patch '%s' resource: %w", k.Name, err)
			}
			return s.onObjects(cmd.Context(), func(c *objects.Client) error {
				c.DryRun = dryRun
				if err := c.Patch(cmd.Context(), k, target.Meta().Namespace, target.Meta().Name, text); err != nil {
					return fmt.Errorf("failed to patch '%s' resource: %w", k.Name, err)
				}
				fmt.Fprintf(s.Out, "Successfully patched 1 '%s' resource\n", k.Name)
				return nil
			})
		},
		ValidArgsFunction: s.suggestKinds(&in, 1),
	}
	in.namespaceFlag(cmd)
	dryRunFlag(cmd, &dryRun)
	cmd.Flags().StringVarP(&patch, "patch", "p", "", "the fields to change, as JSON or YAML")
	return cmd
}

// patchOf is a patch as JSON.
func patchOf(text string) ([]byte, error) {
	raw := []byte(text)
	if json.Valid(raw) {
		return raw, nil
	}
	if t := strings.TrimSpace(text); strings.HasPrefix(t, "{") || strings.HasPrefix(t, "[") {
		var v any
		if err := json.Unmarshal(raw, &v); err != nil {
			if out, yamlErr := yaml.YAMLToJSONStrict(raw); yamlErr == nil { // flow style
				return out, nil
			}
			return nil, fmt.Errorf("read patch: %w", err)
		}
	}
	out, err := yaml.YAMLToJSONStrict(raw)
	if err != nil {
		return nil, fmt.Errorf("read patch: %w", err)
	}
	return out, nil
}

func (s *session) labelCommand() *cobra.Command {
	var in input
	var change objects.LabelChange
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "label KIND NAME (KEY=VALUE [--overwrite] | KEY --remove)",
		Short: "Set or remove a label of a resource",
		Example: s.examples(
			`label node node-1 rack=12`,
			`label node node-1 rack=13 --overwrite`,
			`label node node-1 rack --remove`,
		),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 3 {
				return misused(cmd, args, "want a kind, a name and a label")
			}
			key, value, given := strings.Cut(args[2], "=")
			if given == change.Remove || change.Remove && change.Overwrite {
				return misused(cmd, args, "want KEY=VALUE, with or without --overwrite, or KEY and --remove")
			}
			change.Key, change.Value = key, value
			k, err := kindNamed(args[0])
			if err != nil {
				return fmt.Errorf("failed to label resource: %w", err)
			}
			target, err := in.named(k, args[1])
			if err != nil {
				return err
			}
			return s.label(cmd.Context(), labelling{word: args[0], target: target, change: change, dryRun: dryRun})
		},
		ValidArgsFunction: s.suggestKinds(&in, 1),
	}
	in.namespaceFlag(cmd)
	dryRunFlag(cmd, &dryRun)
	cmd.Flags().BoolVar(&change.Overwrite, "overwrite", false, "give the label the value also if it has another one")
	cmd.Flags().BoolVar(&change.Remove, "remove", false, "take the label away")
	return cmd
}

// labelling is one label command.
type labelling struct {
	word   string // the kind as the user calls it
	target api.Object
	change objects.LabelChange
	dryRun bool
}

func (s *session) label(ctx context.Context, l labelling) error {
	name := l.target.Meta().Name
	return s.onObjects(ctx, func(c *objects.Client) error {
		c.DryRun = l.dryRun
		had, err := c.Label(ctx, l.target.KindOf(), l.target.Meta().Namespace, name, l.change)
		_, exists := errors.AsType[*objects.LabelExistsError](err)
		_, missing := errors.AsType[*objects.LabelMissingError](err)
		switch {
		case exists:
			return fmt.Errorf("failed to update label of %s %s, %w. please use '--overwrite' to set a new value", l.word, name, err)
		case missing:
			return fmt.Errorf("cannot remove label of %s %s, %w", l.word, name, err)
		case err != nil:
			return fmt.Errorf("failed to label %s %s: %w", l.word, name, err)
		case l.change.Remove:
			fmt.Fprintf(s.Out, "Successfully removed label %s from %s %s\n", l.change.Key, l.word, name)
		case had:
			fmt.Fprintf(s.Out, "Successfully updated label %s on %s %s\n", l.change.Key, l.word, name)
		default:
			fmt.Fprintf(s.Out, "Successfully set label %s on %s %s\n", l.change.Key, l.word, name)
		}
		return nil
	})
}

func (s *session) diffCommand() *cobra.Command {
	var in input
	cmd := &cobra.Command{
		Use:   "diff -f FILE",
		Short: "Show what apply would change",
		Long: `Show what apply would change, as a unified diff between what is stored and what the file says with its defaults.
The exit code is 1 if there is a difference.`,
		Example: s.examples("diff -f pool.yaml", "diff -f policies/ -R"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if in.file == "" || len(args) > 0 {
				return misused(cmd, args, "want -f FILE and nothing else")
			}
			found, err := s.draft(in)
			if err != nil || len(found) == 0 {
				return err
			}
			return s.onObjects(cmd.Context(), func(c *objects.Client) error {
				if err := recognize(cmd.Context(), c, found); err != nil {
					return err
				}
				differs := false
				var errs []error
				for _, it := range found {
					text, err := difference(cmd.Context(), c, it.Object)
					if err != nil {
						errs = append(errs, locate(it, err))
					}
					differs = differs || len(text) > 0
					fmt.Fprintf(s.Out, "%s", text)
				}
				if err := errors.Join(errs...); err != nil || !differs {
					return err
				}
				return cli.ErrReported
			})
		},
	}
	in.flags(cmd)
	return cmd
}

// difference is what apply would change in one object; "" if nothing.
func difference(ctx context.Context, c *objects.Client, o api.Object) ([]byte, error) {
	was, will, err := c.Preview(ctx, o)
	if err != nil {
		return nil, err
	}
	if was != nil {
		if was, err = yaml.JSONToYAML(was); err != nil {
			return nil, err
		}
	}
	if will, err = yaml.JSONToYAML(will); err != nil {
		return nil, err
	}
	name := api.Identify(o)
	return diff.Diff(name+" stored", was, name+" file", will), nil
}
