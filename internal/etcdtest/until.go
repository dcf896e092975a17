package etcdtest

import (
	"testing"
	"time"
)

// Until waits until a condition holds that etcd brings about, and ends the test if it does not within 20 seconds.
func Until(t testing.TB, what string, holds func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-deadline:
			t.Fatalf("waited in vain until %s", what)
		case <-tick.C:
		}
	}
}
