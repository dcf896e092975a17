package controllers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	defaultStatusFile = "/status/status.json"
	healthInterval    = 10 * time.Second
	healthTimeout     = 5 * time.Second // for etcd or the API server to answer
	staleAfter        = time.Minute     // a status file that is older is that of a process that is stuck
)

// The parts of which health consists, by Calico's names.
const (
	partStartup = "Startup"
	partEtcd    = "CalicoDatastore"
	partKube    = "KubeAPIServer"
)

// health knows whether the controllers can work. Its methods may be called concurrently.
type health struct {
	now func() time.Time

	mu    sync.Mutex
	mute  bool              // no file is written
	wrong map[string]string // by part: why it is not well, "" if it is
	beat  time.Time         // of the last look
}

// status is the status file.
type status struct {
	Time  time.Time         `json:"time"`  // when it was written
	Ready bool              `json:"ready"` // all parts are well
	Parts map[string]string `json:"parts"` // by part: what is wrong, "" if nothing is
}

func newHealth(now func() time.Time) *health {
	return &health{now: now, beat: now(), wrong: map[string]string{partStartup: "not yet started", partEtcd: "not asked yet", partKube: "not asked yet"}}
}

// set says that a part is well (nil) or why it is not, and returns whether that is news.
func (h *health) set(part string, err error) (news bool) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	news = (h.wrong[part] == "") != (text == "")
	h.wrong[part] = text
	return news
}

// quiet says whether the file is left alone.
func (h *health) quiet(yes bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mute = yes
}

func (h *health) status() status {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := status{Time: h.beat, Ready: true, Parts: map[string]string{}}
	for part, wrong := range h.wrong {
		s.Parts[part] = wrong
		s.Ready = s.Ready && wrong == ""
	}
	return s
}

// notReady is what is wrong, a line for each part.
func (s status) notReady() string {
	var lines []string
	for part, wrong := range s.Parts {
		if wrong != "" {
			lines = append(lines, part+": "+wrong)
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// stuck says why the process that made the status counts as stuck; "" if it does not. That etcd or the API server is away is no reason: a
// restart would not bring them back.
func (s status) stuck(now time.Time) string {
	if age := now.Sub(s.Time); age > staleAfter {
		return fmt.Sprintf("the last sign of life is %v old", age.Round(time.Second))
	}
	return ""
}

// run asks etcd and the API server how they are every few seconds, and writes the file, until ctx ends.
func (h *health) run(ctx context.Context, file string, log *slog.Logger, ask map[string]func(context.Context) error) error {
	tick := time.NewTicker(healthInterval)
	defer tick.Stop()
	said := ""
	for {
		for part, f := range ask {
			within, cancel := context.WithTimeout(ctx, healthTimeout)
			err := f(within)
			cancel()
			if ctx.Err() == nil && h.set(part, err) {
				h.log(log, part, err)
			}
		}
		h.mu.Lock()
		h.beat = h.now()
		mute := h.mute
		h.mu.Unlock()
		to := file
		if mute {
			to = ""
		}
		if err := writeStatus(to, h.status()); err != nil && err.Error() != said {
			said = err.Error()
			log.Warn("the status file cannot be written, so that --check finds none: mount a writable volume there, or name another file in STATUS_FILE", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (h *health) log(log *slog.Logger, part string, err error) {
	if err != nil {
		log.Warn("a part is not well", "part", part, "error", err)
		return
	}
	log.Info("a part is well", "part", part)
}

// writeStatus replaces the file as a whole: a reader never sees a part of it. "" is no file.
func writeStatus(file string, s status) error {
	if file == "" {
		return nil
	}
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	next := file + ".new"
	if err := os.WriteFile(next, text, 0o644); err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	if err := os.Rename(next, file); err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	return nil
}

// check reads a status file and says whether the process is ready, or lives. The error says why not.
func check(file string, live bool, now time.Time, out io.Writer) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read status: %w", err)
	}
	var s status
	if err := json.Unmarshal(text, &s); err != nil {
		return fmt.Errorf("read status %s: %w", file, err)
	}
	if why := s.stuck(now); why != "" {
		return errors.New(why)
	}
	if why := s.notReady(); !live && why != "" {
		return errors.New(why)
	}
	_, err = fmt.Fprintln(out, map[bool]string{true: "live", false: "ready"}[live])
	return err
}

// handler answers GET /readiness and /liveness with 200, or with 503 and what is wrong.
func (h *health) handler() http.Handler {
	answer := func(wrong func() string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if text := wrong(); text != "" {
				http.Error(w, text, http.StatusServiceUnavailable)
				return
			}
			fmt.Fprintln(w, "ok")
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /readiness", answer(func() string { return h.status().notReady() }))
	mux.HandleFunc("GET /liveness", answer(func() string { return h.status().stuck(h.now()) }))
	return mux
}
