package arch

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode"
)

// badNames say nothing about what they hold, so everything ends up there.
var badNames = []string{"base", "common", "helper", "helpers", "manager", "misc", "types", "util", "utils"}

// badFiles are the same for files; types.go beside the code that uses the types is no such place.
var badFiles = []string{"common", "helper", "helpers", "misc", "util", "utils"}

// CheckLayers returns a line for each package without a row in table and for each import that table does not allow.
func CheckLayers(table []Row, pkgs []Package) []string {
	var wrong []string
	for _, pkg := range pkgs {
		row, ok := find(table, pkg.Path)
		if !ok {
			wrong = append(wrong, fmt.Sprintf("%s: no row in the layer table (test/arch/layers.go)", pkg.Path))
			continue
		}
		for _, imported := range ours(pkg.Imports) {
			if to, ok := find(table, imported); ok && !mayImport(row, to) {
				wrong = append(wrong, fmt.Sprintf("%s (%v) imports %s (%v)", row.Path, row.Level, to.Path, to.Level))
			}
		}
		for _, imported := range ours(pkg.TestImports) {
			if to, ok := find(table, imported); ok && !testMayImport(row, to) {
				wrong = append(wrong, fmt.Sprintf("a test of %s (%v) imports %s (%v)", row.Path, row.Level, to.Path, to.Level))
			}
		}
	}
	return wrong
}

func mayImport(from, to Row) bool {
	if from.Level == Test {
		return true
	}
	if to.Level == Test {
		return false
	}
	return to.Level < from.Level || slices.Contains(from.Beside, to.Path)
}

// testMayImport is wider than mayImport: a test may use its own level, and what exists for tests.
func testMayImport(from, to Row) bool {
	return from.Level == Test || to.Level <= from.Level
}

// ours returns the import paths that lie in this module, without the module's own part.
func ours(imports []string) []string {
	var paths []string
	for _, imported := range imports {
		if below, ok := strings.CutPrefix(imported, Module+"/"); ok {
			paths = append(paths, below)
		}
	}
	return paths
}

// String is the level as the table prints it.
func (l Level) String() string {
	if l == Test {
		return "t"
	}
	return fmt.Sprintf("%d", int(l))
}

// CheckPurity returns a line for each import by which a pure package could do more than compute. Tests may do more.
func CheckPurity(pkgs []Package) []string {
	var wrong []string
	for _, pkg := range pkgs {
		if !slices.Contains(Pure, pkg.Path) {
			continue
		}
		for _, imported := range pkg.Imports {
			if within(imported, Impure) && !slices.Contains(Harmless, imported) {
				wrong = append(wrong, fmt.Sprintf("%s is pure and imports %s", pkg.Path, imported))
			}
		}
	}
	return wrong
}

// CheckComments returns a line for each package that has not exactly one package comment, in a production file if
// it has any, that opens with the package's name.
func CheckComments(pkgs []Package) []string {
	var wrong []string
	for _, pkg := range pkgs {
		var docs []string
		for _, file := range pkg.Files {
			if file.Doc == "" {
				continue
			}
			docs = append(docs, file.Doc)
			if file.Test && !testsOnly(pkg) {
				wrong = append(wrong, fmt.Sprintf("%s: package comment in test file %s", pkg.Path, file.Name))
			}
		}
		if len(docs) != 1 {
			wrong = append(wrong, fmt.Sprintf("%s: %d package comments, want 1", pkg.Path, len(docs)))
			continue
		}
		if want := openings(pkg); !startsWithAny(docs[0], want) {
			wrong = append(wrong, fmt.Sprintf("%s: package comment does not start with %q", pkg.Path, want[0]))
		}
	}
	return wrong
}

func testsOnly(pkg Package) bool {
	return !slices.ContainsFunc(pkg.Files, func(f File) bool { return !f.Test })
}

// openings returns how a package's comment may start.
func openings(pkg Package) []string {
	if pkg.Name != "main" {
		return []string{"Package " + pkg.Name + " "}
	}
	command := path.Base(pkg.Path)
	runes := []rune(command)
	runes[0] = unicode.ToUpper(runes[0])
	return []string{"Command " + command + " ", string(runes) + " "}
}

func startsWithAny(s string, prefixes []string) bool {
	return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(s, p) })
}

// CheckNames returns a line for each package or file whose name says nothing.
func CheckNames(pkgs []Package) []string {
	var wrong []string
	for _, pkg := range pkgs {
		if slices.Contains(badNames, pkg.Name) || slices.Contains(badNames, path.Base(pkg.Path)) {
			wrong = append(wrong, fmt.Sprintf("%s: the package's name says nothing", pkg.Path))
		}
		for _, file := range pkg.Files {
			stem := strings.TrimSuffix(strings.TrimSuffix(file.Name, ".go"), "_test")
			if slices.Contains(badFiles, stem) {
				wrong = append(wrong, fmt.Sprintf("%s/%s: the file's name says nothing", pkg.Path, file.Name))
			}
		}
	}
	return wrong
}

// CheckInits returns a line for each file that declares func init, but for those of the packages in early.
func CheckInits(pkgs []Package, early []string) []string {
	var wrong []string
	for _, pkg := range pkgs {
		for _, file := range pkg.Files {
			if file.Init && !slices.Contains(early, pkg.Path) {
				wrong = append(wrong, fmt.Sprintf("%s/%s: declares init; let main or New do it", pkg.Path, file.Name))
			}
		}
	}
	return wrong
}

// CheckLinks returns a line for each package in linked that rule forbids.
func CheckLinks(rule LinkRule, linked []string) []string {
	var wrong []string
	for _, path := range linked {
		if within(path, rule.Without) {
			wrong = append(wrong, fmt.Sprintf("%s links %s; %s", rule.Program, path, rule.Why))
		}
	}
	return wrong
}

// CheckReasons returns a line for each package from outside the module and the standard library whose module
// the text does not name in backquotes.
func CheckReasons(text string, pkgs []Package) []string {
	var wrong []string
	for _, pkg := range pkgs {
		for _, imported := range slices.Concat(pkg.Imports, pkg.TestImports) {
			if foreign(imported) && !named(text, imported) {
				wrong = append(wrong, fmt.Sprintf("%s imports %s: its module and reason are not in ARCHITECTURE.md", pkg.Path, imported))
			}
		}
	}
	slices.Sort(wrong)
	return slices.Compact(wrong)
}

// foreign reports whether an import path has a host name first, as those of the standard library do not.
func foreign(imported string) bool {
	host, _, _ := strings.Cut(imported, "/")
	return strings.Contains(host, ".") && !strings.HasPrefix(imported+"/", Module+"/")
}

// named reports whether text has the import path or one above it in backquotes.
func named(text, imported string) bool {
	for p := imported; p != "."; p = path.Dir(p) {
		if strings.Contains(text, "`"+p+"`") {
			return true
		}
	}
	return false
}
