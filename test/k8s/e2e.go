package main

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// suite is a part of Kubernetes' own tests.
type suite struct {
	name  string
	what  string // for RESULTS.md
	focus string // regular expressions on the specs' names
	skip  string
}

func suites() []suite {
	return []suite{
		{"conformance", "What every network of Kubernetes must do: `[sig-network]`, `[Conformance]`", `\[sig-network\].*\[Conformance\]`, ""},
		{"policy", "NetworkPolicy, all but SCTP, which this kernel has not", "Netpol", "SCTP"},
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
	args := []string{c.bin("ginkgo"), "run", "--no-color", fmt.Sprintf("--procs=%d", procs), "--focus=" + s.focus, "--junit-report=junit.xml", "--output-dir=" + dir}
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
		b.WriteString("\n| failed | it said |\n|---|---|\n")
	}
	for _, s := range o.failed {
		said := ""
		if s.Failure != nil {
			said, _, _ = strings.Cut(s.Failure.Message, "\n")
		}
		fmt.Fprintf(&b, "| %s | %s |\n", cell(s.Name), cell(said))
	}
	return b.String()
}

func cell(text string) string {
	return strings.ReplaceAll(strings.TrimPrefix(text, "[It] "), "|", `\|`)
}

// circumstances say of what commit and on what a result is.
func (c *cluster) circumstances(ctx context.Context) (string, error) {
	version, err := c.agentVersion(ctx) // it names the commit
	if err != nil {
		return "", err
	}
	node, err := output(c.kubectl(ctx, "get", "node", "node1", "-o", `jsonpath={.status.nodeInfo.containerRuntimeVersion}, Linux {.status.nodeInfo.kernelVersion}`))
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("Muslin %s, %s: Kubernetes %s, %d nodes, kube-proxy with %s, %s.", version, time.Now().UTC().Format(time.DateOnly),
		c.Programs.Version, c.Options.Nodes, c.Options.ProxyMode, strings.ReplaceAll(node, "://", " ")), nil
}

// record writes the outcome into its place in the file, between two comments that name the suite.
func record(file string, o outcome, about string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read results: %w", err)
	}
	begin, end := "<!-- "+o.suite.name+":begin -->\n", "<!-- "+o.suite.name+":end -->"
	place := regexp.MustCompile("(?s)" + regexp.QuoteMeta(begin) + ".*?" + regexp.QuoteMeta(end))
	if !place.Match(b) {
		return fmt.Errorf("%s has no place for %s", file, o.suite.name)
	}
	b = place.ReplaceAllLiteral(b, []byte(begin+o.section(about)+end))
	return os.WriteFile(file, b, 0o644)
}

// e2e runs suites on the cluster that is up, and records what they show if that is wanted.
func (c *cluster) e2e(ctx context.Context, names []string, procs int, file string) error {
	for _, s := range suites() {
		if len(names) > 0 && !slices.Contains(names, s.name) {
			continue
		}
		about, err := c.circumstances(ctx)
		if err != nil {
			return err
		}
		o, err := c.runSuite(ctx, s, procs)
		if err != nil {
			return err
		}
		fmt.Printf("%s\n", o.section(about))
		if file == "" {
			continue
		}
		if err := record(file, o, about); err != nil {
			return err
		}
	}
	return nil
}
