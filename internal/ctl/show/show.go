// Package show prints resources as tables, YAML, JSON and by templates.
//
// Tables, YAML and JSON are those of calicoctl, byte for byte, but for the differences that the operator's verbs list. What a kind
// shows in its columns is data, in columns.go.
package show

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"sigs.k8s.io/yaml"

	"github.com/muslin-cni/muslin/pkg/api"
)

// Item is an object with its JSON, which may have more fields than its type.
type Item struct {
	Object api.Object
	Text   []byte
}

// Result is what there is to print.
type Result struct {
	Items []Item
	Kind  api.Kind // of a list
	List  bool     // all objects of the kind, and not those that were named
	Rev   int64    // of a list
}

// Settings are what printing depends on beside the objects.
type Settings struct {
	Namespaces bool                                       // tables begin with the namespace, where the kind has one
	ASN        func() string                              // the cluster's number, of nodes without their own; called when it is needed
	ReadFile   func(name string) (text string, err error) // of templates; nil: from disk
}

// Printer writes results in one format.
type Printer struct {
	set   Settings
	after string // each object of a watch, where it is no table
	print func(w io.Writer, r Result) error
	// row prints one object where there is no end to them, in watches; nil: as print does.
	row func(w io.Writer, event string, it Item, head bool) error
}

// Formats are the words that a format begins with.
func Formats() []string {
	return []string{"yaml", "json", "wide", "name", "custom-columns=", "jsonpath=", "jsonpath-file=", "go-template=", "go-template-file="}
}

// New prepares a format: "" for the usual table, or one of Formats with what it needs behind the sign. The error says what is wrong with it.
func New(format string, set Settings) (*Printer, error) {
	if set.ReadFile == nil {
		set.ReadFile = func(name string) (string, error) {
			text, err := os.ReadFile(name)
			return string(text), err
		}
	}
	p := &Printer{set: set, after: "\n"}
	word, arg, given := strings.Cut(format, "=")
	if given && (word == "" || slices.Contains(Formats(), word)) {
		return nil, fmt.Errorf("unrecognized output format '%s': %s takes nothing behind =", format, word)
	}
	var err error
	switch word {
	case "", "wide", "ps":
		p.table(word == "wide", nil)
	case "custom-columns":
		if arg == "" {
			return nil, errors.New("need to specify at least one column")
		}
		p.table(false, strings.Split(arg, ","))
	case "yaml":
		p.print, p.after = printYAML, "\n---\n"
	case "json":
		p.print = printJSON
	case "name":
		p.print = printNames
	case "jsonpath", "jsonpath-file", "go-template", "go-template-file":
		if arg == "" {
			return nil, errors.New("need to specify a template")
		}
		if strings.HasSuffix(word, "-file") {
			if arg, err = set.ReadFile(arg); err != nil {
				return nil, err
			}
		}
		if strings.HasPrefix(word, "jsonpath") {
			p.print, err = jsonPath(arg)
		} else {
			p.print, err = goTemplate(arg, set)
		}
	default:
		return nil, fmt.Errorf("unrecognized output format '%s': want one of %s", format, strings.Join(Formats(), " "))
	}
	return p, err
}

// Print writes a result.
func (p *Printer) Print(w io.Writer, r Result) error { return p.print(w, r) }

// Event writes one object to which something happened, and the head of its table where head says so.
func (p *Printer) Event(w io.Writer, event string, it Item, head bool) error {
	if p.row != nil {
		return p.row(w, event, it, head)
	}
	var b bytes.Buffer
	if err := p.print(&b, Result{Items: []Item{it}}); err != nil {
		return err
	}
	_, err := fmt.Fprint(w, strings.TrimSuffix(b.String(), "\n")+p.after)
	return err
}

func (p *Printer) table(wide bool, names []string) {
	p.print = func(w io.Writer, r Result) error {
		if r.List {
			return p.printTable(w, r.Kind, r.Items, wide, names)
		}
		for _, it := range r.Items {
			if err := p.printTable(w, it.Object.KindOf(), []Item{it}, wide, names); err != nil {
				return err
			}
		}
		return nil
	}
	p.row = func(w io.Writer, event string, it Item, head bool) error {
		columns, err := p.columns(it.Object.KindOf(), wide, names)
		if err != nil {
			return err
		}
		columns = append([]column{{head: "EVENT", text: func(any) string { return fmt.Sprintf("%-8s", event) }}}, columns...)
		var b bytes.Buffer
		if err := p.write(&b, columns, []Item{it}); err != nil {
			return err
		}
		text := b.String()
		if !head {
			_, text, _ = strings.Cut(text, "\n")
		}
		_, err = io.WriteString(w, text)
		return err
	}
}

// columns are those of a kind that the user wants to see.
func (p *Printer) columns(k api.Kind, wide bool, names []string) ([]column, error) {
	all := columnsOf(k)
	var out []column
	if p.set.Namespaces && k.Namespaced && names == nil {
		out = append(out, namespaceColumn())
	}
	if names == nil {
		for _, c := range all {
			if wide || c.usual {
				out = append(out, c)
			}
		}
		return out, nil
	}
	if k.Namespaced {
		all = append([]column{namespaceColumn()}, all...)
	}
	for _, name := range names {
		i := indexOf(all, name)
		if i < 0 {
			return nil, fmt.Errorf("unknown heading %s, valid values are: %s", name, strings.Join(heads(all), ", "))
		}
		out = append(out, all[i])
	}
	return out, nil
}

func indexOf(all []column, name string) int {
	for i, c := range all {
		if strings.EqualFold(c.head, strings.TrimSpace(name)) {
			return i
		}
	}
	return -1
}

func heads(all []column) []string {
	out := make([]string, len(all))
	for i, c := range all {
		out[i] = c.head
	}
	return out
}

func (p *Printer) printTable(w io.Writer, k api.Kind, items []Item, wide bool, names []string) error {
	columns, err := p.columns(k, wide, names)
	if err != nil {
		return err
	}
	if err := p.write(w, columns, items); err != nil {
		return err
	}
	_, err = fmt.Fprintln(w)
	return err
}

// write is calicoctl's layout: three blanks behind each column, the last one included.
func (p *Printer) write(w io.Writer, columns []column, items []Item) error {
	t := tabwriter.NewWriter(w, 5, 1, 3, ' ', 0)
	fmt.Fprintln(t, strings.Join(heads(columns), "\t")+"\t")
	for _, it := range items {
		tree, err := treeOf(it.Text)
		if err != nil {
			return err
		}
		for _, c := range columns {
			cell := c.text(find(tree, c.path))
			if c.asn {
				cell = p.asn(tree)
			}
			fmt.Fprint(t, clean(cell)+"\t")
		}
		fmt.Fprintln(t)
	}
	return t.Flush()
}

// asn is a node's number, or the cluster's in parentheses; "" for a node without BGP.
func (p *Printer) asn(node any) string {
	own := plain(find(node, "spec.bgp.asNumber"))
	switch {
	case own != "":
		return own
	case find(node, "spec.bgp") == nil:
		return ""
	case p.set.ASN == nil:
		return "(64512)"
	}
	return "(" + p.set.ASN() + ")"
}

// clean keeps a cell in its column.
func clean(s string) string { return strings.NewReplacer("\t", " ", "\n", " ").Replace(s) }

func treeOf(text []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var v any
	err := d.Decode(&v)
	return v, err
}

// document is a result as JSON: an object, an array of them, or a list.
func document(r Result) ([]byte, error) {
	texts := make([]json.RawMessage, len(r.Items))
	for i, it := range r.Items {
		texts[i] = it.Text
	}
	switch {
	case r.List:
		return json.Marshal(struct {
			Kind       string `json:"kind"`
			APIVersion string `json:"apiVersion"`
			Metadata   struct {
				ResourceVersion string `json:"resourceVersion"`
			} `json:"metadata"`
			Items []json.RawMessage `json:"items"`
		}{Kind: r.Kind.List(), APIVersion: api.Version, Items: texts, Metadata: struct {
			ResourceVersion string `json:"resourceVersion"`
		}{strconv.FormatInt(r.Rev, 10)}})
	case len(texts) == 1:
		return texts[0], nil
	}
	return json.Marshal(texts)
}

func printYAML(w io.Writer, r Result) error {
	text, err := document(r)
	if err != nil {
		return err
	}
	if text, err = yaml.JSONToYAML(text); err != nil {
		return err
	}
	_, err = w.Write(text)
	return err
}

func printJSON(w io.Writer, r Result) error {
	text, err := document(r)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := json.Indent(&b, text, "", "  "); err != nil {
		return err
	}
	_, err = w.Write(b.Bytes())
	return err
}

func printNames(w io.Writer, r Result) error {
	for _, it := range r.Items {
		fmt.Fprintf(w, "%s/%s\n", strings.ToLower(it.Object.KindOf().Name), it.Object.Meta().Name)
	}
	return nil
}

func truncate(s string, most int) string {
	if len(s) <= most || most < 3 {
		return s
	}
	return s[:most-3] + "..."
}
