package arch

import (
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const root = "../.." // of the module, from this folder

var update = flag.Bool("update", false, "rewrite the package table in ARCHITECTURE.md")

func load(t *testing.T) []Package {
	t.Helper()
	pkgs, err := Load(root)
	if err != nil {
		t.Fatal(err)
	}
	if len(pkgs) == 0 {
		t.Fatal("the module has no packages")
	}
	return pkgs
}

func report(t *testing.T, wrong []string) {
	t.Helper()
	for _, line := range wrong {
		t.Error(line)
	}
}

func TestSourceTreeKeepsItsRules(t *testing.T) {
	pkgs := load(t)
	document := read(t, "ARCHITECTURE.md")
	paths, err := CheckPaths(os.DirFS(root))
	if err != nil {
		t.Fatal(err)
	}
	rules := []struct {
		name  string
		wrong []string
	}{
		{"imports go down the layers", CheckLayers(Layers, pkgs)},
		{"pure packages only compute", CheckPurity(pkgs)},
		{"each package has one comment", CheckComments(pkgs)},
		{"names say what is inside", CheckNames(pkgs)},
		{"nothing runs before main", CheckInits(pkgs, Early)},
		{"dependencies have reasons", CheckReasons(string(document), pkgs)},
		{"no file names a machine's path", paths},
	}
	for _, rule := range rules {
		t.Run(rule.name, func(t *testing.T) { report(t, rule.wrong) })
	}
}

// TestTestsThatTheDocumentNamesExist keeps what ARCHITECTURE.md says of tests from outliving them.
func TestTestsThatTheDocumentNamesExist(t *testing.T) {
	there := map[string]bool{}
	declared := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	err := fs.WalkDir(os.DirFS(root), ".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		for _, m := range declared.FindAllStringSubmatch(string(read(t, path)), -1) {
			there[m[1]] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`(Test\\w+)`").FindAllStringSubmatch(string(read(t, "ARCHITECTURE.md")), -1)
	if len(named) < 20 {
		t.Fatalf("the document names %d tests", len(named))
	}
	for _, m := range named {
		if !there[m[1]] {
			t.Errorf("ARCHITECTURE.md names %s, which is nowhere", m[1])
		}
	}
}

func TestProgramsLinkNothingHeavy(t *testing.T) {
	pkgs := load(t)
	for _, rule := range LinkRules {
		t.Run(rule.Program, func(t *testing.T) {
			if !slices.ContainsFunc(pkgs, func(p Package) bool { return p.Path == rule.Program }) {
				t.Skipf("%s does not exist", rule.Program)
			}
			linked, err := Links(root, rule.Program)
			if err != nil {
				t.Fatal(err)
			}
			report(t, CheckLinks(rule, linked))
		})
	}
}

func TestGoldenPackageTable(t *testing.T) {
	got := read(t, "ARCHITECTURE.md")
	want, err := ReplaceTable(got, PackageTable(Layers, load(t)))
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(filepath.Join(root, "ARCHITECTURE.md"), want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("the package table is not the generated one; run `make golden` (-want +got):\n%s", diff)
	}
}

func TestLayerTableIsOrderedAndComplete(t *testing.T) {
	seen := make(map[string]bool)
	for i, row := range Layers {
		if seen[row.Path] {
			t.Errorf("%s has two rows", row.Path)
		}
		seen[row.Path] = true
		if row.Sentence == "" || strings.HasSuffix(row.Sentence, ".") {
			t.Errorf("%s: sentence %q is empty or has a full stop", row.Path, row.Sentence)
		}
		if i > 0 && row.Level > Layers[i-1].Level {
			t.Errorf("%s (%v) stands below %s (%v)", row.Path, row.Level, Layers[i-1].Path, Layers[i-1].Level)
		}
		for _, beside := range row.Beside {
			if other, ok := find(Layers, beside); !ok || other.Level != row.Level {
				t.Errorf("%s stands beside %s, which is not of its level", row.Path, beside)
			}
		}
	}
	for _, path := range Pure {
		if _, ok := find(Layers, path); !ok {
			t.Errorf("%s is pure and has no row", path)
		}
	}
}

// The Makefile cannot read Go, so its list of race-tested packages is a copy.
func TestMakefileRacesThePurePackages(t *testing.T) {
	for line := range strings.Lines(string(read(t, "Makefile"))) {
		if list, ok := strings.CutPrefix(line, "PURE :="); ok {
			if diff := cmp.Diff(Pure, strings.Fields(list)); diff != "" {
				t.Errorf("PURE in Makefile (-want +got):\n%s", diff)
			}
			return
		}
	}
	t.Error("Makefile has no PURE")
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return text
}
