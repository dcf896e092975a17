package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/muslin-cni/muslin/internal/nettest"
)

const moduleRoot = "../.."

// forVM are the tests of one package that run in the virtual machine.
type forVM struct {
	dir   string // below moduleRoot
	tests []string
	wrong []string // those that do not say so as they should
}

// findForVM reads the names of all tests that run in the virtual machine from the source tree.
func findForVM(t *testing.T) []forVM {
	t.Helper()
	found := make(map[string]*forVM)
	var order []forVM
	for _, top := range []string{"cmd", "internal", "pkg", "test"} {
		err := filepath.WalkDir(filepath.Join(moduleRoot, top), func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, "_test.go") {
				return err
			}
			dir, err := filepath.Rel(moduleRoot, filepath.Dir(path))
			if err != nil {
				return err
			}
			if found[dir] == nil {
				found[dir] = &forVM{dir: dir}
			}
			return found[dir].read(path)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range slices.Sorted(maps.Keys(found)) {
		if len(found[dir].tests) > 0 {
			order = append(order, *found[dir])
		}
	}
	return order
}

// read adds what a test file declares.
func (p *forVM) read(path string) error {
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	if err != nil {
		return fmt.Errorf("parse test: %w", err)
	}
	for _, decl := range file.Decls {
		f, ok := decl.(*ast.FuncDecl)
		if !ok || f.Recv != nil || !strings.HasPrefix(f.Name.Name, "TestVM") {
			continue
		}
		p.tests = append(p.tests, f.Name.Name)
		if !needsVM(f.Body) {
			p.wrong = append(p.wrong, f.Name.Name)
		}
	}
	return nil
}

// needsVM reports whether a function begins with a call of Need that names what only the virtual machine has.
func needsVM(body *ast.BlockStmt) bool {
	if len(body.List) == 0 {
		return false
	}
	statement, ok := body.List[0].(*ast.ExprStmt)
	if !ok {
		return false
	}
	call, ok := statement.X.(*ast.CallExpr)
	if !ok {
		return false
	}
	switch f := call.Fun.(type) {
	case *ast.SelectorExpr:
		ok = f.Sel.Name == "Need"
	case *ast.Ident: // in nettest itself
		ok = f.Name == "Need"
	}
	for _, arg := range call.Args {
		literal, isLiteral := arg.(*ast.BasicLit)
		if !ok || !isLiteral {
			continue
		}
		if name, err := strconv.Unquote(literal.Value); err == nil && nettest.OnlyInVM(name) {
			return true
		}
	}
	return false
}

// The converse, that a test which needs the machine has the name, is checked by Need wherever that test runs.
func TestThoseForTheVMNeedIt(t *testing.T) {
	for _, p := range findForVM(t) {
		for _, name := range p.wrong {
			t.Errorf("%s: %s does not begin with nettest.Need(t, …) and a name of what only the virtual machine has: either it does, or it is not called TestVM…", p.dir, name)
		}
	}
}
