package cli

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// hostile moves the cursor, sets the title, and erases what was written, in 7 bits and in 8.
const hostile = "pod\x1b[2J\x1b]0;owned\a\b\r\u009b1Aname\x7f"

// TestTerminalDoesNothingThatANameSays writes to a terminal of the kernel's own, and to a pipe.
func TestTerminalDoesNothingThatANameSays(t *testing.T) {
	far, near := terminal(t)
	fmt.Fprintf(ForTerminal(near), "NAME\tnäme\n%s\n", hostile)
	got := make([]byte, 200)
	n, err := far.Read(got)
	const want = "NAME\tnäme\r\n" + `pod\x1b[2J\x1b]0;owned\x07\x08\x0d\x9b1Aname\x7f` + "\r\n"
	if err != nil || string(got[:n]) != want {
		t.Errorf("the terminal gets %q, want %q: %v", got[:n], want, err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(ForTerminal(w), hostile)
	_ = w.Close()
	if got, err := io.ReadAll(r); err != nil || string(got) != hostile {
		t.Errorf("the pipe gets %q: %v", got, err)
	}
}

func TestCellsStayInTheirLine(t *testing.T) {
	var b bytes.Buffer
	table := Table{Head: []string{"NAME"}, Rows: [][]string{{"a\n| b |"}}}
	if err := table.Print(&b); err != nil || bytes.Count(b.Bytes(), []byte("\n")) != 5 {
		t.Errorf("%v\n%s", err, &b)
	}
}

// terminal is a pseudo-terminal, both ends.
func terminal(t *testing.T) (far, near *os.File) {
	t.Helper()
	far, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("this machine gives no terminal: %v", err)
	}
	t.Cleanup(func() { _ = far.Close() })
	number, err := unix.IoctlGetUint32(int(far.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(far.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		near, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		t.Skipf("this machine gives no terminal: %v", err)
	}
	t.Cleanup(func() { _ = near.Close() })
	return far, near
}
