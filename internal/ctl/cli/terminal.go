package cli

import (
	"bytes"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// ForTerminal returns what to write to in the place of f. Where f is a terminal, that shows control characters instead of passing them on: names, labels and logs
// are written by others, and a terminal does what control sequences say (ECMA-48). Files and pipes get each byte as it is.
func ForTerminal(f *os.File) io.Writer {
	if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err != nil {
		return f
	}
	return visible{f}
}

// visible writes control characters as Go's strings have them, but for those that end lines and columns.
type visible struct{ to io.Writer }

// Write returns how many bytes of b were written, all or none.
func (v visible) Write(b []byte) (int, error) {
	var out bytes.Buffer
	for _, r := range string(b) {
		switch {
		case r == '\n', r == '\t', r >= ' ' && r < 0x7f, r > 0x9f:
			out.WriteRune(r)
		default:
			fmt.Fprintf(&out, `\x%02x`, r)
		}
	}
	if _, err := v.to.Write(out.Bytes()); err != nil {
		return 0, err
	}
	return len(b), nil
}
