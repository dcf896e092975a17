package cli

import (
	"encoding/json"
	"fmt"
	"io"
)

// PrintJSON writes v as indented JSON with a newline at its end.
func PrintJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// CheckFormat refuses an output format that is neither "" nor json.
func CheckFormat(format string) error {
	if format != "" && format != "json" {
		return fmt.Errorf("unrecognized output format '%s': want json, or none for text", format)
	}
	return nil
}

// PrintLine writes v as JSON on one line.
func PrintLine(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}
