// Package deploy holds what is in deploy/ to the code and to itself: the chart to the manifests that are made of it, both to the types of
// Kubernetes and to the variables that the programs know, and dashboards and alerts to the metrics that there are.
package deploy

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
)

// root is the folder of this repository, from here.
const root = "../.."

// tool runs one of the programs that test/charts/go.mod pins, in the folder of this repository, and returns what it prints. The first run of each
// builds it, which takes minutes.
func tool(name string, args ...string) (string, error) {
	all := append([]string{"tool", "-modfile=" + filepath.Join("test", "charts", "go.mod"), name}, args...)
	cmd := exec.Command("go", all...)
	cmd.Dir = root
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}

// rendered is the chart with values, as helm renders it.
func rendered(args ...string) (string, error) {
	return tool("helm", append([]string{"template", "muslin", "deploy/helm/muslin", "--kube-version", "1.34", "--namespace", "kube-system"}, args...)...)
}
