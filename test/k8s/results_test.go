package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestResultsReplaceTheOlderOnesAndNothingElse(t *testing.T) {
	file := filepath.Join(t.TempDir(), "RESULTS.md")
	const before, after = "# Title\n<!-- a:begin -->\nold\n<!-- a:end -->\ntext\n<!-- b:begin -->\nother\n<!-- b:end -->\n", "# Title\n<!-- a:begin -->\nnew $1\n<!-- a:end -->\ntext\n<!-- b:begin -->\nother\n<!-- b:end -->\n"
	if err := os.WriteFile(file, []byte(before), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := record(file, "a", "new $1\n"); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != after {
		t.Errorf("%v\n%s", err, got)
	}
	if err := record(file, "c", ""); err == nil {
		t.Error("a place that is not there took results")
	}
}

func TestResultsHaveAPlaceForEverything(t *testing.T) {
	file, err := resultsFile()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	names := []string{"iptables", "nftables"}
	for _, s := range suites() {
		names = append(names, s.name)
	}
	for _, name := range names {
		if !strings.Contains(string(text), "<!-- "+name+":begin -->\n") || !strings.Contains(string(text), "<!-- "+name+":end -->\n") {
			t.Errorf("no place for %s", name)
		}
	}
}

func TestDiarySaysWhatFailed(t *testing.T) {
	var d diary
	d.note("a | b", true, 1400*time.Millisecond)
	d.note("c", false, time.Minute)
	const want = "About.\n\n**1 of 2 passed.**\n\n| | | took |\n|---|---|---|\n| a \\| b | passed | 1 s |\n| c | **failed** | 60 s |\n"
	if got := d.section("About."); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestOverlayIsMadeOfTheManifest reads the overlay as kustomize will.
func TestOverlayIsMadeOfTheManifest(t *testing.T) {
	c := &cluster{Name: "test", Dir: t.TempDir()}
	if err := os.MkdirAll(c.pki(), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := c.makeEtcdPKI(); err != nil {
		t.Fatal(err)
	}
	dir, err := c.writeOverlay(muslin{DualStack: true, Env: map[string]string{"FELIX_LOGSEVERITYSCREEN": "Debug"}}, "v9")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "kustomization.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"newTag: v9", `"assign_ipv6": "true"`, "FELIX_LOGSEVERITYSCREEN", "https://172.30.0.1:2379", "etcd-key: ", "base/muslinctl.yaml"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
}
