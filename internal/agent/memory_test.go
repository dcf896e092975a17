package agent

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestPagesOfTheProgramGoAndItGoesOn(t *testing.T) {
	before := residentOfFiles(t)
	if err := unmapProgram(); err != nil {
		t.Fatal(err)
	}
	if after := residentOfFiles(t); after > before*3/4 {
		t.Errorf("%d KiB of files are resident, and were %d before", after, before)
	}
}

// residentOfFiles is how much of the program and other files is mapped and in memory, in KiB.
func residentOfFiles(t *testing.T) (kib int) {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(status), "RssFile:")
	if _, err := fmt.Sscan(text, &kib); err != nil {
		t.Fatal(err)
	}
	return kib
}

func TestMappingsThatWereWrittenStay(t *testing.T) {
	const smaps = `00400000-00500000 r-xp 00000000 fe:00 11 /bin/agent
Size:               1024 kB
Anonymous:             0 kB
00500000-00600000 r--p 00100000 fe:00 11 /bin/agent
Anonymous:             4 kB
AnonHugePages:         0 kB
00600000-00700000 rw-p 00200000 fe:00 11 /bin/agent
Anonymous:             0 kB
00700000-00800000 r--p 00000000 fe:00 12 /bin/other
Anonymous:             0 kB
00800000-00900000 r--p 00300000 fe:00 11 /bin/agent
Anonymous:             0 kB
`
	want := []mapping{{0x400000, 0x500000}, {0x800000, 0x900000}}
	if got := unwritten(smaps, "/bin/agent"); !slices.Equal(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}
}

func TestMemoryIsTidiedOnceWorkIsOver(t *testing.T) {
	start := time.Unix(0, 0)
	w := waste{tidied: start}
	for _, c := range []struct {
		second, allocatedMiB int
		due                  bool
	}{
		{2, 100, false}, {4, 100, false}, // it has just begun
		{10, 100, true},
		{12, 101, false}, {24, 101, false}, // too little
		{26, 105, false},                   // work goes on
		{28, 105, true},                    // and is over
		{30, 115, false}, {46, 125, false}, // it goes on and on
		{48, 135, true},
		{50, 145, false}, {68, 155, true},
	} {
		if got := w.due(start.Add(time.Duration(c.second)*time.Second), uint64(c.allocatedMiB)<<20); got != c.due {
			t.Errorf("after %d s and %d MiB: due %t", c.second, c.allocatedMiB, got)
		}
	}
}
