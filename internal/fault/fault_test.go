package fault

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestEveryPointThatTheSourceDeclaresIsListedAndPassed holds Points, by which suites go, against the source: a place that is declared and not named there, or named
// and passed by nothing, would be visited by no test.
func TestEveryPointThatTheSourceDeclaresIsListedAndPassed(t *testing.T) {
	declared, passed := declaredPoints(t), passedPoints(t)
	if len(declared) < 2 || declared[Nowhere] != "Nowhere" {
		t.Fatalf("the source declares %v", declared)
	}
	listed := Points()
	if len(listed) != len(declared)-1 { // all but Nowhere
		t.Errorf("the source declares %d points, and Points lists %d", len(declared)-1, len(listed))
	}
	seen := map[string]bool{"": true}
	for _, p := range listed {
		if name := Name(p); seen[name] {
			t.Errorf("%s has the name %q, which is none, or another's", declared[p], name)
		} else {
			seen[name] = true
		}
		if !passed[declared[p]] {
			t.Errorf("nothing passes %s", declared[p])
		}
	}
}

// declaredPoints are the constants of the one block that begins with iota, by their value.
func declaredPoints(t *testing.T) (out []string) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "fault.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range file.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.CONST || !g.Lparen.IsValid() {
			continue
		}
		for _, s := range g.Specs {
			for _, n := range s.(*ast.ValueSpec).Names {
				out = append(out, n.Name)
			}
		}
	}
	return out
}

// passedPoints are the points that the programs' source names.
func passedPoints(t *testing.T) map[string]bool {
	t.Helper()
	out, use := map[string]bool{}, regexp.MustCompile(`\bfault\.((?:Plugin|Module|Handler|Agent|Apply)\w+)`)
	for _, root := range []string{"..", "../../pkg", "../../cmd"} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			for _, m := range use.FindAllSubmatch(text, -1) {
				out[string(m[1])] = true
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return out
}
