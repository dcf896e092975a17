package cnilog

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestLevelsDecideWhatGoesWhere(t *testing.T) {
	for _, c := range []struct{ level, inFile, onStderr string }{
		{"debug", "debug info warn error", "debug info warn error"},
		{"", "info warn error", "warn error"},
		{"INFO", "info warn error", "warn error"},
		{"nonsense", "info warn error", "warn error"},
		{"warning", "warn error", "warn error"},
		{"error", "error", "error"},
	} {
		path := filepath.Join(t.TempDir(), "new", "cni.log")
		var stderr bytes.Buffer
		log, file := New(Config{Level: c.level, Path: path}, &stderr)
		log.Debug("debug")
		log.Info("info")
		log.Warn("warn")
		log.Error("error")
		if err := file.Close(); err != nil {
			t.Fatal(err)
		}
		for text, want := range map[string]string{read(t, path): c.inFile, stderr.String(): c.onStderr} {
			var got []string
			for line := range strings.Lines(text) {
				_, msg, _ := strings.Cut(strings.TrimSpace(line), "msg=")
				got = append(got, msg)
			}
			if diff := cmp.Diff(want, strings.Join(got, " ")); diff != "" {
				t.Errorf("level %q (-want +got):\n%s", c.level, diff)
			}
		}
	}
}

func TestFileThatCannotBeWrittenIsReportedOnce(t *testing.T) {
	var stderr bytes.Buffer
	log, file := New(Config{Path: "/proc/nowhere/cni.log"}, &stderr)
	log.Info("one")
	log.Info("two")
	if got := strings.Count(stderr.String(), "\n"); got != 1 || !strings.HasPrefix(stderr.String(), "log_file_path: open log file") || file.Close() != nil {
		t.Errorf("standard error holds %q", &stderr)
	}
}

// TestPipeIsNoLogFile: nobody may be reading at its other end, for which a program would wait.
func TestPipeIsNoLogFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, state := range []string{"somebody has it open", "nobody has"} {
		var stderr strings.Builder
		log, file := New(Config{Path: path}, &stderr)
		log.Info("hello")
		if err := errors.Join(file.Close(), reader.Close()); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
		if !strings.Contains(stderr.String(), "log_file_path") {
			t.Errorf("%s: stderr %q, want that the file is none", state, stderr.String())
		}
	}
}

func TestNothingLoggedMakesNoFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cni.log")
	log, file := New(Config{Level: "error", Path: path}, &bytes.Buffer{})
	log.Info("not worth a file")
	if _, err := os.Stat(path); err == nil || file.Close() != nil {
		t.Error("there is a file")
	}
}

// names lists a folder.
func names(t *testing.T, folder string) (out []string) {
	t.Helper()
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestFullFileIsMovedAsideAndOldOnesRemoved(t *testing.T) {
	dir := t.TempDir()
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	for _, name := range []string{
		"cni-2026-11-20T12-00-00.000.log", "cni-2026-11-19T12-00-00.000.log.zst", "cni-2026-11-18T12-00-00.000.log", // the last is one too many
		"cni-2026-10-01T12-00-00.000.log.gz", // too old
		"cni-other.log", "other-2026-10-01T12-00-00.000.log",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "cni.log")
	if err := os.WriteFile(path, []byte("full\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := newFile(Config{Path: path, MaxAge: 30, MaxCount: 3})
	f.size, f.now = 5, func() time.Time { return now }
	for _, line := range []string{"first\n", "second\n"} { // while it is open, its size does not matter
		if err := f.append([]byte(line)); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"cni-2026-11-19T12-00-00.000.log.zst", "cni-2026-11-20T12-00-00.000.log", "cni-2026-11-21T12-00-00.000.log",
		"cni-other.log", "cni.log", "other-2026-10-01T12-00-00.000.log",
	}
	if diff := cmp.Diff(want, names(t, dir)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	if got := read(t, path) + read(t, filepath.Join(dir, "cni-2026-11-21T12-00-00.000.log")); got != "first\nsecond\nfull\n" {
		t.Errorf("files hold %q", got)
	}
}

func TestWritersAtOnceLoseNoLine(t *testing.T) {
	const writers, lines = 8, 50
	dir := t.TempDir()
	path := filepath.Join(dir, "cni.log")
	var done sync.WaitGroup
	for w := range writers {
		done.Go(func() {
			for l := range lines { // each as a process of its own would
				f := newFile(Config{Path: path, MaxCount: 1000})
				f.size = 300
				if err := f.append(fmt.Appendf(nil, "%d %d\n", w, l)); err != nil {
					t.Error(err)
				}
				if err := f.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	done.Wait()
	var all []string
	for _, name := range names(t, dir) {
		all = append(all, strings.Split(strings.TrimSpace(read(t, filepath.Join(dir, name))), "\n")...)
	}
	slices.Sort(all)
	if got := slices.Compact(all); len(got) != writers*lines {
		t.Errorf("%d lines, want %d", len(got), writers*lines)
	}
	if len(names(t, dir)) < 2 {
		t.Error("no file was moved aside")
	}
}
