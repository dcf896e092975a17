package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
)

// guard is a process that takes a lab down if the one that started it ends without having done so: its standard input ends when we
// do, by whatever end. The zero guard is none.
type guard struct {
	cmd *exec.Cmd
	in  io.WriteCloser
}

const (
	guardDone    = "down\n" // what a guard is told when its lab is down already
	guardTimeout = time.Minute
)

// startGuard starts a guard for the lab in dir. It is in a session of its own, so that a signal to our group spares it.
func startGuard(bin, dir string) (guard, error) {
	cmd := exec.Command(self(bin), "run-guard", "--dir", dir)
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return guard{}, fmt.Errorf("start the lab's guard: %w", err)
	}
	return guard{cmd: cmd, in: in}, nil
}

// release ends the guard, whose lab is down.
func (g guard) release() error {
	if g.cmd == nil {
		return nil
	}
	_, err := io.WriteString(g.in, guardDone)
	if err = errors.Join(err, g.in.Close(), g.cmd.Wait()); err != nil {
		return fmt.Errorf("end the lab's guard: %w", err)
	}
	return nil
}

// watch is what a guard does.
func watch(dir string) error {
	told, err := io.ReadAll(os.Stdin)
	if err != nil || string(told) == guardDone {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), guardTimeout)
	defer cancel()
	return Down(ctx, dir)
}
