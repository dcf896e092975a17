package machineid_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/muslin-cni/muslin/internal/machineid"
)

// sources is a host whose files lie in a folder of the test.
func sources(t *testing.T, files map[string]string) machineid.Sources {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	return machineid.Sources{Said: at("run/said"), System: []string{at("etc"), at("dbus")}, Firmware: at("dmi"), Kept: at("lib/kept")}
}

func TestFirstSourceWithAnIDCounts(t *testing.T) {
	for _, c := range []struct {
		name, want string
		files      map[string]string
	}{
		{"the system's", "abc", map[string]string{"etc": "ABC\n", "dbus": "other", "dmi": "firm"}},
		{"not yet initialised", "bus", map[string]string{"etc": "uninitialized\n", "dbus": "bus"}},
		{"empty", "firm-1", map[string]string{"etc": "\n", "dmi": "FIRM-1\n"}},
		{"none", "", nil},
		{"a placeholder of the firmware", "", map[string]string{"dmi": "00000000-0000-0000-0000-000000000000"}},
		{"another placeholder", "", map[string]string{"dmi": "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF"}},
	} {
		got, err := sources(t, c.files).Find()
		if got != c.want || errors.Is(err, machineid.ErrNone) != (c.want == "") {
			t.Errorf("%s: %q, %v; want %q", c.name, got, err, c.want)
		}
	}
}

func TestChosenFileIsTheOnlyOne(t *testing.T) {
	s := sources(t, map[string]string{"etc": "abc"})
	s.File = filepath.Join(t.TempDir(), "none")
	if id, err := s.Find(); err == nil {
		t.Errorf("a chosen file that does not exist gave %q", id)
	}
	if err := os.WriteFile(s.File, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if id, made, err := s.FindOrMake(); err == nil {
		t.Errorf("a chosen file that is empty gave %q, made %t", id, made)
	}
	if err := os.WriteFile(s.File, []byte("chosen\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if id, err := s.Find(); id != "chosen" || err != nil {
		t.Errorf("got %q, %v", id, err)
	}
}

func TestRandomIDIsKept(t *testing.T) {
	s := sources(t, nil)
	first, made, err := s.FindOrMake()
	if err != nil || !made || len(first) != 32 {
		t.Fatalf("got %q, made %t, %v", first, made, err)
	}
	again, made, err := s.FindOrMake()
	if again != first || made || err != nil {
		t.Errorf("the second time: %q, made %t, %v; want %q", again, made, err, first)
	}
}

func TestProgramsBelieveTheAgent(t *testing.T) {
	s := sources(t, map[string]string{"etc": "mine"})
	if id, err := s.Ask(); id != "mine" || err != nil {
		t.Errorf("before the agent has spoken: %q, %v", id, err)
	}
	if err := s.Say("agents"); err != nil {
		t.Fatal(err)
	}
	if id, err := s.Ask(); id != "agents" || err != nil {
		t.Errorf("after it: %q, %v", id, err)
	}
}
