package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/muslin-cni/muslin/internal/config"
)

// logs is where the agent logs to: standard error, a file and syslog, each with a least severity of its own that may change at any
// time. No sink holds up whoever logs: what a file or syslog does not take is dropped and counted.
type logs struct {
	screen, file, syslog sink
	errors, dropped      atomic.Int64 // lines logged as errors; lines that a sink did not take
}

// sink is one of them.
type sink struct {
	level   slog.LevelVar
	handler slog.Handler

	mu       sync.Mutex
	out      io.WriteCloser // nil: nowhere
	where    string         // that out leads to
	severity slog.Level     // of the line that is being written
	dropped  *atomic.Int64
}

// newLogs logs to screen alone until set is called.
func newLogs(screen io.Writer) *logs {
	l := &logs{}
	l.screen.out = unclosed{screen}
	for _, s := range l.sinks() {
		s.dropped = &l.dropped
		s.handler = slog.NewTextHandler(s, &slog.HandlerOptions{Level: &s.level})
		s.level.Set(slog.Level(config.Off))
	}
	l.screen.level.Set(slog.LevelInfo)
	return l
}

// unclosed keeps the process's own output open.
type unclosed struct{ io.Writer }

// Close does nothing.
func (unclosed) Close() error { return nil }

func (l *logs) sinks() [3]*sink { return [...]*sink{&l.screen, &l.file, &l.syslog} }

// logger is the logger that writes to all of them.
func (l *logs) logger() *slog.Logger {
	h := fan{logs: l}
	for i, s := range l.sinks() {
		h.to[i] = s.handler
	}
	return slog.New(h)
}

// set opens and closes sinks as the settings say. What cannot be opened comes back as texts, and is tried again by the next call.
func (l *logs) set(d config.Dataplane) (problems []string) {
	l.screen.level.Set(slog.Level(d.LogScreen))
	if d.LogFilePath == "" {
		d.LogFile = config.Off
	}
	if err := l.file.lead(d.LogFile, d.LogFilePath, openLogFile); err != nil {
		problems = append(problems, fmt.Sprintf("logSeverityFile: nothing is logged there: %v; correct logFilePath, or set it to None", err))
	}
	if err := l.syslog.lead(d.LogSyslog, syslogSocket, dialSyslog); err != nil {
		problems = append(problems, fmt.Sprintf("logSeveritySys: nothing is logged there: %v; set it to None where there is no syslog", err))
	}
	return problems
}

// lead makes a sink take what is at least of the level, and write it to where.
func (s *sink) lead(least config.Level, where string, open func(string) (io.WriteCloser, error)) error {
	if least == config.Off {
		where = ""
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.where != where && s.out != nil {
		_ = s.out.Close() // every line was written whole
		s.out = nil
	}
	s.where = where
	if where != "" && s.out == nil {
		out, err := open(where)
		if err != nil {
			s.level.Set(slog.Level(config.Off))
			return err
		}
		s.out = out
	}
	s.level.Set(slog.Level(least))
	return nil
}

// Write writes one line. It reports no error, for which there would be no place.
func (s *sink) Write(line []byte) (int, error) {
	if s.out == nil {
		return len(line), nil
	}
	var err error
	if p, ok := s.out.(interface {
		write(slog.Level, []byte) error
	}); ok {
		err = p.write(s.severity, line)
	} else {
		_, err = s.out.Write(line)
	}
	if err != nil {
		s.dropped.Add(1)
	}
	return len(line), nil
}

// fan gives every record to every sink that takes it.
type fan struct {
	*logs
	to [3]slog.Handler // by the order of sinks
}

// Enabled tells whether a sink takes the level.
func (f fan) Enabled(ctx context.Context, level slog.Level) bool {
	for _, h := range f.to {
		if h.Enabled(ctx, level) {
			return true
		}
	}
	return false
}

// Handle writes the record.
func (f fan) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelError {
		f.errors.Add(1)
	}
	var errs []error
	for i, s := range f.sinks() {
		if f.to[i].Enabled(ctx, r.Level) {
			s.mu.Lock()
			s.severity = r.Level
			errs = append(errs, f.to[i].Handle(ctx, r.Clone()))
			s.mu.Unlock()
		}
	}
	return errors.Join(errs...)
}

// WithAttrs is the same with attributes.
func (f fan) WithAttrs(attrs []slog.Attr) slog.Handler {
	for i, h := range f.to {
		f.to[i] = h.WithAttrs(attrs)
	}
	return f
}

// WithGroup is the same with a group.
func (f fan) WithGroup(name string) slog.Handler {
	for i, h := range f.to {
		f.to[i] = h.WithGroup(name)
	}
	return f
}

func openLogFile(path string) (io.WriteCloser, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	return os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
}

const (
	syslogSocket  = "/dev/log"
	syslogTimeout = 100 * time.Millisecond // for one line: the reader is on this host
	syslogDaemon  = 3 << 3                 // facility (RFC 3164, 4.1.1)
)

// syslog writes lines to the host's syslog in the form that local programs use: priority, time, name and process id (RFC 3164).
type syslog struct{ net.Conn }

func dialSyslog(path string) (io.WriteCloser, error) {
	c, err := net.DialTimeout("unixgram", path, syslogTimeout)
	if err != nil {
		return nil, err
	}
	return syslog{c}, nil
}

func (s syslog) write(level slog.Level, line []byte) error {
	if err := s.SetWriteDeadline(time.Now().Add(syslogTimeout)); err != nil {
		return err
	}
	_, err := fmt.Fprintf(s, "<%d>%s muslin-node[%d]: %s", syslogDaemon|syslogSeverity(level), time.Now().Format(time.Stamp), os.Getpid(), line)
	return err
}

func syslogSeverity(l slog.Level) int {
	switch {
	case l > slog.LevelError:
		return 2 // critical
	case l == slog.LevelError:
		return 3
	case l >= slog.LevelWarn:
		return 4
	case l >= slog.LevelInfo:
		return 6
	}
	return 7 // debug
}
