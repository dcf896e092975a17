package agent

import (
	"fmt"
	"os"
	"strings"
	"testing"
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
