package ctl

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/muslin-cni/muslin/internal/ctl/cli"
	"github.com/muslin-cni/muslin/internal/ctl/manifest"
	"github.com/muslin-cni/muslin/internal/ctl/objects"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// batchVerb is a verb that is done to each of many resources.
type batchVerb struct {
	verb, past string
	stops      bool // at the first failure
	// skip tells a failure that counts as success.
	skip func(error) bool
	// all does it to objects in their order and says of each how it went, until done returns false.
	all func(ctx context.Context, c *objects.Client, all []api.Object, done func(i int, err error) bool)
}

// oneByOne does something to each of many objects.
func oneByOne(each func(context.Context, *objects.Client, api.Object) error) func(context.Context, *objects.Client, []api.Object, func(int, error) bool) {
	return func(ctx context.Context, c *objects.Client, all []api.Object, done func(int, error) bool) {
		for i, o := range all {
			if !done(i, each(ctx, c, o)) {
				return
			}
		}
	}
}

// together writes many objects.
func together(verb objects.Verb) func(context.Context, *objects.Client, []api.Object, func(int, error) bool) {
	return func(ctx context.Context, c *objects.Client, all []api.Object, done func(int, error) bool) {
		c.Write(ctx, verb, all, done)
	}
}

// fileOptions are those of the verbs that take resources from files.
type fileOptions struct {
	input
	dryRun bool
	skip   bool // what is there already, or what is not there
}

// fileCommand is a verb on the resources of files.
func (s *session) fileCommand(verb, short, long string, of func(o *fileOptions) batchVerb) (*cobra.Command, *fileOptions) {
	o := &fileOptions{}
	cmd := &cobra.Command{
		Use:     verb + " -f FILE",
		Short:   short,
		Long:    short + ".\n\n" + long,
		Example: s.examples(verb+" -f pool.yaml", verb+" -f policies/ -R", verb+" -f - < pool.yaml"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.file == "" || len(args) > 0 {
				return misused(cmd, args, "want -f FILE and nothing else")
			}
			found, err := s.draft(o.input)
			if err != nil || len(found) == 0 {
				return err
			}
			return s.write(cmd.Context(), o.dryRun, of(o), found)
		},
	}
	o.flags(cmd)
	dryRunFlag(cmd, &o.dryRun)
	return cmd, o
}

func dryRunFlag(cmd *cobra.Command, dryRun *bool) {
	cmd.Flags().BoolVar(dryRun, "dry-run", false, "check everything and write nothing")
}

func (s *session) createCommand() *cobra.Command {
	cmd, o := s.fileCommand("create", "Create resources that do not exist yet",
		"A resource that exists already is an error, and the others are created all the same.",
		func(o *fileOptions) batchVerb {
			return batchVerb{verb: "create", past: "created", all: together(objects.VerbCreate),
				skip: func(err error) bool { _, exists := errors.AsType[*objects.ExistsError](err); return o.skip && exists }}
		})
	cmd.Flags().BoolVar(&o.skip, "skip-exists", false, "count resources that exist already as created, and leave them as they are")
	return cmd
}

func (s *session) applyCommand() *cobra.Command {
	cmd, _ := s.fileCommand("apply", "Create resources, or replace those that exist",
		`What the file does not say gets its default; labels and annotations are those of the file. A resource with a resourceVersion is
replaced only if it still has that one. Resources that fail do not stop the others.`,
		func(*fileOptions) batchVerb {
			return batchVerb{verb: "apply", past: "applied", all: together(objects.VerbApply)}
		})
	return cmd
}

func (s *session) replaceCommand() *cobra.Command {
	cmd, _ := s.fileCommand("replace", "Replace resources that exist",
		"As apply, but a resource that does not exist is an error, and the first error ends it.",
		func(*fileOptions) batchVerb {
			return batchVerb{verb: "replace", past: "replaced", stops: true, all: together(objects.VerbUpdate)}
		})
	return cmd
}

func (s *session) deleteCommand() *cobra.Command {
	var o fileOptions
	cmd := &cobra.Command{
		Use:   "delete (KIND NAME... | -f FILE)",
		Short: "Delete resources",
		Long: `Delete resources by name, or those that a file names.

Deleting an IPPool first stops allocations from it and takes its blocks from the nodes; pods keep addresses that they have. Deleting a
Node takes back its addresses and those of its pods, with their endpoints: do it when the node is gone. Both may be interrupted and
run again.`,
		Example: s.examples(
			`delete ippool old-pool`,
			`delete networkpolicy allow-web -n web`,
			`delete -f policies.yaml`,
		),
		RunE: func(cmd *cobra.Command, args []string) error {
			found, err := s.deleteTargets(cmd, o, args)
			if err != nil || len(found) == 0 {
				return err
			}
			return s.write(cmd.Context(), o.dryRun, batchVerb{
				verb: "delete", past: "deleted", all: oneByOne(func(ctx context.Context, c *objects.Client, r api.Object) error { return c.Delete(ctx, r) }),
				skip: func(err error) bool { _, absent := errors.AsType[*objects.NotFoundError](err); return o.skip && absent },
			}, found)
		},
		ValidArgsFunction: s.suggestKinds(&o.input, 0),
	}
	o.flags(cmd)
	dryRunFlag(cmd, &o.dryRun)
	cmd.Flags().BoolVar(&o.skip, "skip-not-exists", false, "count resources that do not exist as deleted")
	return cmd
}

func (s *session) deleteTargets(cmd *cobra.Command, o fileOptions, args []string) ([]manifest.Resource, error) {
	if o.file != "" && len(args) == 0 {
		return s.draft(o.input)
	}
	if o.file != "" || len(args) < 2 {
		return nil, misused(cmd, args, "want a kind and names, or -f FILE")
	}
	k, err := kindNamed(args[0])
	if err != nil {
		return nil, fmt.Errorf("failed to delete resources: %w", err)
	}
	var out []manifest.Resource
	for _, name := range args[1:] {
		target, err := o.named(k, name)
		if err != nil {
			return nil, err
		}
		out = append(out, manifest.Resource{Object: target})
	}
	return out, nil
}

func (s *session) validateCommand() *cobra.Command {
	var in input
	cmd := &cobra.Command{
		Use:     "validate -f FILE",
		Short:   "Check resources in files, without etcd",
		Long:    "Check resources in files, without etcd. What depends on other resources, as overlapping pools do, shows only when they are created.",
		Example: s.examples("validate -f pool.yaml", "validate -f policies/ -R"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if in.file == "" || len(args) > 0 {
				return misused(cmd, args, "want -f FILE and nothing else")
			}
			found, err := s.resources(in)
			if err != nil || len(found) == 0 {
				return err
			}
			return s.report(run(cmd.Context(), nil, batchVerb{verb: "validate", past: "validated",
				all: oneByOne(func(_ context.Context, _ *objects.Client, o api.Object) error {
					o = api.Clone(o)
					api.SetDefaults(o)
					return api.Validate(o)
				})}, found))
		},
	}
	in.flags(cmd)
	return cmd
}

// write does a verb to resources in the datastore.
func (s *session) write(ctx context.Context, dryRun bool, verb batchVerb, found []manifest.Resource) error {
	return s.onObjects(ctx, func(c *objects.Client) error {
		c.DryRun = dryRun
		if err := recognize(ctx, c, found); err != nil {
			return err
		}
		if verb.verb != "delete" {
			// It is a service to the cluster; whether the verb itself can be done shows by itself.
			if err := c.EnsureInitialized(ctx); errors.Is(err, store.ErrUnavailable) {
				return err
			}
		}
		r := run(ctx, c, verb, found)
		r.dryRun = dryRun
		return s.report(r)
	})
}

// result is how a verb went.
type result struct {
	verb   batchVerb
	kind   string // of all resources, with quotes and a blank behind; "" if there are several
	kinds  []string
	total  int
	done   int
	errs   []error
	dryRun bool
}

func run(ctx context.Context, c *objects.Client, verb batchVerb, found []manifest.Resource) result {
	r := result{verb: verb, total: len(found), kind: fmt.Sprintf("'%s' ", found[0].Object.KindOf().Name)}
	all := make([]api.Object, len(found))
	for i, it := range found {
		all[i] = it.Object
		if it.Object.KindOf() != found[0].Object.KindOf() {
			r.kind = ""
		}
	}
	verb.all(ctx, c, all, func(i int, err error) bool {
		if err == nil || verb.skip != nil && verb.skip(err) {
			r.done++
			return true
		}
		r.errs = append(r.errs, locate(found[i], err))
		r.kinds = append(r.kinds, all[i].KindOf().Name)
		hopeless := ctx.Err() != nil || errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrUnauthorized) || errors.Is(err, store.ErrFull)
		return !verb.stops && !hopeless // the others would fare no better
	})
	return r
}

// locate says where in a file the bad fields of a resource stand. Other errors have no place in it.
func locate(it manifest.Resource, err error) error {
	if _, invalid := errors.AsType[*api.InvalidError](err); invalid {
		return it.Locate(err)
	}
	return err
}

// report prints how a verb went, and fails if anything did.
func (s *session) report(r result) error {
	dry := ""
	if r.dryRun {
		dry = " (dry run: nothing was written)"
	}
	if len(r.errs) == 0 {
		fmt.Fprintf(s.Out, "Successfully %s %d %sresource(s)%s\n", r.verb.past, r.done, r.kind, dry)
		return nil
	}
	if r.done > 0 {
		fmt.Fprintf(s.Err, "Partial success: %s %d out of %d %sresources%s:\n", r.verb.past, r.done, r.total, r.kind, dry)
	}
	for i, err := range r.errs {
		fmt.Fprintln(s.Err, failed(r.verb.verb, r.kinds[i], err))
	}
	return cli.ErrReported
}

// failed is a failure as calicoctl announces it, for the scripts that look for that.
func failed(verb, kind string, err error) string {
	if verb == "delete" {
		return fmt.Sprintf("Failed to delete '%s' resource: %v", kind, err)
	}
	return fmt.Sprintf("failed to %s '%s' resource: [%v]", verb, kind, err)
}
