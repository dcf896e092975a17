package xtables

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coreos/go-iptables/iptables"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/nettest"
)

// hanging has the program answer who it is, and hang in everything else once it has noted its process's number. It returns the table and
// the file with the number.
func hanging(t *testing.T, how string) (c *Chains, started string) {
	t.Helper()
	dir := t.TempDir()
	started = filepath.Join(dir, "started")
	script := fmt.Sprintf("#!/bin/sh\n[ \"$1\" = --version ] && echo 'iptables v1.8.9 (nf_tables)' && exit\necho $$ >%s.part\nmv %s.part %s\n%s\n",
		started, started, started, how)
	if err := os.WriteFile(filepath.Join(dir, "iptables"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	c, err := newChains(t.Context(), "iptables", iptables.ProtocolIPv4, newHands())
	if err != nil {
		t.Fatal(err)
	}
	return c, started
}

// A program that hangs must not hang the loop: it is killed, and its change has failed.
func TestProgramThatHangsIsKilled(t *testing.T) {
	for name, how := range map[string]string{
		"itself":          "exec sleep 60",
		"waiting for one": "sleep 60; true", // which holds the pipe to us too
	} {
		t.Run(name, func(t *testing.T) {
			c, started := hanging(t, how)
			c.hands.watch(true)
			other := exec.Command("sleep", "60")
			if err := other.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				_ = other.Process.Kill()
				_ = other.Wait()
			})
			waitATick(t)
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() {
				a := attempt{c: c}
				done <- a.create(ctx, kernel.ChainKey{Table: "nat", Chain: "cali-A"})
			}()
			nettest.Eventually(t, func() error {
				_, err := os.Stat(started)
				return err
			})
			cancel()
			err := <-done
			if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "was killed") {
				t.Errorf("got %v", err)
			}
			if len(c.hands.expected) > 0 {
				t.Errorf("an event of it is expected: %v", c.hands.expected)
			}
			if stat := readFile(t, fmt.Sprintf("/proc/%d/stat", other.Process.Pid)); strings.Contains(stat, ") Z ") {
				t.Errorf("a process that ran before was killed too: %s", stat)
			}
			pid := strings.TrimSpace(readFile(t, started))
			if _, err := os.Stat("/proc/" + pid); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("process %s is left: %v", pid, err)
			}
		})
	}
}

// waitATick waits until a process that is started now is younger than all that are there.
func waitATick(t *testing.T) {
	t.Helper()
	before, err := startNow()
	if err != nil {
		t.Fatal(err)
	}
	nettest.Eventually(t, func() error {
		now, err := startNow()
		if err == nil && now == before {
			err = errors.New("the clock stands")
		}
		return err
	})
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func processOf(t *testing.T, pid int) process {
	t.Helper()
	p, ok := parseProcess(readFile(t, fmt.Sprintf("/proc/%d/stat", pid)))
	if !ok || p.id != pid {
		t.Fatalf("process %d was read as %+v", pid, p)
	}
	return p
}

func TestProcessesAreReadWhateverTheirName(t *testing.T) {
	const after = "S 7 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 2600960 224"
	want := process{id: 12, parent: 7, start: 4711}
	for _, name := range []string{"iptables", "x) S 99 (", "", "a b"} {
		if p, ok := parseProcess("12 (" + name + ") " + after); !ok || p != want {
			t.Errorf("%q: got %+v, %v", name, p, ok)
		}
	}
	for _, stat := range []string{"", "12", "12 (x", "12 (x) S 7", "x (x) " + after} {
		if p, ok := parseProcess(stat); ok {
			t.Errorf("%q: read as %+v", stat, p)
		}
	}
	now, err := startNow()
	if self := processOf(t, os.Getpid()); err != nil || self.start == 0 || self.start > now {
		t.Errorf("we began at %d, and now it is %d, %v", self.start, now, err)
	}
}

func TestCallIsNotBegunTooLate(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := bounded(ctx, func() error {
		t.Error("begun")
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func FuzzParseProcess(f *testing.F) {
	f.Add("12 (iptables) S 7 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 2600960 224")
	f.Add("12 (x) y)")
	f.Fuzz(func(t *testing.T, stat string) {
		if p, ok := parseProcess(stat); ok && !strings.HasPrefix(strings.TrimLeft(stat, "+-0"), strings.TrimLeft(fmt.Sprint(p.id), "-0")) {
			t.Errorf("%q is read as %+v", stat, p)
		}
	})
}
