package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	yamlv3 "go.yaml.in/yaml/v3"
	"sigs.k8s.io/yaml"
)

// document is one YAML document or JSON value of a file.
type document struct {
	file   string
	text   []byte
	number int  // in its file, from 1
	many   bool // the file has more than one
	line   int  // of the file, where it begins
	json   bool // one JSON value and nothing else

	tree *yamlv3.Node // what lineOf has parsed; nil before that
}

// matters reports whether there is more than comments and directives, which say to the parser what it knows.
func (d *document) matters() bool {
	for line := range bytes.Lines(d.text) {
		line = bytes.TrimSpace(line)
		if len(line) > 0 && line[0] != '#' && line[0] != '%' {
			return true
		}
	}
	return false
}

// values are the JSON values of a document, one behind the other, each as a document of its own, numbered from number; the document
// itself where it is not JSON.
func (d *document) values(number int) []*document {
	if !d.isFlow() {
		return []*document{d}
	}
	var out []*document
	dec := json.NewDecoder(bytes.NewReader(d.text))
	for {
		var value json.RawMessage
		if err := dec.Decode(&value); errors.Is(err, io.EOF) {
			return out
		} else if err != nil {
			return []*document{d}
		}
		start := int(dec.InputOffset()) - len(value)
		out = append(out, &document{file: d.file, text: value, number: number + len(out), json: true,
			line: d.line + bytes.Count(d.text[:start], []byte("\n"))})
	}
}

// isFlow reports whether the document begins as JSON does.
func (d *document) isFlow() bool {
	start := bytes.TrimLeft(d.text, " \t\r\n")
	return len(start) > 0 && (start[0] == '{' || start[0] == '[')
}

// asJSON is the document's text as JSON, in which no key stands twice.
func (d *document) asJSON() ([]byte, error) {
	if len(d.text) > mostDocument {
		return nil, fmt.Errorf("%s: the document has more than %d MiB: split it", d.place(d.line), mostDocument>>20)
	}
	if d.json {
		dec := json.NewDecoder(bytes.NewReader(d.text))
		if key := repeated(dec); key != "" {
			line := d.line + bytes.Count(d.text[:dec.InputOffset()], []byte("\n"))
			return nil, fmt.Errorf("%s: key %q already set in map", d.place(line), key)
		}
		return d.text, nil
	}
	if d.isFlow() || bytes.Contains(d.text, []byte("---")) || bytes.Contains(d.text, []byte("...")) {
		if err := d.alone(); err != nil {
			return nil, d.badYAML(err)
		}
	}
	text, err := yaml.YAMLToJSONStrict(d.text)
	if err != nil {
		return nil, d.badYAML(err)
	}
	return text, nil
}

// alone fails where something follows the one value that the parser would read: behind a value in brackets, or where a mark stands on a line
// that ends as split does not know, as with a carriage return alone.
func (d *document) alone() error {
	dec := yamlv3.NewDecoder(bytes.NewReader(d.text))
	for range 2 {
		var n yamlv3.Node
		if err := dec.Decode(&n); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return errors.New("yaml: there is more than one value")
}

// repeated is the first key of valid JSON that its object has already, and the decoder stands behind it; "" if there is none.
func repeated(dec *json.Decoder) string {
	token, err := dec.Token()
	delim, ok := token.(json.Delim)
	if err != nil || !ok {
		return ""
	}
	seen := map[any]bool{}
	for dec.More() {
		if delim == '{' {
			key, err := dec.Token()
			if err != nil {
				return ""
			}
			if seen[key] {
				return fmt.Sprint(key)
			}
			seen[key] = true
		}
		if key := repeated(dec); key != "" {
			return key
		}
	}
	_, _ = dec.Token() // the closing bracket
	return ""
}

// where is a field's place, for people. "" is the document's own.
func (d *document) where(path string) string { return d.place(d.line + d.lineOf(path) - 1) }

func (d *document) place(line int) string {
	if d.many {
		return fmt.Sprintf("%s, document %d, line %d", d.file, d.number, line)
	}
	return fmt.Sprintf("%s, line %d", d.file, line)
}

// badYAML turns the lines that the parser names into the file's.
func (d *document) badYAML(err error) error {
	text := strings.TrimPrefix(err.Error(), "error converting YAML to JSON: ")
	if strings.Contains(text, "invalid map key") { // what follows is Go
		return fmt.Errorf("%s: a key is a list or an object, and must be a text", d.place(d.line))
	}
	m := regexp.MustCompile(`^yaml: (?:unmarshal errors:\s+)?line (\d+): `).FindStringSubmatch(text)
	if m == nil {
		return fmt.Errorf("%s: %s", d.place(d.line), text)
	}
	n, _ := strconv.Atoi(m[1]) // digits by the expression; too many of them are 0
	return fmt.Errorf("%s: %s", d.place(d.line+n-1), strings.ReplaceAll(strings.TrimPrefix(text, m[0]), "\n", ";"))
}

// lineOf is the line in the document of the field with that path, or of the nearest part of it that is there.
func (d *document) lineOf(path string) int {
	if d.tree == nil {
		d.tree = &yamlv3.Node{}
		if yamlv3.Unmarshal(d.text, d.tree) != nil {
			d.tree = &yamlv3.Node{}
		}
	}
	if len(d.tree.Content) == 0 {
		return 1
	}
	n := d.tree.Content[0]
	line := n.Line
	for path != "" {
		child, at, rest, ok := step(n, path)
		if !ok {
			break
		}
		n, line, path = child, at, rest
	}
	return line
}

// step goes from a node to the part of it that a path begins with. Keys may hold dots: the longest that fits counts.
func step(n *yamlv3.Node, path string) (child *yamlv3.Node, line int, rest string, ok bool) {
	switch n.Kind {
	case yamlv3.AliasNode:
		return step(n.Alias, path)
	case yamlv3.SequenceNode:
		index, rest, closed := strings.Cut(strings.TrimPrefix(path, "["), "]")
		i, err := strconv.Atoi(index)
		if !closed || err != nil || i < 0 || i >= len(n.Content) {
			return nil, 0, "", false
		}
		return n.Content[i], n.Content[i].Line, strings.TrimPrefix(rest, "."), true
	case yamlv3.MappingNode:
		longest := -1
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i]
			after, found := strings.CutPrefix(path, key.Value)
			if !found || len(key.Value) <= longest || after != "" && after[0] != '.' && after[0] != '[' {
				continue
			}
			longest, ok = len(key.Value), true
			child, line, rest = n.Content[i+1], key.Line, strings.TrimPrefix(after, ".")
		}
	}
	return child, line, rest, ok
}
