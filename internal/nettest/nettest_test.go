package nettest

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestNamespaceIsPrivate(t *testing.T) {
	ns := New(t)
	before, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	var inside string
	ns.Do(func() { inside, err = os.Readlink("/proc/thread-self/ns/net") })
	if err != nil {
		t.Fatal(err)
	}
	after, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if inside == before || before != after {
		t.Fatalf("before %s, inside %s, after %s", before, inside, after)
	}
	var st unix.Stat_t
	if err := unix.Stat(ns.Path(), &st); err != nil {
		t.Fatal(err)
	}
}

func TestPairCarriesPackets(t *testing.T) {
	a, b := New(t), New(t)
	Pair(a, "left", b, "right")
	a.Exec("ip", "addr", "add", "192.0.2.1/24", "dev", "left")
	b.Exec("ip", "addr", "add", "192.0.2.2/24", "dev", "right")
	Eventually(t, func() error {
		out, err := a.Try("ip", "-br", "link", "show", "left")
		if err == nil && !strings.Contains(out, "LOWER_UP") {
			return errors.New(out)
		}
		return err
	})
	if a.Index("left") == 0 || b.Index("right") == 0 {
		t.Fatal("a device has index 0")
	}
}

func TestTryReportsWhatTheProgramSaid(t *testing.T) {
	ns := New(t)
	_, err := ns.Try("ip", "link", "show", "nosuch")
	if err == nil || !strings.Contains(err.Error(), "nosuch") {
		t.Fatalf("got %v", err)
	}
}

func TestNeedSkipsOrFails(t *testing.T) {
	t.Setenv("NETTEST", "")
	skipped := false
	t.Run("skips", func(t *testing.T) {
		t.Cleanup(func() { skipped = t.Skipped() })
		Need(t, "no-such-program")
	})
	if !skipped {
		t.Fatal("a missing program did not skip the test")
	}
	if err := lacking("sh"); err != nil {
		t.Fatal(err)
	}
}
