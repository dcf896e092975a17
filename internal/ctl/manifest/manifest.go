// Package manifest reads resources from files, folders and standard input, and says where in them a field stands.
//
// A file holds YAML documents or JSON values; each is an object, a List or an array of these. Reading is strict: everything that is wrong
// in any of the files is found before anything is done with the rest.
package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/muslin-cni/muslin/internal/ctl/legacy"
	"github.com/muslin-cni/muslin/pkg/api"
)

// Source says what to read.
type Source struct {
	Path      string // a file, a folder, or "-": Stdin
	Recursive bool   // also the folders in a folder
	Stdin     io.Reader
}

// Resource is an object and where it was read.
type Resource struct {
	Object api.Object
	doc    *document
	path   string // in the document
}

// EmptyError says that there was nothing to read.
type EmptyError struct {
	Path   string
	Folder bool
}

func (e *EmptyError) Error() string {
	if e.Folder {
		return "no resources specified in directory " + e.Path
	}
	return "no resources specified in file " + e.Path
}

// Read reads all resources of a source, those of a folder by the names of its .json, .yaml and .yml files. The error is an *EmptyError if there
// are none, else it names file, document, line and field of everything that is wrong.
func Read(src Source) ([]Resource, error) {
	if src.Path == "-" {
		data, err := io.ReadAll(src.Stdin)
		if err != nil {
			return nil, fmt.Errorf("read standard input: %w", err)
		}
		return nonEmpty(&EmptyError{Path: "-"})(Decode("standard input", data))
	}
	info, err := os.Stat(src.Path)
	if err != nil {
		return nil, plain(err)
	}
	if !info.IsDir() {
		return nonEmpty(&EmptyError{Path: src.Path})(readFile(src.Path))
	}
	files, err := list(src.Path, src.Recursive)
	if err != nil {
		return nil, err
	}
	var out []Resource
	var errs []error
	for _, f := range files {
		found, err := readFile(f)
		out, errs = append(out, found...), append(errs, err)
	}
	return nonEmpty(&EmptyError{Path: src.Path, Folder: true})(out, errors.Join(errs...))
}

func nonEmpty(empty *EmptyError) func([]Resource, error) ([]Resource, error) {
	return func(out []Resource, err error) ([]Resource, error) {
		if err == nil && len(out) == 0 {
			return nil, empty
		}
		return out, err
	}
}

func readFile(path string) ([]Resource, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, plain(err)
	}
	return Decode(path, data)
}

// plain makes "open x: …" of "stat x: …": how it was looked at is of no interest.
func plain(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return &fs.PathError{Op: "open", Path: e.Path, Err: e.Err}
	}
	return err
}

func list(root string, recursive bool) (out []string, err error) {
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != root && !recursive:
			return filepath.SkipDir
		case !d.IsDir() && slices.Contains([]string{".json", ".yaml", ".yml"}, filepath.Ext(path)):
			out = append(out, path)
		}
		return nil
	})
	return out, plain(err)
}

// Decode reads the resources of one file's content. The error names everything that is wrong; what is right comes beside it.
func Decode(file string, data []byte) ([]Resource, error) {
	docs := split(file, data)
	var out []Resource
	var errs []error
	for _, d := range docs {
		found, err := d.decode()
		out, errs = append(out, found...), append(errs, err)
	}
	return out, errors.Join(errs...)
}

func (d *document) decode() ([]Resource, error) {
	text := d.text
	if !json.Valid(text) { // tabs are space to JSON only
		var err error
		if text, err = yaml.YAMLToJSONStrict(text); err != nil {
			return nil, d.badYAML(err)
		}
	}
	var probe map[string]any
	if json.Unmarshal(text, &probe) == nil {
		if err := legacy.Check(probe); err != nil {
			return nil, fmt.Errorf("%s: %w", d.where(""), err)
		}
	}
	var out []Resource
	var errs []error
	for _, item := range api.Read(text) {
		r := Resource{Object: item.Object, doc: d, path: item.Path}
		if item.Err == nil && item.Object.KindOf().Hidden {
			item.Err = &api.UnknownKindError{Kind: item.Object.KindOf().Name, APIVersion: api.Version}
		}
		if item.Err != nil {
			errs = append(errs, r.Locate(item.Err))
			continue
		}
		out = append(out, r)
	}
	return out, errors.Join(errs...)
}

// Locate puts file, document and line before what is wrong with the resource: of each bad field its own.
func (r Resource) Locate(err error) error {
	if r.doc == nil {
		return err
	}
	invalid, ok := errors.AsType[*api.InvalidError](err)
	if !ok {
		return fmt.Errorf("%s: %w", r.doc.where(r.path), err)
	}
	return &Located{err: invalid, r: r}
}

// Located is an *api.InvalidError with the place of each field.
type Located struct {
	err *api.InvalidError
	r   Resource
}

// Unwrap is the error without places.
func (e *Located) Unwrap() error { return e.err }

// Error is a line for each field.
func (e *Located) Error() string {
	lines := make([]string, len(e.err.Fields))
	for i, f := range e.err.Fields {
		path := f.Path
		if e.r.path != "" {
			path = e.r.path + "." + path
		}
		lines[i] = fmt.Sprintf("%s: error with field %s", e.r.doc.where(path), f.Error())
	}
	return strings.Join(lines, "\n")
}

// split cuts a file into its documents. Empty ones, and those of comments only, are left out but counted.
func split(file string, data []byte) (out []*document) {
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	if json.Valid(data) {
		return []*document{{file: file, text: data, number: 1, line: 1}}
	}
	at := &document{file: file, number: 1, line: 1}
	number := 1
	for i, line := range bytes.SplitAfter(data, []byte("\n")) {
		if isSeparator(line) {
			if at.matters() {
				out = append(out, at)
				number++
			}
			at = &document{file: file, number: number, line: i + 1}
			line = append([]byte("   "), line[3:]...) // what stands behind the dashes belongs to the document
			if len(bytes.TrimSpace(line)) == 0 {
				line = []byte("\n")
			}
		}
		at.text = append(at.text, line...)
	}
	if at.matters() {
		out = append(out, at)
	}
	for _, d := range out {
		d.many = len(out) > 1
	}
	return out
}

// isSeparator reports whether a line begins a document (YAML 1.2, section 9.1.2).
func isSeparator(line []byte) bool {
	rest, ok := bytes.CutPrefix(line, []byte("---"))
	return ok && (len(rest) == 0 || bytes.ContainsAny(rest[:1], " \t\r\n"))
}
