package startup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
)

// SayDown writes the time at which the node's agent is told to end, RFC 3339 in UTC.
func SayDown(path string, now time.Time) error {
	if err := WriteFile(path, now.UTC().Format(time.RFC3339)); err != nil {
		return fmt.Errorf("write the time of the shutdown: %w", err)
	}
	return nil
}

// SayUp takes back what SayDown wrote, if it did.
func SayUp(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the time of the shutdown: %w", err)
	}
	return nil
}
