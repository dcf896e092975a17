package main

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

// file is one entry of an image. With neither content nor target it is a folder.
type file struct {
	from string // file that has its content
	text []byte // its content, where there is no such file
	link string // target, of a symbolic link
	path string // in the image, without a slash in front
	mode fs.FileMode
}

// layer writes files as a tar file: sorted, each once and with its folders, owned by root, and as old as everything else in it. Of two files of one
// path the first counts, as in a union of packages.
func layer(files []file) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range whole(files) {
		if err := f.write(w); err != nil {
			return nil, fmt.Errorf("add /%s: %w", f.path, err)
		}
	}
	err := w.Close()
	return buf.Bytes(), err
}

// whole adds the folders, sorts, and drops what is there twice.
func whole(files []file) []file {
	var out []file
	seen := map[string]bool{}
	add := func(f file) {
		if f.path != "." && !seen[f.path] {
			seen[f.path] = true
			out = append(out, f)
		}
	}
	for _, f := range files {
		f.path = strings.Trim(path.Clean(f.path), "/")
		add(f)
	}
	for _, f := range slices.Clone(out) {
		for dir := path.Dir(f.path); dir != "."; dir = path.Dir(dir) {
			add(file{path: dir, mode: 0o755})
		}
	}
	slices.SortFunc(out, func(a, b file) int { return cmp.Compare(a.path, b.path) })
	return out
}

func (f file) write(w *tar.Writer) error {
	h := &tar.Header{Name: f.path, Mode: int64(f.mode), ModTime: epoch(), Format: tar.FormatPAX}
	content := f.text
	switch {
	case f.link != "":
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.link, 0o777
	case f.from != "":
		var err error
		if content, err = os.ReadFile(f.from); err != nil {
			return err
		}
		h.Typeflag = tar.TypeReg
	case f.text != nil:
		h.Typeflag = tar.TypeReg
	default:
		h.Typeflag, h.Name = tar.TypeDir, f.path+"/"
	}
	h.Size = int64(len(content))
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}

// epoch is the age of everything: an image tells what is in it, and not when it was made.
func epoch() time.Time { return time.Unix(0, 0).UTC() }

// compressed is the gzip form. Its header holds neither name nor time.
func compressed(content []byte) ([]byte, error) {
	var buf bytes.Buffer
	w, err := gzip.NewWriterLevel(&buf, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	_, err = io.Copy(w, bytes.NewReader(content))
	if closed := w.Close(); err == nil {
		err = closed
	}
	return buf.Bytes(), err
}
