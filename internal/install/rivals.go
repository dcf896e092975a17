package install

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// RivalError says that Calico's agent runs on this host.
type RivalError struct {
	PID     int    // 0: only its socket was seen
	Command string // what was seen
}

// Error says what to do.
func (e *RivalError) Error() string {
	what := e.Command
	if e.PID != 0 {
		what = fmt.Sprintf("process %d, %s", e.PID, e.Command)
	}
	return "Calico's agent runs on this host (" + what + "), and two agents would undo each other's routes and rules: take Calico off this node first, " +
		"for example by a nodeSelector of its DaemonSet calico-node that the node does not match; what it has programmed stays and is taken over"
}

// Rival fails with a *RivalError if Calico's agent runs on this host. proc is where the host's processes are to be seen: a container sees them
// if it shares the host's process namespace.
//
// Its port for health says nothing, since ours is the same; the names of processes do, and BIRD's socket, which is listed for a network namespace
// whoever looks. Processes of another network namespace are of no concern here: they work on another set of routes.
func Rival(proc string) error {
	entries, err := os.ReadDir(proc)
	if err != nil {
		return fmt.Errorf("look for Calico's agent: %w", err)
	}
	here, err := os.Readlink(filepath.Join(proc, "thread-self/ns/net"))
	if err != nil {
		return fmt.Errorf("look for Calico's agent: %w", err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		command, ok := rivalCommand(filepath.Join(proc, e.Name()))
		if !ok {
			continue
		}
		if there, err := os.Readlink(filepath.Join(proc, e.Name(), "ns/net")); err == nil && there == here {
			return &RivalError{PID: pid, Command: command}
		}
	}
	return rivalSocket(proc)
}

// rivalCommand is what a process was started as, if it is one of Calico's that program a node. Those that have ended by now are none.
func rivalCommand(dir string) (string, bool) {
	line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil || len(line) == 0 { // a thread of the kernel, a zombie, or gone
		return "", false
	}
	args := strings.Split(string(bytes.TrimRight(line, "\x00")), "\x00")
	switch filepath.Base(args[0]) {
	case "calico-node":
		return strings.Join(args, " "), !slices.ContainsFunc(args, func(a string) bool { return a == "-v" || a == "--help" })
	case "calico-felix":
		return strings.Join(args, " "), true
	case "bird", "bird6", "confd":
		return strings.Join(args, " "), slices.ContainsFunc(args, func(a string) bool { return strings.Contains(a, "/etc/calico/") || strings.Contains(a, "/run/calico/") })
	}
	return "", false
}

// rivalSocket looks for the socket of Calico's BIRD among those that are open in this network namespace.
func rivalSocket(proc string) error {
	text, err := os.ReadFile(filepath.Join(proc, "thread-self/net/unix"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for Calico's agent: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 8 {
			continue // the heading, or a socket without a name
		}
		switch path := fields[7]; path {
		case "/var/run/calico/bird.ctl", "/var/run/calico/bird6.ctl", "/run/calico/bird.ctl", "/run/calico/bird6.ctl":
			return &RivalError{Command: "BIRD's socket " + path}
		}
	}
	return nil
}
