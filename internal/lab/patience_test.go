package lab

import (
	"testing"
	"time"
)

func TestPatienceStretchesDeadlines(t *testing.T) {
	for value, want := range map[string]time.Duration{"": 1, "10": 10, "0": 1, "x": 1} {
		t.Setenv(patienceVar, value)
		if got := patient(1); got != want {
			t.Errorf("%s=%q: %d, want %d", patienceVar, value, got, want)
		}
	}
}
