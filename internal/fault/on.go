//go:build faults

package fault

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrInjected is the error of a point that the variable sets to "error" without saying which.
var ErrInjected = errors.New("injected fault")

// pauseLimit bounds a pause: a test that forgot a program must not leave it behind.
const pauseLimit = time.Minute

// At does what the variable says for the point. It does not return from a kill, and from a pause within a minute.
func At(p Point) error {
	for _, part := range strings.Split(orders(), ",") {
		name, what, _ := strings.Cut(part, "=")
		if name != Name(p) {
			continue
		}
		verb, which, _ := strings.Cut(what, ":") // error, or file
		switch verb {
		case "kill":
			if err := unix.Kill(os.Getpid(), unix.SIGKILL); err != nil {
				return fmt.Errorf("kill at %s: %w", Name(p), err)
			}
			select {} // until the signal has arrived
		case "error":
			return fmt.Errorf("%s: %w", Name(p), failure(which))
		case "pause":
			if err := pause(p, which); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%s: %s says %q, want kill, error, error:NAME or pause:file", Name(p), Variable, what)
		}
	}
	return nil
}

// failure is the error of the kernel that has the name, as errno(3) lists them; "": our own.
func failure(name string) error {
	if name == "" {
		return ErrInjected
	}
	const most = 133 // EHWPOISON
	for e := unix.Errno(1); e <= most; e++ {
		if unix.ErrnoName(e) == name {
			return e
		}
	}
	return fmt.Errorf("%s says error:%s, and the kernel has no such error", Variable, name)
}

// orders is the variable's value, or the content of the file that it names.
func orders() string {
	text := os.Getenv(Variable)
	path, ok := strings.CutPrefix(text, "@")
	if !ok {
		return text
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return "" // the test has not written it yet
	}
	return string(bytes.TrimSpace(content))
}

func pause(p Point, file string) error {
	if err := os.WriteFile(file+".reached", nil, 0o600); err != nil {
		return fmt.Errorf("pause at %s: %w", Name(p), err)
	}
	for end := time.Now().Add(pauseLimit); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		_, err := os.Stat(file)
		if err == nil {
			return nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("pause at %s: %w", Name(p), err)
		}
	}
	return fmt.Errorf("pause at %s: nobody made %s", Name(p), file)
}
