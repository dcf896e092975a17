package main

import (
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// wires carry what the guest writes to its devices to functions here. They are pairs of sockets, which have no name that could stay behind, and
// of which a reader learns when the emulator ends.
type wires struct {
	there   []*os.File // the emulator's ends
	reading sync.WaitGroup
}

// connect makes a wire for each function, which gets all that is written to its wire. Whether or not connect fails, the caller closes the far ends and
// waits.
func (w *wires) connect(read ...func(io.Reader)) error {
	for _, f := range read {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("make socket: %w", err)
		}
		here := os.NewFile(uintptr(pair[0]), "here")
		w.there = append(w.there, os.NewFile(uintptr(pair[1]), "there"))
		w.reading.Go(func() {
			defer here.Close()
			f(here)
		})
	}
	return nil
}

// closeThere gives up our copies of the far ends.
func (w *wires) closeThere() {
	for _, f := range w.there {
		_ = f.Close()
	}
}

// wait returns when all that was written has been read and the far ends are closed everywhere.
func (w *wires) wait() { w.reading.Wait() }

// copyTo returns a function for connect. It reads to the end even where dst fails, for a wire that nobody reads stops the guest.
func copyTo(dst io.Writer) func(io.Reader) {
	return func(src io.Reader) {
		if _, err := io.Copy(dst, src); err != nil {
			_, _ = io.Copy(io.Discard, src)
		}
	}
}

// tail keeps the last of what is written to it.
type tail struct{ kept []byte }

const tailSize = 4 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.kept = append(t.kept, p...)
	if drop := len(t.kept) - tailSize; drop > 0 {
		t.kept = append(t.kept[:0], t.kept[drop:]...)
	}
	return len(p), nil
}
