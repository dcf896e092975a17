package sysctl

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Number is a setting that is one number and is read again and again: its file stays open, since to open it is most of the work. It is for one
// goroutine. A setting that another module of the kernel brings may come later.
type Number struct {
	path string
	file *os.File // nil: it is not open
}

// NewNumber names a setting by its path below a folder, Root but in tests. It is opened when it is read.
func NewNumber(root, path string) *Number { return &Number{path: filepath.Join(root, path)} }

// Read returns what the setting is now. An error is fs.ErrNotExist where the kernel has none.
func (n *Number) Read() (uint64, error) {
	if n.file == nil {
		f, err := os.Open(n.path)
		if err != nil {
			return 0, fmt.Errorf("read kernel setting: %w", err)
		}
		n.file = f
	}
	b := make([]byte, 32)
	size, _ := n.file.ReadAt(b, 0) // what is not a number is an error below
	v, err := strconv.ParseUint(strings.TrimSpace(string(b[:size])), 10, 64)
	if err != nil { // what brought the setting may be gone, and perhaps come again
		return 0, errors.Join(fmt.Errorf("read kernel setting %s: %w", n.path, err), n.Close())
	}
	return v, nil
}

// Close closes the file, if it is open. A later Read opens it again.
func (n *Number) Close() error {
	f := n.file
	n.file = nil
	if f == nil {
		return nil
	}
	return f.Close()
}
