package ctl

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/muslin-cni/muslin/internal/ctl/manifest"
	"github.com/muslin-cni/muslin/internal/ctl/objects"
	"github.com/muslin-cni/muslin/internal/ctl/show"
	"github.com/muslin-cni/muslin/pkg/api"
)

// defaultNamespace is that of namespaced resources for which nobody names one.
const defaultNamespace = "default"

// completionTime bounds how long the shell waits for names.
const completionTime = time.Second

// kindNamed finds what a user calls a kind.
func kindNamed(word string) (api.Kind, error) {
	k, ok := api.Lookup(word)
	if ok && !k.Hidden {
		return k, nil
	}
	hint := ""
	if near := api.Suggest(word); near != "" && !ok {
		hint = fmt.Sprintf("; did you mean %q?", near)
	}
	return api.Kind{}, fmt.Errorf("resource type '%s' is not supported%s", word, hint)
}

// input is the options by which resources are given: by kind and name, or in files.
type input struct {
	file      string
	recursive bool
	skipEmpty bool
	namespace string
}

func (in *input) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.VarP((*once)(&in.file), "filename", "f", "file or folder with resources in YAML or JSON; - is standard input")
	f.BoolVarP(&in.recursive, "recursive", "R", false, "with a folder: its folders too")
	f.BoolVar(&in.skipEmpty, "skip-empty", false, "do not fail if there are no resources in it")
	in.namespaceFlag(cmd)
}

// once is an option that is given once: of two files, one would not be read.
type once string

func (o *once) String() string { return string(*o) }
func (o *once) Type() string   { return "string" }
func (o *once) Set(value string) error {
	if *o != "" {
		return errors.New("it is given twice: name a folder, or join the files by a line with ---")
	}
	*o = once(value)
	return nil
}

func (in *input) namespaceFlag(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&in.namespace, "namespace", "n", "", `namespace of namespaced resources (default "default")`)
}

// resources reads the files, with the namespaces filled in. Every field must be known.
func (s *session) resources(in input) ([]manifest.Resource, error) {
	found, err := s.draft(in)
	if unknown := manifest.Strict(found); unknown != nil {
		return nil, fmt.Errorf("failed to execute command: %w", errors.Join(unknown, err))
	}
	return found, err
}

// recognize refuses fields that nobody knows before anything is done with any of the resources. What is stored may have fields of a newer
// writer; get prints them, and a file that has them as they are stored is right.
func recognize(ctx context.Context, c *objects.Client, found []manifest.Resource) error {
	var errs []error
	for _, r := range found {
		if r.Unknown == nil {
			continue
		}
		err := c.Recognize(ctx, r.Object, r.Unknown)
		if _, invalid := errors.AsType[*api.InvalidError](err); err != nil && !invalid {
			return err
		}
		if err != nil {
			errs = append(errs, r.Locate(err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("failed to execute command: %w", err)
	}
	return nil
}

// draft is resources with fields that a kind does not have, for recognize.
func (s *session) draft(in input) ([]manifest.Resource, error) {
	found, err := manifest.Read(manifest.Source{Path: in.file, Recursive: in.recursive, Stdin: s.In})
	if empty, ok := errors.AsType[*manifest.EmptyError](err); ok {
		if in.skipEmpty {
			fmt.Fprintln(s.Out, "No resources specified")
			return nil, nil
		}
		return nil, empty
	}
	if err != nil {
		return nil, fmt.Errorf("failed to execute command: %w", errors.Join(err, manifest.Strict(found)))
	}
	var errs []error
	for _, r := range found {
		if err := in.place(r.Object); err != nil {
			errs = append(errs, r.Locate(err))
		}
	}
	return found, errors.Join(errs...)
}

// place puts an object into the namespace that it is meant for.
func (in *input) place(o api.Object) error {
	m, k := o.Meta(), o.KindOf()
	switch {
	case !k.Namespaced && m.Namespace != "":
		return fmt.Errorf("namespace should not be specified for a non-namespaced resource. %s is not a namespaced resource", k.Name)
	case !k.Namespaced && in.namespace != "":
		return fmt.Errorf("%s is not namespaced", k.Name)
	case !k.Namespaced:
	case m.Namespace == "" && in.namespace == "":
		m.Namespace = defaultNamespace
	case m.Namespace == "":
		m.Namespace = in.namespace
	case in.namespace != "" && m.Namespace != in.namespace:
		return fmt.Errorf("resource namespace does not match client namespace. %s != %s", m.Namespace, in.namespace)
	}
	return nil
}

// named is an object of that kind and name, with nothing else.
func (in *input) named(k api.Kind, name string) (api.Object, error) {
	o := k.New()
	o.Meta().Name = name
	return o, in.place(o)
}

// suggestKinds completes kinds, and names of what is in etcd behind a kind.
func (s *session) suggestKinds(in *input, most int) func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return func(cmd *cobra.Command, args []string, begun string) (out []string, _ cobra.ShellCompDirective) {
		if len(args) == 0 {
			for _, k := range api.Kinds() {
				if word := strings.ToLower(k.Name); !k.Hidden && strings.HasPrefix(word, strings.ToLower(begun)) {
					out = append(out, word)
				}
			}
			return out, cobra.ShellCompDirectiveNoFileComp
		}
		if most > 0 && len(args) > most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		namespace := in.namespace
		if all, err := cmd.Flags().GetBool("all-namespaces"); namespace == "" && (err != nil || !all) {
			namespace = defaultNamespace
		}
		for _, name := range s.namesOf(cmd.Context(), args[0], namespace) {
			if strings.HasPrefix(name, begun) && !slices.Contains(args[1:], name) && !slices.Contains(out, name) {
				out = append(out, name)
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}

// suggestBelow completes what commands of other packages take, and the root's options.
func (s *session) suggestBelow(root *cobra.Command) {
	of := func(word string) cobra.CompletionFunc {
		return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 && word == "node" {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return s.namesOf(cmd.Context(), word, ""), cobra.ShellCompDirectiveNoFileComp
		}
	}
	if adopt, _, err := root.Find([]string{"node", "adopt"}); err == nil {
		adopt.ValidArgsFunction = of("node")
	}
	if split, _, err := root.Find([]string{"ipam", "split"}); err == nil {
		_ = split.RegisterFlagCompletionFunc("name", of("ippool")) // there is such an option
	}
	_ = root.RegisterFlagCompletionFunc("log-level", cobra.FixedCompletions(levels(), cobra.ShellCompDirectiveNoFileComp)) // likewise
}

// namesOf are the names of a kind's objects, of one namespace or ("") of all; none if etcd does not say within a second.
func (s *session) namesOf(ctx context.Context, word, namespace string) (out []string) {
	k, err := kindNamed(word)
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, completionTime)
	defer cancel()
	c, err := s.open(completionTime)
	if err != nil {
		return nil
	}
	defer func() { _ = c.Close() }() // there is nobody to tell
	all, _ := (&objects.Client{Store: c}).List(ctx, k, namespace)
	for _, it := range all.Items {
		out = append(out, it.Object.Meta().Name)
	}
	return out
}

func suggestFormats(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return show.Formats(), cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}
