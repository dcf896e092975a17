package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/nettest"
)

const (
	markFile   = "muslin-vm-was-here" // what the guest tries to leave on this machine
	markStatus = 33                   // what it ends with if all went as it should
	markStderr = "this is standard error"

	bootsWithin = 20 * time.Minute // the whole of the one boot; on an idle machine it takes six
)

// program builds the command of this package.
func program(t *testing.T) string {
	t.Helper()
	nettest.Need(t, "root", qemu, "modprobe", "dpkg")
	path := filepath.Join(t.TempDir(), "vm")
	goCommand(t, "build", "-buildvcs=false", "-o", path, ".")
	return path
}

// withoutProgress leaves out what the program says of its own work: the first boot on a machine fetches the kernel.
func withoutProgress(stderr string) string {
	return regexp.MustCompile(`(?m)^vm: .*\n`).ReplaceAllString(stderr, "")
}

func goCommand(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "go", args...).CombinedOutput(); err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// Every boot costs as much as a test, so there is one, in which each test of the whole source tree that is for the machine must pass: none
// is skipped in there, none is forgotten.
func TestOneBootRunsAllThatIsForTheVM(t *testing.T) {
	vm := program(t)
	packages := findForVM(t)
	script := guestScript(t, packages)
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), vm, "-timeout", bootsWithin.String(), "sh", "-c", script)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if testing.Verbose() { // to be followed while it runs
		cmd.Stdout = io.MultiWriter(&stdout, os.Stderr)
	}
	var exit *exec.ExitError
	if err := cmd.Run(); !errors.As(err, &exit) || exit.ExitCode() != markStatus {
		t.Fatalf("%v, want status %d\n%s\n%s", err, markStatus, &stdout, &stderr)
	}
	if got := withoutProgress(stderr.String()); got != markStderr+"\n" {
		t.Errorf("standard error is %q", got)
	}
	if _, err := os.Stat("/" + markFile); err == nil {
		t.Errorf("a file that the guest wrote is on this machine: /%s", markFile)
	}
	ran := 0
	for _, p := range packages {
		said := between(stdout.String(), header(p), "\n== ")
		var failed []error
		for _, name := range p.tests {
			ran++
			failed = append(failed, didPass(name, said))
		}
		if err := errors.Join(failed...); err != nil {
			t.Errorf("%s said\n%s\n%v\n%s", p.dir, said, err, gist(said))
		}
	}
	if ran == 0 {
		t.Error("no test ran")
	}
}

// guestScript builds the packages' tests and returns what runs them all.
func guestScript(t *testing.T, packages []forVM) string {
	t.Helper()
	dir := t.TempDir()
	root, err := filepath.Abs(moduleRoot)
	if err != nil {
		t.Fatal(err)
	}
	faulty := filepath.Join(dir, "faulty")
	goCommand(t, "build", "-buildvcs=false", "-tags", "faults", "-o", faulty+"/", filepath.Join(root, "cmd")+"/...")
	script := "touch /" + markFile + "; export MUSLIN_TEST_FAULTY='" + faulty + "'\n"
	for i, p := range packages {
		binary := filepath.Join(dir, strconv.Itoa(i)+".test")
		goCommand(t, "test", "-c", "-o", binary, filepath.Join(root, p.dir))
		script += fmt.Sprintf("echo; echo '%s'; cd '%s' && '%s' -test.v -test.run '^TestVM' -test.timeout %v 2>&1\n",
			header(p), filepath.Join(root, p.dir), binary, bootsWithin)
	}
	return script + fmt.Sprintf("echo; echo '== end'; echo '%s' >&2; exit %d", markStderr, markStatus)
}

// header is the line before what a package's tests say.
func header(p forVM) string { return "== " + p.dir }

// between returns what of s lies between two strings, or what is left where the second is missing.
func between(s, after, before string) string {
	_, s, _ = strings.Cut(s, after+"\n")
	s, _, _ = strings.Cut(s, before)
	return s
}

// didPass says why the test of that name did not pass whole in the guest, nil if it did.
func didPass(name, said string) error {
	err := fmt.Errorf("%s did not pass", name)
	for _, v := range regexp.MustCompile(`(?m)^\s*--- (PASS|FAIL|SKIP): (\S+)`).FindAllStringSubmatch(said, -1) {
		switch {
		case v[1] == "SKIP" && (v[2] == name || strings.HasPrefix(v[2], name+"/")):
			return fmt.Errorf("%s was skipped in the machine that it was made for", v[2])
		case v[1] == "PASS" && v[2] == name:
			err = nil
		}
	}
	return err
}

// gist are the last lines of what a package said by which its tests say where and why they failed. They are shown again at the end, for logs of nodes are
// longer than what whoever shows a failure may keep of it.
func gist(said string) string {
	const kept = 40
	lines := regexp.MustCompile(`(?m)^(\s+\w+_test\.go:\d+: .*|\s*--- FAIL: .*|panic: .*)$`).FindAllString(said, -1)
	lines = slices.DeleteFunc(lines, func(line string) bool { return strings.Contains(line, ": log of ") })
	return strings.Join(lines[max(0, len(lines)-kept):], "\n")
}

func TestVerdictOfATestThatDidNotPassIsSeen(t *testing.T) {
	said := "--- PASS: TestVMA (0.1s)\n--- FAIL: TestVMB (0.1s)\n--- SKIP: TestVMC (0.1s)\n" +
		"--- PASS: TestVMD (0.1s)\n    --- SKIP: TestVMD/part (0.1s)\n"
	var got []string
	for _, name := range []string{"TestVMA", "TestVMB", "TestVMC", "TestVMD", "TestVME"} {
		if didPass(name, said) == nil {
			got = append(got, name)
		}
	}
	if diff := cmp.Diff([]string{"TestVMA"}, got); diff != "" {
		t.Error(diff)
	}
	said = "=== RUN   TestVMB\n    b_test.go:7: it is 1, want 2\n    b_test.go:9: log of node-1:\n        time=1\n--- FAIL: TestVMB (0.1s)\n"
	if diff := cmp.Diff("    b_test.go:7: it is 1, want 2\n--- FAIL: TestVMB (0.1s)", gist(said)); diff != "" {
		t.Error(diff)
	}
}

func TestNothingIsLeftWhenTheRunnerOrItsParentIsKilled(t *testing.T) {
	vm := program(t)
	command := []string{vm, "-accel", "tcg", "sleep", "1000"}
	for _, tc := range []struct {
		name string
		args []string
	}{
		{"runner", command},
		{"parent", append([]string{"sh", "-c", `"$@"; exit 1`, "sh"}, command...)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			temporary := t.TempDir()
			cmd := exec.CommandContext(t.Context(), tc.args[0], tc.args[1:]...)
			cmd.Env = append(os.Environ(), "TMPDIR="+temporary)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = cmd.Wait() }) // it was killed
			below := processesBelow(t, cmd.Process.Pid)
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			for name, fd := range below {
				nettest.Eventually(t, func() error {
					ended, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
					if err != nil {
						return fmt.Errorf("wait for %s: %w", name, err)
					}
					if ended == 0 {
						return fmt.Errorf("%s lives on", name)
					}
					return unix.Close(fd)
				})
			}
			left, err := os.ReadDir(temporary)
			if err != nil || len(left) > 0 {
				t.Errorf("temporary files are left: %v %v", left, err)
			}
		})
	}
}

// processesBelow waits until a process has the emulator and the share among its descendants, and returns pidfds of all of them by name: other than
// numbers, they do not come to mean somebody else.
func processesBelow(t *testing.T, root int) map[string]int {
	t.Helper()
	below := make(map[string]int)
	nettest.Eventually(t, func() error {
		for family := []int{root}; len(family) > 0; family = family[1:] {
			for name, pid := range childrenOf(t, family[0]) {
				family = append(family, pid)
				if fd, err := unix.PidfdOpen(pid, 0); err == nil && below[name] == 0 {
					below[name] = fd
				}
			}
		}
		if below["qemu-system-x86"] == 0 || below["virtiofsd"] == 0 {
			return fmt.Errorf("the runner has only %v below it", below)
		}
		return nil
	})
	return below
}

// childrenOf returns the processes that have that parent, by name.
func childrenOf(t *testing.T, parent int) map[string]int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	children := make(map[string]int)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		var pid, its int
		before, after, _ := strings.Cut(string(text), " (")
		name, state, _ := strings.Cut(after, ") ")
		if _, err := fmt.Sscan(before, &pid); err != nil {
			continue
		}
		if _, err := fmt.Sscan(state[1:], &its); err == nil && its == parent {
			children[name] = pid
		}
	}
	return children
}

func TestBootThatTakesTooLongEndsWithTheStageAndTheRemedyInItsError(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), program(t), "-accel", "tcg", "-boot", "200ms", "true")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != statusFailed {
		t.Fatalf("%v, want status %d\n%s", err, statusFailed, out)
	}
	for _, want := range []string{errBootLimit.Error(), "-boot", "console"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
}

// follow is where the clocks are, so a machine is not needed to see them run out.
func TestProgramThatTakesTooLongIsTold(t *testing.T) {
	for _, tc := range []struct {
		limits machine
		says   string
		want   error
	}{
		{machine{bootLimit: 1, runLimit: time.Minute}, "", errBootLimit},
		{machine{bootLimit: time.Minute, runLimit: 1}, reportBooted + "\n", errRunLimit},
		{machine{bootLimit: time.Minute, runLimit: time.Minute}, reportBooted + "\n7\n", nil},
	} {
		ctx, stop := context.WithCancelCause(t.Context())
		here, there := io.Pipe()
		context.AfterFunc(ctx, func() { _ = there.Close() }) // as the emulator's end would
		status := make(chan int, 1)
		go func() {
			_, _ = io.WriteString(there, tc.says)
			if tc.want == nil {
				_ = there.Close()
			}
		}()
		tc.limits.follow(here, stop, status)
		if got := context.Cause(ctx); !errors.Is(got, tc.want) {
			t.Errorf("a guest that says %q: %v, want %v", tc.says, got, tc.want)
		}
		if tc.want == nil && <-status != 7 {
			t.Errorf("a guest that says %q has another status", tc.says)
		}
		stop(nil)
	}
}

func TestTailKeepsTheEnd(t *testing.T) {
	var got tail
	for i := range 3000 {
		fmt.Fprintf(&got, "%d\n", i)
	}
	if len(got.kept) != tailSize || !bytes.HasSuffix(got.kept, []byte("\n2998\n2999\n")) {
		t.Errorf("%d bytes, the last %q", len(got.kept), got.kept[max(0, len(got.kept)-20):])
	}
}
