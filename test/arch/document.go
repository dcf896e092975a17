package arch

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
)

// The marks in ARCHITECTURE.md between which the package table stands.
const (
	beginMark = "<!-- packages:begin -->\n"
	endMark   = "<!-- packages:end -->\n"
)

// PackageTable renders the rows of table whose package exists, in the table's order, as a Markdown table.
func PackageTable(table []Row, pkgs []Package) string {
	exists := make(map[string]bool, len(pkgs))
	for _, pkg := range pkgs {
		exists[pkg.Path] = true
	}
	var b strings.Builder
	b.WriteString("| level | package | what it does |\n|---|---|---|\n")
	for _, row := range table {
		if exists[row.Path] {
			fmt.Fprintf(&b, "| %v | `%s` | %s |\n", row.Level, row.Path, row.Sentence)
		}
	}
	return b.String()
}

// ReplaceTable returns doc with table between the marks. It is an error if doc has not one pair of marks.
func ReplaceTable(doc []byte, table string) ([]byte, error) {
	before, rest, found := bytes.Cut(doc, []byte(beginMark))
	_, after, closed := bytes.Cut(rest, []byte(endMark))
	if !found || !closed {
		return nil, errors.New("find package table: no packages:begin and packages:end marks")
	}
	if bytes.Contains(after, []byte(beginMark)) {
		return nil, errors.New("find package table: marks stand more than once")
	}
	var b bytes.Buffer
	b.Write(before)
	b.WriteString(beginMark + table + endMark)
	b.Write(after)
	return b.Bytes(), nil
}
