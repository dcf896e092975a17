package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// resultsFile is where results are kept that were asked to be.
func resultsFile() (string, error) {
	root, err := moduleRoot()
	return filepath.Join(root, "test", "k8s", "RESULTS.md"), err
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
	node, _, _ = strings.Cut(node, "-") // what follows is the distribution's own number
	return fmt.Sprintf("Muslin %s, %s: Kubernetes %s, %d nodes, kube-proxy with %s, %s.", version, time.Now().UTC().Format(time.DateOnly),
		c.Programs.Version, c.Options.Nodes, c.Options.ProxyMode, strings.ReplaceAll(node, "://", " ")), nil
}

// record writes a section into its place in a file, between two comments that name it.
func record(file, name, section string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read results: %w", err)
	}
	begin, end := "<!-- "+name+":begin -->\n", "<!-- "+name+":end -->"
	place := regexp.MustCompile("(?s)" + regexp.QuoteMeta(begin) + ".*?" + regexp.QuoteMeta(end))
	if !place.Match(b) {
		return fmt.Errorf("%s has no place for %s", file, name)
	}
	b = place.ReplaceAllLiteral(b, []byte(begin+section+end))
	return os.WriteFile(file, b, 0o644)
}

// cell is text for a table.
func cell(text string) string { return strings.ReplaceAll(text, "|", `\|`) }

// diary is what a walk has shown.
type diary struct {
	entries []string
	failed  int
}

// note adds a line to it.
func (d *diary) note(what string, passed bool, took time.Duration) {
	how := "passed"
	if !passed {
		how = "**failed**"
		d.failed++
	}
	d.entries = append(d.entries, fmt.Sprintf("| %s | %s | %d s |\n", cell(what), how, int(took.Round(time.Second).Seconds())))
}

// section is the diary as RESULTS.md has it.
func (d *diary) section(about string) string {
	return fmt.Sprintf("%s\n\n**%d of %d passed.**\n\n| | | took |\n|---|---|---|\n%s", about, len(d.entries)-d.failed, len(d.entries), strings.Join(d.entries, ""))
}
