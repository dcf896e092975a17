package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestPageHasAPlaceForEveryPart holds the page to the list of parts: what is measured can be recorded, and what is recorded is measured.
func TestPageHasAPlaceForEveryPart(t *testing.T) {
	text, err := os.ReadFile("RESULTS.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	for _, p := range parts() {
		if _, err := replaced(page, p.name, ""); err != nil {
			t.Error(err)
		}
	}
	if n := strings.Count(page, "<!-- bench:"); n != 2*len(parts()) {
		t.Errorf("the page has %d markers, and %d parts have two each", n, len(parts()))
	}
}

func TestRecordedPartLeavesTheRestAlone(t *testing.T) {
	const page = "# by hand\n<!-- bench:a:begin -->\nold\n<!-- bench:a:end -->\nbetween\n<!-- bench:b:begin -->\nkept\n<!-- bench:b:end -->\nend\n"
	got, err := replaced(page, "a", markdown([]row{{What: "ADD", Floor: "1 ms", Subject: "2 ms", Ratio: "2.00", Aim: "1.3"}}))
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Replace(page, "old\n", "|  | floor | muslin | ratio | aim |\n|---|---|---|---|---|\n| ADD | 1 ms | 2 ms | 2.00 | 1.3 |\n", 1)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if _, err := replaced(page, "c", "x"); err == nil {
		t.Error("a part without markers is recorded")
	}
}

func TestBenchmarksBecomeRows(t *testing.T) {
	got := benchmarkRows([]byte("goos: linux\nBenchmarkPackets-2 \t 40\t 1500000 ns/op\t 300000 floor-packets/s\t 1.27 x-0-others\nPASS\n"))
	want := []row{
		{What: "Packets: time", Subject: "1.5ms"},
		{What: "Packets", Floor: "300000 packets/s"},
		{What: "Packets: 0-others", Ratio: "1.27"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// TestLinesOfTheLogAreRead is about both ways in which slog writes a message.
func TestLinesOfTheLogAreRead(t *testing.T) {
	at, msg, err := entry(`time=2026-11-21T10:00:00.123Z level=DEBUG msg="pod's side set" program=muslin command=ADD` + "\n")
	if err != nil || msg != "pod's side set" || at.Nanosecond() != 123*int(time.Millisecond) {
		t.Errorf("%v %q %v", at, msg, err)
	}
	if _, msg, err = entry("time=2026-11-21T10:00:00.123Z level=INFO msg=done program=muslin command=ADD took=1ms\n"); err != nil || msg != "done" {
		t.Errorf("%q %v", msg, err)
	}
	if _, _, err := entry("nonsense"); err == nil {
		t.Error("a line that is no log is read")
	}
}

// TestStagesAddUpToTheWholeLife has the plugin's log of two ADDs and of a DEL.
func TestStagesAddUpToTheWholeLife(t *testing.T) {
	start := time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC)
	ms := func(n int) time.Time { return start.Add(time.Duration(n) * time.Millisecond) }
	line := func(n int, msg, command string) string {
		return fmt.Sprintf("time=%s level=DEBUG msg=%q program=muslin command=%s\n", ms(n).Format("2006-01-02T15:04:05.000Z07:00"), msg, command)
	}
	log := line(2, "begin", "ADD") + line(5, "done it", "ADD") + line(6, "done", "ADD") + line(7, "begin", "DEL") + line(12, "begin", "ADD") + line(15, "done it", "ADD") + line(18, "done", "ADD")
	got, err := sumStages(log, []time.Time{ms(0), ms(10)}, []time.Time{ms(7), ms(20)})
	if err != nil {
		t.Fatal(err)
	}
	const half = time.Millisecond / 2 // that the log's times are short of, on average
	want := map[string]time.Duration{"begin": 4*time.Millisecond + 2*half, "done it": 6 * time.Millisecond, "done": 4 * time.Millisecond, processEnd: 3*time.Millisecond - 2*half}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if _, err := sumStages(log, []time.Time{ms(0), ms(10), ms(20)}, []time.Time{ms(7), ms(20), ms(30)}); err == nil {
		t.Error("an ADD is missing in the log, and nothing is said")
	}
}

func TestRatioIsTheMedianOfTheRoundsOwn(t *testing.T) {
	c := comparison{floor: []time.Duration{1, 10, 100}, subject: []time.Duration{2, 10, 900}}
	if got := c.ratio(); got != 2 {
		t.Errorf("ratio %v, want 2: rounds have 2, 1 and 9", got)
	}
}
