package ctl_test

import (
	"strings"
	"testing"

	"github.com/muslin-cni/muslin/pkg/api"
)

// TestEveryVerbExplainsItself follows the help from the root to every verb, in both of its forms.
func TestEveryVerbExplainsItself(t *testing.T) {
	verbs := 0
	var visit func(path []string)
	visit = func(path []string) {
		asked := muslinctl(t, nil, "", append([]string{"help"}, path...)...)
		given := muslinctl(t, nil, "", append(path[:len(path):len(path)], "--help")...)
		if asked != given || asked.code != 0 || asked.stderr != "" {
			t.Errorf("help of %q: %+v and %+v", path, asked, given)
		}
		_, list, group := strings.Cut(asked.stdout, "Available Commands:\n")
		if !group {
			if verbs++; !strings.Contains(asked.stdout, "Examples:") {
				t.Errorf("%q has no example:\n%s", path, asked.stdout)
			}
			return
		}
		list, _, _ = strings.Cut(list, "\n\n")
		for line := range strings.Lines(list) {
			name := strings.Fields(line)[0]
			if name == "completion" || name == "help" {
				continue
			}
			visit(append(path[:len(path):len(path)], name))
		}
	}
	visit([]string{})
	if verbs < 20 {
		t.Errorf("%d verbs were found", verbs)
	}
	help := muslinctl(t, nil, "", "get", "--help").stdout
	for _, k := range api.Kinds() {
		if !k.Hidden && !strings.Contains(help, "  "+k.Name+" ") {
			t.Errorf("get --help does not name %s", k.Name)
		}
	}
}
