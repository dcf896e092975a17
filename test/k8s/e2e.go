package main

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// suite is a part of Kubernetes' own tests.
type suite struct {
	name  string
	what  string // for RESULTS.md
	focus string // regular expressions on the specs' names
	skip  string
	lacks map[string]string // for specs that cannot pass here: a part of the name, and what this machine lacks for it
}

// excuse is why the spec cannot pass on this machine, or "" for one that must.
func (s suite) excuse(failed spec) string {
	for part, why := range s.lacks {
		if strings.Contains(failed.Name, part) {
			return why
		}
	}
	return ""
}

func suites() []suite {
	return []suite{
		{"conformance", "What every network of Kubernetes must do: `[sig-network]`, `[Conformance]`", `\[sig-network\].*\[Conformance\]`, "", nil},
		{"policy", "NetworkPolicy, all but three specs that send SCTP, which this kernel has not", "Netpol", "SCTPConnectivity", nil},
	}
}

// spec is one test of a suite as ginkgo's report has it.
type spec struct {
	Name    string  `xml:"name,attr"`
	Status  string  `xml:"status,attr"` // passed, failed, skipped, …
	Seconds float64 `xml:"time,attr"`
	Failure *struct {
		Message string `xml:"message,attr"`
	} `xml:"failure"`
}

// outcome is what a suite has shown on a cluster.
type outcome struct {
	suite  suite
	passed int
	failed []spec
	took   time.Duration
}

// runSuite runs a suite's specs, so many at a time. Specs that fail are no error; a suite of which none ran is one.
func (c *cluster) runSuite(ctx context.Context, s suite, procs int) (outcome, error) {
	tests, err := c.Programs.e2e(ctx)
	if err != nil {
		return outcome{}, err
	}
	dir := filepath.Join(c.Dir, "e2e-"+s.name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return outcome{}, fmt.Errorf("make folder for results: %w", err)
	}
	args := []string{c.bin("ginkgo"), "run", "--no-color", fmt.Sprintf("--procs=%d", procs), "--focus=" + s.focus, "--timeout=3h", "--junit-report=junit.xml", "--output-dir=" + dir}
	if s.skip != "" {
		args = append(args, "--skip="+s.skip)
	}
	args = append(args, tests, "--", "--provider=skeleton", "--kubeconfig="+c.kubeconfig(), fmt.Sprintf("--num-nodes=%d", c.Options.Nodes))
	cmd, err := c.command(ctx, args...)
	if err != nil {
		return outcome{}, err
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return outcome{}, fmt.Errorf("make log: %w", err)
	}
	defer log.Close()
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, log, log
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGTERM} // specs of nobody's would go on for hours
	began := time.Now()
	err = cmd.Run()
	if _, failed := errors.AsType[*exec.ExitError](err); err != nil && !failed {
		return outcome{}, fmt.Errorf("run %s: %w", s.name, err)
	}
	o, err := readOutcome(filepath.Join(dir, "junit.xml"))
	o.suite, o.took = s, time.Since(began)
	return o, err
}

// readOutcome reads ginkgo's report.
func readOutcome(file string) (outcome, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return outcome{}, fmt.Errorf("read report: %w", err)
	}
	var report struct {
		Specs []spec `xml:"testsuite>testcase"`
	}
	if err := xml.Unmarshal(b, &report); err != nil {
		return outcome{}, fmt.Errorf("read report: %w", err)
	}
	var o outcome
	for _, s := range report.Specs {
		switch {
		case s.Status == "skipped" || !strings.HasPrefix(s.Name, "[It]"):
		case s.Status == "passed":
			o.passed++
		default:
			o.failed = append(o.failed, s)
		}
	}
	if o.passed+len(o.failed) == 0 {
		return outcome{}, errors.New("no spec ran: see the log beside " + file)
	}
	return o, nil
}

// section is the outcome as RESULTS.md has it.
func (o outcome) section(about string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s. %s\n\n**%d of %d passed**, in %s.\n", o.suite.what, about, o.passed, o.passed+len(o.failed), o.took.Round(time.Second))
	if len(o.failed) > 0 {
		b.WriteString("\n| failed | because |\n|---|---|\n")
	}
	for _, s := range o.failed {
		why := o.suite.excuse(s)
		if why == "" && s.Failure != nil {
			why, _, _ = strings.Cut(s.Failure.Message, "\n")
			why = "**not known**: " + why
		}
		fmt.Fprintf(&b, "| %s | %s |\n", cell(strings.TrimPrefix(s.Name, "[It] ")), cell(why))
	}
	return b.String()
}

// e2e runs suites on the cluster that is up, and records what they show if that is wanted.
func (c *cluster) e2e(ctx context.Context, names []string, procs int, keep bool) error {
	for _, s := range suites() {
		if len(names) > 0 && !slices.Contains(names, s.name) {
			continue
		}
		o, err := c.runSuite(ctx, s, procs)
		if err != nil {
			return err
		}
		about, err := c.circumstances(ctx)
		if err != nil {
			return err
		}
		fmt.Printf("%s\n", o.section(about))
		if !keep {
			continue
		}
		file, err := resultsFile()
		if err != nil {
			return err
		}
		if err := record(file, s.name, o.section(about)); err != nil {
			return err
		}
	}
	return nil
}
