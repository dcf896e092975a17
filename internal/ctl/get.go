package ctl

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/muslin-cni/muslin/internal/ctl/objects"
	"github.com/muslin-cni/muslin/internal/ctl/show"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// getOptions are those of get.
type getOptions struct {
	input
	output string
	all    bool // namespaces
	export bool
	watch  bool
}

func (s *session) getCommand() *cobra.Command {
	var o getOptions
	cmd := &cobra.Command{
		Use:   "get (KIND [NAME...] | -f FILE)",
		Short: "Print resources",
		Long: `Print resources: all of a kind, those that are named, or those that a file names, as they are stored.

Kinds may be given in any case, in the plural, or by their short forms:

` + kindsTable(),
		Example: s.examples(
			`get ippools -o wide`,
			`get node node-1 node-2 -o yaml`,
			`get networkpolicies --all-namespaces`,
			`get ippools -o jsonpath='{.items[*].spec.cidr}'`,
			`get workloadendpoints -n web --watch`,
			`get node node-1 -o yaml -w`,
		),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (len(args) == 0) == (o.file == "") {
				return misused(cmd, args, "want either a kind or -f FILE")
			}
			return s.get(cmd.Context(), o, args)
		},
		ValidArgsFunction: s.suggestKinds(&o.input, 0),
	}
	o.flags(cmd)
	f := cmd.Flags()
	f.StringVarP(&o.output, "output", "o", "", "format: "+strings.Join(show.Formats(), ", ")+" (default: a table)")
	f.BoolVarP(&o.all, "all-namespaces", "A", false, "resources of all namespaces")
	f.BoolVarP(&o.all, "old-all-namespaces", "a", false, "the old form of -A")
	f.BoolVar(&o.export, "export", false, "leave out what belongs to this cluster: namespace, uid, resourceVersion and times; with names only")
	f.BoolVarP(&o.watch, "watch", "w", false, "go on printing what changes, until interrupted; those that are named need not exist yet")
	_ = f.MarkHidden("old-all-namespaces") // there is such an option
	_ = cmd.RegisterFlagCompletionFunc("output", suggestFormats)
	return cmd
}

// get prints what it finds and then fails for what it does not.
func (s *session) get(ctx context.Context, o getOptions, args []string) error {
	var client *objects.Client
	printer, err := show.New(o.output, show.Settings{
		Namespaces: o.all || o.namespace != "",
		ASN:        func() string { return s.clusterASN(ctx, client) },
	})
	if err != nil {
		return err
	}
	q, err := s.query(o, args)
	if err != nil {
		return err
	}
	if len(q.targets) == 0 && !q.list {
		return nil // an empty file, and that is fine
	}
	return s.onObjects(ctx, func(c *objects.Client) error {
		client = c
		if o.watch {
			return s.watch(ctx, c, o, q, printer)
		}
		r, err := q.find(ctx, c)
		if len(r.Items) == 0 && err != nil {
			return err
		}
		if o.export && !r.List {
			for i := range r.Items {
				if err := exported(&r.Items[i]); err != nil {
					return err
				}
			}
		}
		return errors.Join(printer.Print(s.Out, r), err)
	})
}

// query is what to get: objects by name, or all of a kind.
type query struct {
	kind      api.Kind
	namespace string // of a list; "": all
	list      bool
	targets   []api.Object
}

func (s *session) query(o getOptions, args []string) (query, error) {
	if o.file != "" {
		found, err := s.draft(o.input)
		if err != nil || len(found) == 0 {
			return query{}, err
		}
		q := query{kind: found[0].Object.KindOf()}
		for _, r := range found {
			q.targets = append(q.targets, r.Object)
		}
		return q, nil
	}
	k, err := kindNamed(args[0])
	if err != nil {
		return query{}, fmt.Errorf("failed to get resources: %w", err)
	}
	q := query{kind: k, list: len(args) == 1}
	for _, name := range args[1:] {
		target, err := o.named(k, name)
		if err != nil {
			return q, err
		}
		q.targets = append(q.targets, target)
	}
	if q.list {
		probe, err := o.named(k, "")
		if err != nil {
			return q, err
		}
		q.namespace = probe.Meta().Namespace
	}
	if o.all {
		q.namespace = ""
		for _, t := range q.targets {
			t.Meta().Namespace = ""
		}
	}
	return q, nil
}

// find returns what there is; the error says what there is not.
func (q query) find(ctx context.Context, c *objects.Client) (show.Result, error) {
	r := show.Result{Kind: q.kind, List: q.list}
	var errs []error
	if q.list {
		all, err := c.List(ctx, q.kind, q.namespace)
		if err != nil && all.Rev == 0 {
			return r, err
		}
		r.Rev, errs = all.Rev, append(errs, err)
		for _, stored := range all.Items {
			errs = append(errs, add(&r, stored))
		}
		return r, errors.Join(errs...)
	}
	for _, t := range q.targets {
		found, err := named(ctx, c, t)
		errs = append(errs, err)
		if errors.Is(err, store.ErrUnavailable) {
			break // the next would wait as long
		}
		for _, stored := range found {
			errs = append(errs, add(&r, stored))
		}
	}
	return r, errors.Join(errs...)
}

// named finds an object by its name; one without namespace in all of them.
func named(ctx context.Context, c *objects.Client, t api.Object) ([]objects.Stored, error) {
	k, m := t.KindOf(), t.Meta()
	if !k.Namespaced || m.Namespace != "" {
		stored, err := c.Get(ctx, k, m.Namespace, m.Name)
		if err != nil {
			return nil, err
		}
		return []objects.Stored{stored}, nil
	}
	all, err := c.List(ctx, k, "")
	if err != nil && all.Rev == 0 {
		return nil, err
	}
	others := slices.DeleteFunc(all.Items, func(s objects.Stored) bool { return s.Object.Meta().Name != m.Name })
	if len(others) == 0 && err == nil {
		err = &objects.NotFoundError{Object: fmt.Sprintf("%s(%s) in any namespace", k.Name, m.Name)}
	}
	return others, err
}

func add(r *show.Result, stored objects.Stored) error {
	text, err := stored.Text()
	if err != nil {
		return err
	}
	r.Items = append(r.Items, show.Item{Object: stored.Object, Text: text})
	return nil
}

// exported takes away what belongs to this cluster.
func exported(it *show.Item) error {
	o := api.Clone(it.Object)
	m := o.Meta()
	m.Namespace, m.UID, m.ResourceVersion, m.CreationTimestamp, m.DeletionTimestamp = "", "", "", time.Time{}, nil
	text, err := api.Text(o, it.Text)
	it.Object, it.Text = o, text
	return err
}

// clusterASN is the number of nodes that have none of their own.
func (s *session) clusterASN(ctx context.Context, c *objects.Client) string {
	stored, err := c.Get(ctx, (*api.BGPConfiguration)(nil).KindOf(), "", "default")
	if err == nil {
		if cfg, ok := stored.Object.(*api.BGPConfiguration); ok && cfg.Spec.ASNumber != nil {
			return fmt.Sprint(*cfg.Spec.ASNumber)
		}
	}
	return "64512" // where nobody configured one
}

// watch prints what there is and then every change, until ctx ends.
func (s *session) watch(ctx context.Context, c *objects.Client, o getOptions, q query, printer *show.Printer) error {
	var keys map[string]bool
	if !q.list {
		keys = map[string]bool{}
		for _, t := range q.targets {
			if t.KindOf() != q.kind {
				return errors.New("--watch wants resources of one kind")
			}
			keys[api.KeyOf(t)] = true
		}
		if o.all && q.kind.Namespaced {
			return errors.New("--watch wants names or --all-namespaces, and not both")
		}
	}
	head := true
	err := c.Follow(ctx, q.kind, q.namespace, keys, func(change objects.Change) error {
		if change.Err != nil {
			fmt.Fprintln(s.Err, change.Err)
			return nil
		}
		var now show.Result
		if err := add(&now, change.Object); err != nil {
			return err
		}
		if o.export && !q.list {
			if err := exported(&now.Items[0]); err != nil {
				return err
			}
		}
		err := printer.Event(s.Out, change.Event, now.Items[0], head)
		head = false
		return err
	})
	if ctx.Err() != nil {
		return nil // the user has seen enough
	}
	return err
}
