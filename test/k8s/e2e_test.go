package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// atOnce is how many of Kubernetes' specs run at a time. They wait more than they work.
const atOnce = 3

// TestKubernetesSpecs runs Kubernetes' own tests of what a network must do, and of policy.
func TestKubernetesSpecs(t *testing.T) {
	w := newWorld(t, options{Nodes: 3, ProxyMode: "iptables"}, muslin{DualStack: true})
	for _, s := range suites() {
		w.Run(s.name, func(t *testing.T) { w.within(t).specsPass(s) })
	}
}

// specsPass holds that all specs of the suite pass but those that no network could make pass on this machine.
func (w world) specsPass(s suite) {
	o, err := w.runSuite(w.Context(), s, atOnce)
	if err != nil {
		w.Fatal(err)
	}
	about, err := w.circumstances(w.Context())
	if err != nil {
		w.Fatal(err)
	}
	w.Log(o.section(about))
	for _, failed := range o.failed {
		if s.excuse(failed) == "" {
			w.Errorf("%s: %+v", failed.Name, failed.Failure)
		}
	}
	if os.Getenv("MUSLIN_K8S") != "record" {
		return
	}
	file, err := resultsFile()
	if err != nil {
		w.Fatal(err)
	}
	if err := record(file, s.name, o.section(about)); err != nil {
		w.Error(err)
	}
}

// report is what ginkgo writes of three specs and of what it does around them.
const report = `<?xml version="1.0" encoding="UTF-8"?>
<testsuites><testsuite name="Kubernetes e2e suite" tests="5">
<testcase name="[SynchronizedBeforeSuite]" status="passed" time="1"></testcase>
<testcase name="[It] [sig-network] Services should serve [Conformance]" status="passed" time="2"></testcase>
<testcase name="[It] [sig-network] DNS should work [Conformance]" status="failed" time="3"><failure message="no such | host&#xA;at dns.go" type="failed"></failure></testcase>
<testcase name="[It] [sig-network] HostPort should hold [Conformance]" status="timedout" time="4"></testcase>
<testcase name="[It] [sig-node] Pods should be" status="skipped" time="0"></testcase>
</testsuite></testsuites>`

func TestReportOfKubernetesSpecsIsRead(t *testing.T) {
	file := filepath.Join(t.TempDir(), "junit.xml")
	if err := os.WriteFile(file, []byte(report), 0o600); err != nil {
		t.Fatal(err)
	}
	o, err := readOutcome(file)
	if err != nil {
		t.Fatal(err)
	}
	o.suite, o.took = suite{what: "Some", lacks: map[string]string{"HostPort": "no second address"}}, time.Minute
	const want = `Some. About.

**1 of 3 passed**, in 1m0s.

| failed | because |
|---|---|
| [sig-network] DNS should work [Conformance] | **not known**: no such \| host |
| [sig-network] HostPort should hold [Conformance] | no second address |
`
	if got := o.section("About."); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestReportWithoutSpecsIsAnError(t *testing.T) {
	file := filepath.Join(t.TempDir(), "junit.xml")
	if err := os.WriteFile(file, []byte(`<testsuites><testsuite></testsuite></testsuites>`), 0o600); err != nil {
		t.Fatal(err)
	}
	if o, err := readOutcome(file); err == nil {
		t.Errorf("an empty report is %+v", o)
	}
	if _, err := readOutcome(file + "x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing report is %v", err)
	}
}
