package arch

import (
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

var table = []Row{
	{Level: 2, Path: "internal/top", Sentence: "tops"},
	{Level: 1, Path: "internal/left", Sentence: "lefts", Beside: []string{"internal/right"}},
	{Level: 1, Path: "internal/right", Sentence: "rights"},
	{Level: 0, Path: "internal/floor", Sentence: "floors"},
	{Level: Test, Path: "internal/try", Sentence: "tries"},
}

func paths(below ...string) []string {
	full := []string{"fmt", "github.com/google/go-cmp/cmp"}
	for _, p := range below {
		full = append(full, Module+"/"+p)
	}
	return full
}

func TestCheckLayers(t *testing.T) {
	for _, tc := range []struct {
		name string
		pkg  Package
		want []string
	}{
		{"down is allowed", Package{Path: "internal/top", Imports: paths("internal/right", "internal/floor")}, nil},
		{"up is not", Package{Path: "internal/floor", Imports: paths("internal/left")},
			[]string{"internal/floor (0) imports internal/left (1)"}},
		{"sideways is not", Package{Path: "internal/right", Imports: paths("internal/left")},
			[]string{"internal/right (1) imports internal/left (1)"}},
		{"sideways is allowed where the table says so", Package{Path: "internal/left", Imports: paths("internal/right")}, nil},
		{"production stays off the test level", Package{Path: "internal/top", Imports: paths("internal/try")},
			[]string{"internal/top (2) imports internal/try (t)"}},
		{"the test level imports anything", Package{Path: "internal/try", Imports: paths("internal/top"), TestImports: paths("internal/top")}, nil},
		{"tests import their level and the test level", Package{Path: "internal/right", TestImports: paths("internal/left", "internal/try")}, nil},
		{"tests do not import higher", Package{Path: "internal/floor", TestImports: paths("internal/top")},
			[]string{"a test of internal/floor (0) imports internal/top (2)"}},
		{"every package has a row", Package{Path: "internal/new"},
			[]string{"internal/new: no row in the layer table (test/arch/layers.go)"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, CheckLayers(table, []Package{tc.pkg})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestCheckPurityForbidsDoorsToTheWorld(t *testing.T) {
	pkgs := []Package{
		{Path: "pkg/api", Imports: []string{"net/netip", "os/exec", "context", "sync/atomic", "log/slog", "osmosis", "net"}, TestImports: []string{"os"}},
		{Path: "pkg/store", Imports: []string{"context", "os"}},
	}
	want := []string{
		"pkg/api is pure and imports os/exec",
		"pkg/api is pure and imports context",
		"pkg/api is pure and imports sync/atomic",
		"pkg/api is pure and imports log/slog",
		"pkg/api is pure and imports net",
	}
	if diff := cmp.Diff(want, CheckPurity(pkgs)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestCheckComments(t *testing.T) {
	for _, tc := range []struct {
		name string
		pkg  Package
		want []string
	}{
		{"one that names the package", Package{Path: "pkg/x", Name: "x", Files: []File{{Name: "a.go", Doc: "Package x does."}, {Name: "b.go"}}}, nil},
		{"none", Package{Path: "pkg/x", Name: "x", Files: []File{{Name: "a.go"}}}, []string{"pkg/x: 0 package comments, want 1"}},
		{"two", Package{Path: "pkg/x", Name: "x", Files: []File{{Name: "a.go", Doc: "Package x does."}, {Name: "b.go", Doc: "Licence."}}},
			[]string{"pkg/x: 2 package comments, want 1"}},
		{"another package's", Package{Path: "pkg/x", Name: "x", Files: []File{{Name: "a.go", Doc: "Package xy does."}}},
			[]string{`pkg/x: package comment does not start with "Package x "`}},
		{"in a test file", Package{Path: "pkg/x", Name: "x", Files: []File{{Name: "a.go"}, {Name: "a_test.go", Test: true, Doc: "Package x does."}}},
			[]string{"pkg/x: package comment in test file a_test.go"}},
		{"in a test file where there are no others", Package{Path: "test/x", Name: "x", Files: []File{{Name: "a_test.go", Test: true, Doc: "Package x does."}}}, nil},
		{"a command's", Package{Path: "cmd/muslin-ipam", Name: "main", Files: []File{{Name: "main.go", Doc: "Command muslin-ipam does."}}}, nil},
		{"a command's own name", Package{Path: "cmd/muslin-ipam", Name: "main", Files: []File{{Name: "main.go", Doc: "Muslin-ipam does."}}}, nil},
		{"a command without its name", Package{Path: "cmd/muslin-ipam", Name: "main", Files: []File{{Name: "main.go", Doc: "Package main does."}}},
			[]string{`cmd/muslin-ipam: package comment does not start with "Command muslin-ipam "`}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, CheckComments([]Package{tc.pkg})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestCheckNamesAndInits(t *testing.T) {
	pkgs := []Package{
		{Path: "internal/utils", Name: "x"},
		{Path: "pkg/x", Name: "x", Files: []File{{Name: "helpers_test.go", Test: true}, {Name: "types.go", Init: true}}},
		{Path: "pkg/first", Name: "first", Files: []File{{Name: "first.go", Init: true}}},
	}
	want := []string{
		"internal/utils: the package's name says nothing",
		"pkg/x/helpers_test.go: the file's name says nothing",
		"pkg/x/types.go: declares init; let main or New do it",
	}
	if diff := cmp.Diff(want, append(CheckNames(pkgs), CheckInits(pkgs, []string{"pkg/first"})...)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestCheckLinksCoversWhatLiesBelow(t *testing.T) {
	rule := LinkRule{Program: "cmd/x", Without: []string{"net/http", "google.golang.org/grpc"}, Why: "small"}
	got := CheckLinks(rule, []string{"net", "net/httpx", "net/http/internal", "google.golang.org/grpc"})
	want := []string{"cmd/x links net/http/internal; small", "cmd/x links google.golang.org/grpc; small"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestCheckReasonsWantsTheModuleNamed(t *testing.T) {
	pkgs := []Package{{Path: "pkg/x", Imports: []string{"fmt", Module + "/pkg/y", "example.com/a/b/c", "example.com/d"}, TestImports: []string{"example.com/d"}}}
	want := []string{"pkg/x imports example.com/d: its module and reason are not in ARCHITECTURE.md"}
	if diff := cmp.Diff(want, CheckReasons("uses `example.com/a/b` for x", pkgs)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestCheckPathsFindsMachinePaths(t *testing.T) {
	machine := "/wor" + "k/x"
	tree := fstest.MapFS{
		"a/notes.md":  {Data: []byte("fine: /home/runner" + machine + "\nsee " + machine + ".\n")},
		"a/plain.go":  {Data: []byte("// net" + machine + " is a word before a slash\n")},
		"a/go.sum":    {Data: []byte(machine)},
		"a/image":     {Data: []byte("\x00" + machine)},
		".git/config": {Data: []byte(machine)},
		"bin/program": {Data: []byte(machine)},
	}
	got, err := CheckPaths(tree)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a/notes.md:2: names " + machine + "."}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestPackageTableHoldsExistingPackagesOnly(t *testing.T) {
	got := PackageTable(table, []Package{{Path: "internal/try"}, {Path: "internal/top"}})
	want := "| level | package | what it does |\n|---|---|---|\n| 2 | `internal/top` | tops |\n| t | `internal/try` | tries |\n"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestReplaceTableWantsOnePairOfMarks(t *testing.T) {
	got, err := ReplaceTable([]byte("a\n"+beginMark+"old\n"+endMark+"z\n"), "new\n")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("a\n"+beginMark+"new\n"+endMark+"z\n", string(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, doc := range []string{"", beginMark, endMark + beginMark, beginMark + endMark + beginMark + endMark} {
		if got, err := ReplaceTable([]byte(doc), ""); err == nil {
			t.Errorf("ReplaceTable(%q) = %q, want an error", doc, got)
		}
	}
}
