package agent

import (
	"bytes"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/muslin-cni/muslin/internal/config"
)

func TestEverySinkTakesWhatIsSevereEnough(t *testing.T) {
	var screen bytes.Buffer
	l := newLogs(&screen)
	log := l.logger().With("node", "n1")
	path := filepath.Join(t.TempDir(), "sub", "agent.log")
	log.Debug("first")
	if problems := l.set(config.Dataplane{LogScreen: config.Level(slog.LevelError), LogFile: config.Level(slog.LevelDebug), LogSyslog: config.Off, LogFilePath: path}); problems != nil {
		t.Fatal(problems)
	}
	log.Debug("second")
	log.Error("third")
	l.set(config.Dataplane{LogScreen: config.Off, LogFile: config.Off, LogSyslog: config.Off, LogFilePath: path})
	log.Error("fourth")
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, text string
		want, lack []string
	}{
		{"screen", screen.String(), []string{"third node=n1"}, []string{"first", "second", "fourth"}},
		{"file", string(file), []string{"second node=n1", "third node=n1"}, []string{"first", "fourth"}},
	} {
		for _, w := range c.want {
			if !strings.Contains(c.text, w) {
				t.Errorf("%s lacks %q: %s", c.name, w, c.text)
			}
		}
		for _, w := range c.lack {
			if strings.Contains(c.text, w) {
				t.Errorf("%s has %q: %s", c.name, w, c.text)
			}
		}
	}
	if n := l.errors.Load(); n != 2 {
		t.Errorf("%d errors were counted, want 2", n)
	}
}

func TestLogFileThatCannotBeOpenedIsAProblemAndTheRestGoesOn(t *testing.T) {
	var screen bytes.Buffer
	l := newLogs(&screen)
	notAFolder := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(notAFolder, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	d := config.Dataplane{LogSyslog: config.Off, LogFilePath: filepath.Join(notAFolder, "agent.log")}
	if problems := l.set(d); len(problems) != 1 || !strings.Contains(problems[0], "logFilePath") {
		t.Errorf("problems %q", problems)
	}
	l.logger().Info("goes on")
	if !strings.Contains(screen.String(), "goes on") {
		t.Error("the screen got nothing")
	}
	if err := os.Remove(notAFolder); err != nil {
		t.Fatal(err)
	}
	if problems := l.set(d); problems != nil {
		t.Errorf("once it can be opened: %q", problems)
	}
}

func TestSyslogGetsThePriorityOfEachLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	daemon, err := net.ListenPacket("unixgram", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = daemon.Close() }()
	l := newLogs(&bytes.Buffer{})
	if err := l.syslog.lead(config.Level(slog.LevelInfo), path, dialSyslog); err != nil {
		t.Fatal(err)
	}
	log := l.logger()
	log.Warn("careful")
	log.Error("broken")
	for _, want := range []struct{ priority, text string }{{"<28>", "careful"}, {"<27>", "broken"}} {
		buf := make([]byte, 4096)
		if err := daemon.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, _, err := daemon.ReadFrom(buf)
		if got := string(buf[:n]); err != nil || !strings.HasPrefix(got, want.priority) || !strings.Contains(got, want.text) || !strings.Contains(got, " muslin-node[") {
			t.Errorf("got %q, %v, want %v", got, err, want)
		}
	}
	_ = daemon.Close()
	log.Error("nobody listens") // and does not wait
	if l.dropped.Load() != 1 {
		t.Errorf("%d lines were counted as dropped", l.dropped.Load())
	}
}
