package manifest

import (
	"bytes"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// document is one YAML document or JSON value of a file.
type document struct {
	file   string
	text   []byte
	number int  // in its file, from 1
	many   bool // the file has more than one
	line   int  // of the file, where it begins
}

// matters reports whether there is more than comments.
func (d *document) matters() bool {
	for line := range bytes.Lines(d.text) {
		line = bytes.TrimSpace(line)
		if len(line) > 0 && line[0] != '#' && string(line) != "..." {
			return true
		}
	}
	return false
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
	m := regexp.MustCompile(`^yaml: (?:unmarshal errors:\s+)?line (\d+): `).FindStringSubmatch(text)
	if m == nil {
		return fmt.Errorf("%s: %s", d.place(d.line), text)
	}
	n, _ := strconv.Atoi(m[1]) // digits by the expression; too many of them are 0
	return fmt.Errorf("%s: %s", d.place(d.line+n-1), strings.ReplaceAll(strings.TrimPrefix(text, m[0]), "\n", ";"))
}

// lineOf is the line in the document of the field with that path, or of the nearest part of it that is there.
func (d *document) lineOf(path string) int {
	var root yaml.Node
	if yaml.Unmarshal(d.text, &root) != nil || len(root.Content) == 0 {
		return 1
	}
	n := root.Content[0]
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
func step(n *yaml.Node, path string) (child *yaml.Node, line int, rest string, ok bool) {
	switch n.Kind {
	case yaml.AliasNode:
		return step(n.Alias, path)
	case yaml.SequenceNode:
		index, rest, closed := strings.Cut(strings.TrimPrefix(path, "["), "]")
		i, err := strconv.Atoi(index)
		if !closed || err != nil || i < 0 || i >= len(n.Content) {
			return nil, 0, "", false
		}
		return n.Content[i], n.Content[i].Line, strings.TrimPrefix(rest, "."), true
	case yaml.MappingNode:
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
