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
	Object  api.Object
	Unknown *api.UnknownFieldsError // fields beside it that its kind does not have; nil: none. Whether that is wrong is for the reader to say

	doc  *document
	path string // in the document
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

// Strict is an error for every resource that has fields which its kind does not have.
func Strict(found []Resource) error {
	var errs []error
	for _, r := range found {
		if r.Unknown != nil {
			errs = append(errs, r.Locate(r.Unknown))
		}
	}
	return errors.Join(errs...)
}

// Read reads all resources of a source, those of a folder by the names of its .json, .yaml and .yml files. The error is an *EmptyError if there
// are none, else it names file, document, line and field of everything that is wrong.
func Read(src Source) ([]Resource, error) {
	if src.Path == "-" {
		data, err := readAll(src.Stdin)
		if err != nil {
			return nil, fmt.Errorf("read standard input: %w", err)
		}
		return nonEmpty(&EmptyError{Path: "-"})(Decode("standard input", data))
	}
	if strings.HasPrefix(src.Path, "http://") || strings.HasPrefix(src.Path, "https://") {
		return nil, fmt.Errorf("open %s: it is a URL: fetch it with another program, and give that one's output to -f -", src.Path)
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
	f, err := os.Open(path)
	if err != nil {
		return nil, plain(err)
	}
	data, err := readAll(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return Decode(path, data)
}

// What is larger is no manifest, and would take minutes and gigabytes to find that out. 50,000 resources in one list are 6 MB.
const (
	mostFile     = 64 << 20
	mostDocument = 16 << 20
)

// readAll reads to the end, which a device or a pipe may not have.
func readAll(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, mostFile+1))
	if err == nil && len(data) > mostFile {
		return nil, fmt.Errorf("it has more than %d MiB: split it", mostFile>>20)
	}
	return data, err
}

// plain makes "open x: …" of "stat x: …": how it was looked at is of no interest.
func plain(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return &fs.PathError{Op: "open", Path: e.Path, Err: e.Err}
	}
	return err
}

// list finds the files of a folder, which a link may lead to. Links in it are followed to files, as a mounted ConfigMap has them, and
// not to folders, where they might go round in circles.
func list(root string, recursive bool) (out []string, err error) {
	top := root + string(filepath.Separator) // follows the link
	err = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != top && !recursive:
			return filepath.SkipDir
		case !d.IsDir() && slices.Contains([]string{".json", ".yaml", ".yml"}, filepath.Ext(path)) && holdsText(path):
			out = append(out, filepath.Clean(path))
		}
		return nil
	})
	return out, plain(err)
}

// holdsText reports whether it is a file or a link to one: reading a pipe or a socket, which nobody named, would wait for ever. A link that
// leads nowhere counts, so that opening it says so.
func holdsText(path string) bool {
	info, err := os.Stat(path)
	return err != nil || info.Mode().IsRegular()
}

// Decode reads the resources of one file's content. The error names everything that is wrong; what is right comes beside it.
func Decode(file string, data []byte) ([]Resource, error) {
	if bytes.HasPrefix(data, []byte{0xff, 0xfe}) || bytes.HasPrefix(data, []byte{0xfe, 0xff}) {
		return nil, fmt.Errorf("%s: it is UTF-16: save it as UTF-8", file)
	}
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
	text, err := d.asJSON()
	if err != nil {
		return nil, err
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
		if unknown, ok := errors.AsType[*api.UnknownFieldsError](item.Err); ok {
			r.Unknown, item.Err = unknown, nil
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
	at := &document{file: file, number: 1, line: 1}
	end := func() {
		if at.matters() {
			out = append(out, at.values(len(out)+1)...)
		}
	}
	line := 0
	for text := range bytes.Lines(data) {
		line++
		switch {
		case isMark(text, "---"):
			end()
			at = &document{file: file, number: len(out) + 1, line: line}
			text = append([]byte("   "), text[3:]...) // what stands behind the dashes belongs to the document
			if len(bytes.TrimSpace(text)) == 0 {
				text = []byte("\n")
			}
		case isMark(text, "..."):
			end()
			at = &document{file: file, number: len(out) + 1, line: line}
			text = []byte("\n")
		}
		at.text = append(at.text, text...)
	}
	end()
	for _, d := range out {
		d.many = len(out) > 1
	}
	return out
}

// isMark reports whether a line begins or ends a document (YAML 1.2, sections 9.1.2 and 9.1.3). No text in a document can look so.
func isMark(line []byte, mark string) bool {
	rest, ok := bytes.CutPrefix(line, []byte(mark))
	return ok && (len(rest) == 0 || bytes.ContainsAny(rest[:1], " \t\r\n"))
}
