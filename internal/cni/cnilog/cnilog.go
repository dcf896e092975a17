// Package cnilog writes the logs of the CNI programs.
//
//  1. A program that lives for milliseconds pays for its log only what it writes: the file is opened with the first line.
//  2. Many processes write one file at once: each line is one write that the kernel appends, and the file is moved aside by
//     one of them, under a lock on its folder. Lines of those who still have the old file open are in the old file.
//  3. A log that cannot be written never fails a command.
//  4. Runtimes take what a plugin says on its standard error for their own log: it gets warnings and errors, and all of it only
//     at level debug.
package cnilog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/muslin-cni/muslin/internal/members"
)

// Config is the part of a network configuration that concerns the log.
type Config struct {
	Level    string `json:"log_level"`          // debug, info, warning or error, in any case; anything else: info
	Path     string `json:"log_file_path"`      // "": no file
	MaxSize  int    `json:"log_file_max_size"`  // MB, at which the file is moved aside; 0: 100
	MaxAge   int    `json:"log_file_max_age"`   // days, after which a file that was moved aside is removed; 0: 30
	MaxCount int    `json:"log_file_max_count"` // of files that were moved aside; 0: 10
}

// Members lists the part's keys.
func (c *Config) Members() []members.Member {
	return []members.Member{
		{Name: "log_level", Value: &c.Level, Empty: true}, {Name: "log_file_path", Value: &c.Path, Empty: true},
		{Name: "log_file_max_size", Value: &c.MaxSize, Empty: true}, {Name: "log_file_max_age", Value: &c.MaxAge, Empty: true},
		{Name: "log_file_max_count", Value: &c.MaxCount, Empty: true},
	}
}

// What 0 stands for in a Config.
const (
	defaultSize  = 100
	defaultAge   = 30
	defaultCount = 10
)

const (
	megabyte = 1 << 20
	day      = 24 * time.Hour
)

// New makes a logger of the configuration. Each of its lines names the process by attrs. Closing it closes the file.
// The logger may be used concurrently.
func New(c Config, stderr io.Writer, attrs ...slog.Attr) (*slog.Logger, io.Closer) {
	level := c.level()
	opts := &slog.HandlerOptions{Level: level}
	loud := &slog.HandlerOptions{Level: max(level, slog.LevelWarn)}
	if level <= slog.LevelDebug {
		loud = opts
	}
	h := split{naming{slog.NewTextHandler(stderr, loud), attrs}}
	if c.Path == "" {
		return slog.New(h), io.NopCloser(nil)
	}
	f := newFile(c)
	h = append(h, naming{slog.NewTextHandler(&reporting{f: f, stderr: stderr}, opts), attrs})
	return slog.New(h), f
}

func (c Config) level() slog.Level {
	switch strings.ToLower(c.Level) {
	case "debug", "trace":
		return slog.LevelDebug
	case "warn", "warning":
		return slog.LevelWarn
	case "error", "fatal", "panic":
		return slog.LevelError
	}
	return slog.LevelInfo
}

// naming adds attributes to a record when there is one: a command that says nothing need not write them out.
type naming struct {
	slog.Handler
	attrs []slog.Attr
}

func (n naming) named() slog.Handler { return n.Handler.WithAttrs(n.attrs) }

func (n naming) Handle(ctx context.Context, r slog.Record) error { return n.named().Handle(ctx, r) }

func (n naming) WithAttrs(attrs []slog.Attr) slog.Handler { return n.named().WithAttrs(attrs) }

func (n naming) WithGroup(name string) slog.Handler { return n.named().WithGroup(name) }

// split hands each record to all of its handlers.
type split []slog.Handler

func (s split) Enabled(ctx context.Context, l slog.Level) bool {
	for _, h := range s {
		if h.Enabled(ctx, l) {
			return true
		}
	}
	return false
}

func (s split) Handle(ctx context.Context, r slog.Record) error {
	var errs []error
	for _, h := range s {
		if h.Enabled(ctx, r.Level) {
			errs = append(errs, h.Handle(ctx, r))
		}
	}
	return errors.Join(errs...)
}

func (s split) WithAttrs(attrs []slog.Attr) slog.Handler {
	return s.each(func(h slog.Handler) slog.Handler { return h.WithAttrs(attrs) })
}

func (s split) WithGroup(name string) slog.Handler {
	return s.each(func(h slog.Handler) slog.Handler { return h.WithGroup(name) })
}

func (s split) each(f func(slog.Handler) slog.Handler) split {
	out := make(split, len(s))
	for i, h := range s {
		out[i] = f(h)
	}
	return out
}

// reporting writes to the log file until that fails, says so once and is silent from then on.
type reporting struct {
	f      *file
	stderr io.Writer
	failed bool
}

func (r *reporting) Write(line []byte) (int, error) {
	if r.failed {
		return len(line), nil
	}
	if err := r.f.append(line); err != nil {
		r.failed = true
		_, _ = fmt.Fprintf(r.stderr, "log_file_path: %v\n", err) // there is nowhere else to say it
	}
	return len(line), nil
}
