package config

import (
	"fmt"
	"io"
	"strings"
)

// WriteHelp prints every variable that is heeded, from the tables that they are read by.
func WriteHelp(w io.Writer) error {
	for _, part := range []struct {
		title string
		list  []Setting
	}{
		{"Variables of the environment, where \"\" is the same as not set:", NodeSettings()},
		{"Settings of FelixConfiguration (node.NAME before default), before which the variable stands:", FelixSettings()},
	} {
		if _, err := fmt.Fprintf(w, "\n%s\n", part.title); err != nil {
			return err
		}
		for _, s := range part.list {
			if _, err := io.WriteString(w, s.help()); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s Setting) help() string {
	head := "  " + s.Env
	if s.Name != s.Env {
		head += "  " + s.Name
	}
	if s.Default != "" {
		head += "  [" + s.Default + "]"
	}
	return head + "\n" + wrap(s.Meaning, "        ", 100)
}

// wrap breaks a text into lines of at most so many letters, where its words allow it.
func wrap(text, indent string, width int) string {
	var b strings.Builder
	line := indent
	for _, w := range strings.Fields(text) {
		if line != indent && len(line)+1+len(w) > width {
			b.WriteString(line + "\n")
			line = indent
		}
		if line != indent {
			line += " "
		}
		line += w
	}
	b.WriteString(line + "\n")
	return b.String()
}
