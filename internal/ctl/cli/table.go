package cli

import (
	"fmt"
	"io"
	"regexp"
	"strings"
	"unicode/utf8"
)

// Table is a table with borders, of text cells. Each row has as many cells as Head.
type Table struct {
	Head []string
	Rows [][]string
}

// number is what is set to the right of its column.
var number = regexp.MustCompile(`^-?\d+(\.\d+)?$`)

// Print writes the table. The head is centred, numbers are set to the right, all else to the left.
func (t Table) Print(w io.Writer) error {
	widths := make([]int, len(t.Head))
	for _, row := range append([][]string{t.Head}, t.Rows...) {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	oneLine := strings.NewReplacer("\n", " ", "\t", " ")
	var b strings.Builder
	border := func() {
		for _, n := range widths {
			b.WriteString("+" + strings.Repeat("-", n+2))
		}
		b.WriteString("+\n")
	}
	line := func(row []string, left func(cell string, spare int) int) {
		for i, cell := range row {
			cell = oneLine.Replace(cell)
			spare := widths[i] - utf8.RuneCountInString(cell)
			n := left(cell, spare)
			b.WriteString("| " + strings.Repeat(" ", n) + cell + strings.Repeat(" ", spare-n) + " ")
		}
		b.WriteString("|\n")
	}
	border()
	line(t.Head, func(_ string, spare int) int { return spare / 2 })
	border()
	for _, row := range t.Rows {
		line(row, func(cell string, spare int) int {
			if number.MatchString(cell) {
				return spare
			}
			return 0
		})
	}
	border()
	_, err := fmt.Fprint(w, b.String())
	return err
}
