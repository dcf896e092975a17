package agent

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// When there is something to tidy up: once work is over, and in the middle of work that does not end.
const (
	tidyLook  = 2 * time.Second
	tidyLeast = 10 * time.Second // between two times
	tidyMost  = 20 * time.Second // that work goes on untidied
	tidyAfter = 2 << 20          // bytes allocated since the last time: a refresh with 1,000 nodes takes more, an agent at rest less
	tidyRest  = 256 << 10        // bytes allocated between two looks by an agent at rest
)

// tidy gives the system back what work has left over, until ctx ends. Reading a large cluster leaves as much garbage again as it leaves data, and the
// runtime by itself collects only when as much is allocated anew, or after two minutes: on a quiet node the peak would stay. So it is with the
// program itself: the start, and each kind of work that is not done all the time, leave its pages behind.
func tidy(ctx context.Context, log *slog.Logger) error {
	tick := time.NewTicker(tidyLook)
	defer tick.Stop()
	w := waste{tidied: time.Now()}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if !w.due(time.Now(), allocated()) {
			continue
		}
		debug.FreeOSMemory()
		if err := unmapProgram(); err != nil {
			log.Debug("give back what of the program only past work needed", "error", err)
		}
	}
}

// waste tells when it is time to tidy up.
type waste struct {
	tidied    time.Time
	seen, was uint64 // bytes allocated at the last look, and when it was tidied last
}

// due takes over how many bytes were allocated up to now. Where it returns true, it is to be tidied.
func (w *waste) due(now time.Time, allocated uint64) bool {
	rests, since := allocated-w.seen < tidyRest, now.Sub(w.tidied)
	w.seen = allocated
	if allocated-w.was <= tidyAfter || since < tidyLeast || !rests && since < tidyMost {
		return false
	}
	w.tidied, w.was = now, allocated
	return true
}

// allocated is how much this process has allocated since its start, in bytes.
func allocated() uint64 { return measured("/gc/heap/allocs:bytes") }

// measured is a number that the runtime keeps of itself (runtime/metrics).
func measured(name string) uint64 {
	s := []metrics.Sample{{Name: name}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

// unmapProgram gives up the pages of the program that nobody writes: code and constants. The start of all that is linked in touches most of them, and
// what goes on afterwards a third. These come back one by one as they are used, out of the page cache (madvise(2), MADV_DONTNEED on the mapping of
// a file). Without MADV_NOHUGEPAGE a kernel that keeps files in huge pages would bring back 2 MiB for each. A mapping with a page that is not the
// file's any more (a loader's relocations, a debugger's breakpoints) stays as it is: that page would not come back.
func unmapProgram() error {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("find the program: %w", err)
	}
	text, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return fmt.Errorf("find the program's memory: %w", err)
	}
	for _, m := range unwritten(string(text), program) {
		size := m.to - m.from
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, m.from, size, unix.MADV_NOHUGEPAGE) // a kernel without them refuses
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, m.from, size, unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("give up memory from %#x to %#x: %w", m.from, m.to, errno)
		}
	}
	return nil
}

// mapping is a range of this process's memory.
type mapping struct{ from, to uintptr }

// unwritten finds in what /proc/self/smaps says the mappings of a file that nobody can write, and of which nothing has been written (proc(5)).
func unwritten(smaps, file string) (out []mapping) {
	var m mapping
	ours := false
	for line := range strings.Lines(smaps) {
		line = strings.TrimSuffix(line, "\n")
		var at mapping
		var rights string
		if n, _ := fmt.Sscanf(line, "%x-%x %s", &at.from, &at.to, &rights); n == 3 {
			m, ours = at, !strings.Contains(rights, "w") && strings.HasSuffix(line, " "+file)
			continue
		}
		if kind, size, _ := strings.Cut(line, ":"); ours && kind == "Anonymous" && strings.TrimSpace(size) == "0 kB" {
			out = append(out, m)
		}
	}
	return out
}
