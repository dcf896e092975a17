package hosts

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/ctl/cli"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

func pathsCommand(env cli.Env) *cobra.Command {
	var format string
	var all bool
	c := &cobra.Command{
		Use:   "paths",
		Short: "Say how the paths to other nodes fare that pods' packets take",
		Long: "Say how the paths to other nodes fare that pods' packets take, as this node's agent has found by testing them: whether packets get through the\n" +
			"encapsulation, how large they may be, and whether their checksums arrive. Unknown is the path to a node whose agent answers no tests.\n\n" +
			"With --all it is a matrix of all nodes, as they have said in etcd: the row is the node that tests, the column the one that is tested. Each says only what is\n" +
			"not well, so of a path that is ok there the largest packet is what pods send.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := cli.CheckFormat(format); err != nil {
				return err
			}
			if all {
				return env.With(c.Context(), func(client *store.Client) error { return allPaths(c.Context(), env.Out, client, format) })
			}
			paths, err := askPaths(c.Context(), attach.Socket)
			if err != nil {
				return err
			}
			if format == "json" {
				return cli.PrintJSON(env.Out, paths)
			}
			return printPaths(env.Out, paths)
		},
	}
	c.Flags().BoolVar(&all, "all", false, "the paths between all nodes, from etcd")
	c.Flags().StringVarP(&format, "output", "o", "", "output format: json")
	return c
}

// askPaths asks the agent that serves this host.
func askPaths(ctx context.Context, socket string) ([]api.Path, error) {
	reply, err := askFor(ctx, socket, attach.Paths, "paths")
	if err != nil {
		return nil, err
	}
	paths := []api.Path{}
	if err := json.Unmarshal(reply.Paths, &paths); err != nil {
		return nil, fmt.Errorf("read what the agent says of its paths: %w", err)
	}
	return paths, nil
}

// printPaths writes a line for each path, and below why those are as they are that are not ok.
func printPaths(w io.Writer, paths []api.Path) error {
	if len(paths) == 0 {
		_, err := fmt.Fprintln(w, "There are no paths to other nodes.")
		return err
	}
	t := cli.Table{Head: []string{"PEER", "FAMILY", "BY", "STATE", "LARGEST PACKET"}}
	var notes strings.Builder
	for _, p := range paths {
		t.Rows = append(t.Rows, []string{p.Peer, p.Family, string(p.Kind), string(p.State), largest(p)})
		if p.State != api.PathOK {
			fmt.Fprintf(&notes, "%s, %s by %s: %s\n", p.Peer, p.Family, p.Kind, p.Text)
		}
	}
	if err := t.Print(w); err != nil {
		return err
	}
	_, err := io.WriteString(w, notes.String())
	return err
}

func largest(p api.Path) string {
	if p.Largest == 0 {
		return "-"
	}
	return fmt.Sprintf("%d of %d", p.Largest, p.Wanted)
}

// told is what a node has said of its paths.
type told struct {
	Node    string            `json:"node"`
	Answers bool              `json:"answers"`          // its agent tests paths, and answers those that do
	To      map[string]string `json:"to"`               // how the paths to each other node fare: ok, unknown or what is wrong
	Faults  []api.Path        `json:"faults,omitempty"` // that it has named
	More    int               `json:"more,omitempty"`   // that it has not
	record  *api.NodePaths
	faults  map[string][]api.Path // by peer
}

// mostColumns is how many nodes a matrix has at most: of more only what is not ok is listed.
const mostColumns = 16

func allPaths(ctx context.Context, w io.Writer, c *store.Client, format string) error {
	rows, err := readPaths(ctx, c)
	if err != nil {
		return err
	}
	if format == "json" {
		return cli.PrintJSON(w, rows)
	}
	if len(rows) > mostColumns {
		err = printFaults(w, rows)
	} else {
		err = printMatrix(w, rows)
	}
	if err != nil {
		return err
	}
	for _, r := range rows {
		for _, f := range r.Faults {
			if f.State == api.PathBad {
				if _, err := fmt.Fprintf(w, "%s to %s, %s by %s: %s\n", r.Node, f.Peer, f.Family, f.Kind, f.Text); err != nil {
					return err
				}
			}
		}
		if r.More > 0 {
			if _, err := fmt.Fprintf(w, "%s has %d more: `%s` there shows them\n", r.Node, r.More, "muslinctl node paths"); err != nil {
				return err
			}
		}
	}
	return nil
}

// readPaths reads what every node says, sorted by name.
func readPaths(ctx context.Context, c *store.Client) ([]*told, error) {
	nodes, _, err := store.List[api.Node](ctx, c, (*api.Node)(nil).KindOf().Prefix())
	if err != nil {
		return nil, err
	}
	records, _, err := store.List[api.NodePaths](ctx, c, api.PathsRoot)
	if err != nil {
		return nil, err
	}
	by := map[string]*told{}
	rows := []*told{}
	for _, n := range nodes {
		name := n.Value.Metadata.Name
		by[name] = &told{Node: name, To: map[string]string{}, faults: map[string][]api.Path{}}
		rows = append(rows, by[name])
	}
	for _, e := range records {
		if r := by[strings.TrimPrefix(e.Key, api.PathsRoot)]; r != nil {
			r.take(e.Value)
		}
	}
	slices.SortFunc(rows, func(a, b *told) int { return strings.Compare(a.Node, b.Node) })
	for _, from := range rows {
		for _, to := range rows {
			if from != to {
				from.To[to.Node] = from.way(to)
			}
		}
	}
	return rows, nil
}

func (r *told) take(p *api.NodePaths) {
	r.Answers, r.record, r.Faults, r.More = true, p, p.Faults, p.More
	for _, f := range p.Faults {
		r.faults[f.Peer] = append(r.faults[f.Peer], f)
	}
}

// way says how the paths to a node fare, all of them together.
func (r *told) way(to *told) string {
	var bad []string
	for _, f := range r.faults[to.Node] {
		if f.State == api.PathBad {
			bad = append(bad, fault(f))
		}
	}
	switch {
	case len(bad) > 0:
		return strings.Join(bad, ", ")
	case !r.Answers || !to.Answers || !r.record.Tested || len(r.faults[to.Node]) > 0:
		return string(api.PathUnknown)
	}
	return string(api.PathOK)
}

// fault is what is wrong with a path, in a few words.
func fault(f api.Path) string {
	s := fmt.Sprintf("%s %s: %s", f.Family, f.Kind, f.Fault)
	if f.Fault == api.FaultMTU {
		s += fmt.Sprintf(" %d", f.Largest)
	}
	return s
}

func printMatrix(w io.Writer, rows []*told) error {
	t := cli.Table{Head: []string{"FROM \\ TO"}}
	for _, r := range rows {
		t.Head = append(t.Head, r.Node)
	}
	for _, from := range rows {
		row := []string{from.Node}
		for _, to := range rows {
			way := "-"
			if from != to {
				way = from.To[to.Node]
			}
			row = append(row, way)
		}
		t.Rows = append(t.Rows, row)
	}
	return t.Print(w)
}

// printFaults lists the pairs that are not ok, of a cluster that is too large for a matrix.
func printFaults(w io.Writer, rows []*told) error {
	t := cli.Table{Head: []string{"FROM", "TO", "FOUND"}}
	silent, unknown := 0, 0
	for _, from := range rows {
		if !from.Answers {
			silent++
		}
		for _, to := range rows {
			switch way := from.To[to.Node]; {
			case from == to || way == string(api.PathOK):
			case way == string(api.PathUnknown):
				unknown++
			default:
				t.Rows = append(t.Rows, []string{from.Node, to.Node, way})
			}
		}
	}
	if _, err := fmt.Fprintf(w, "%d nodes, of which %d run no probes; of %d pairs %d are bad and %d unknown\n",
		len(rows), silent, len(rows)*(len(rows)-1), len(t.Rows), unknown); err != nil {
		return err
	}
	if len(t.Rows) == 0 {
		return nil
	}
	return t.Print(w)
}
