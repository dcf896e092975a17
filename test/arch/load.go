package arch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Package is what the rules need to know of one package.
type Package struct {
	Path        string // below Module
	Name        string
	Imports     []string // of production code
	TestImports []string // of test files, in the package and beside it
	Files       []File
}

// File is what the rules need to know of one Go file.
type File struct {
	Name string // without folder
	Test bool
	Doc  string // the text above the package clause, "" if none
	Init bool   // declares func init
}

// listed is the part of `go list -json` that is read here.
type listed struct {
	ImportPath, Name, Dir                        string
	GoFiles, CgoFiles, TestGoFiles, XTestGoFiles []string
	Imports, TestImports, XTestImports           []string
}

// Load reads every package of the module at root. It runs the go command found in PATH.
func Load(root string) ([]Package, error) {
	out, err := goCommand(root, "list", "-buildvcs=false", "-json", "./...")
	if err != nil {
		return nil, err
	}
	var pkgs []Package
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var l listed
		err := dec.Decode(&l)
		if errors.Is(err, io.EOF) {
			return pkgs, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read go list: %w", err)
		}
		pkg, err := l.parse()
		if err != nil {
			return nil, err
		}
		pkgs = append(pkgs, pkg)
	}
}

// Links returns the import paths of everything linked into the program at path, which is below Module.
func Links(root, path string) ([]string, error) {
	out, err := goCommand(root, "list", "-buildvcs=false", "-deps", "./"+path)
	if err != nil {
		return nil, err
	}
	return strings.Fields(string(out)), nil
}

func goCommand(root string, args ...string) ([]byte, error) {
	cmd := exec.Command("go", args...)
	cmd.Dir = root
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("run go %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return out, nil
}

func (l listed) parse() (Package, error) {
	pkg := Package{
		Path:        strings.TrimPrefix(l.ImportPath, Module+"/"),
		Name:        l.Name,
		Imports:     l.Imports,
		TestImports: slices.Concat(l.TestImports, l.XTestImports),
	}
	for _, name := range slices.Concat(l.GoFiles, l.CgoFiles, l.TestGoFiles, l.XTestGoFiles) {
		file, err := parseFile(filepath.Join(l.Dir, name))
		if err != nil {
			return Package{}, err
		}
		pkg.Files = append(pkg.Files, file)
	}
	return pkg, nil
}

func parseFile(path string) (File, error) {
	tree, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return File{}, fmt.Errorf("parse file: %w", err)
	}
	name := filepath.Base(path)
	file := File{Name: name, Test: strings.HasSuffix(name, "_test.go"), Doc: tree.Doc.Text()}
	for _, decl := range tree.Decls {
		if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
			file.Init = true
		}
	}
	return file, nil
}
