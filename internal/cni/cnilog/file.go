package cnilog

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// file is a log file that is moved aside when it has grown. It looks at its size only when it is opened.
type file struct {
	path  string
	size  int64 // at which it is moved aside
	age   time.Duration
	count int
	now   func() time.Time
	f     *os.File // nil until the first line
}

func newFile(c Config) *file {
	positive := func(n, otherwise int) int {
		if n <= 0 {
			return otherwise
		}
		return n
	}
	return &file{
		path: c.Path, size: int64(positive(c.MaxSize, defaultSize)) * megabyte,
		age: time.Duration(positive(c.MaxAge, defaultAge)) * day, count: positive(c.MaxCount, defaultCount), now: time.Now,
	}
}

// append writes a line at the end of the file, whoever else does.
func (f *file) append(line []byte) error {
	if f.f == nil {
		if err := f.open(); err != nil {
			return fmt.Errorf("open log file: %w", err)
		}
	}
	if _, err := f.f.Write(line); err != nil {
		return fmt.Errorf("write log file: %w", err)
	}
	return nil
}

// Close closes the file, if it was opened.
func (f *file) Close() error {
	if f.f == nil {
		return nil
	}
	return f.f.Close()
}

func (f *file) open() error {
	err := f.create()
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(filepath.Dir(f.path), 0o755); err == nil {
			err = f.create()
		}
	}
	if err != nil {
		return err
	}
	info, err := f.f.Stat()
	switch {
	case err != nil:
		return err
	case info.Mode()&fs.ModeNamedPipe != 0:
		return fmt.Errorf("%s is a pipe, and who reads it might make us wait", f.path)
	case info.Size() < f.size:
		return nil
	}
	return f.rotate()
}

// create opens the file, a new one if need be. It does not wait for the other end of a pipe.
func (f *file) create() (err error) {
	f.f, err = os.OpenFile(f.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY|unix.O_NONBLOCK, 0o644)
	return err
}

// rotate moves the file aside and begins a new one, unless another process does so just now.
func (f *file) rotate() error {
	folder, err := os.Open(filepath.Dir(f.path))
	if err != nil {
		return err
	}
	defer func() { _ = folder.Close() }() // and unlocks it
	if err := unix.Flock(int(folder.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil // this line goes to the end of the full file
	}
	if info, err := os.Stat(f.path); err == nil && info.Size() >= f.size { // it may be a new one by now
		if err := os.Rename(f.path, f.aside(f.now())); err != nil {
			return err
		}
	}
	full := f.f
	if err := f.create(); err != nil {
		f.f = full
		return err
	}
	return errors.Join(full.Close(), f.prune())
}

// stamp is the time at which a file was moved aside, as Calico's plugin puts it into the name, whose old files are taken care of too.
const stamp = "2006-01-02T15-04-05.000"

// aside is a free name for the file, beside cni.log: cni-2026-11-21T05-46-19.123.log.
func (f *file) aside(t time.Time) string {
	stem, ext := f.stem()
	for ; ; t = t.Add(time.Millisecond) {
		path := filepath.Join(filepath.Dir(f.path), stem+t.UTC().Format(stamp)+ext)
		if _, err := os.Lstat(path); err != nil { // there is none, or renaming will say what is wrong
			return path
		}
	}
}

func (f *file) stem() (stem, ext string) {
	ext = filepath.Ext(f.path)
	return strings.TrimSuffix(filepath.Base(f.path), ext) + "-", ext
}

// Remove takes a log file away, and those that were moved aside from it. One that is not there is no error.
func Remove(path string) error {
	f := newFile(Config{Path: path})
	olds, err := f.olds()
	errs := []error{err}
	for _, o := range olds {
		errs = append(errs, f.remove(o.name))
	}
	if err := errors.Join(append(errs, f.remove(filepath.Base(path)))...); err != nil {
		return fmt.Errorf("remove log: %w", err)
	}
	return nil
}

// remove takes away a file beside the log, or the log itself. That it is gone is no error.
func (f *file) remove(name string) error {
	if err := os.Remove(filepath.Join(filepath.Dir(f.path), name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// old is a file that was moved aside.
type old struct {
	name string
	at   time.Time
}

// olds lists them, the youngest first.
func (f *file) olds() (olds []old, err error) {
	entries, err := os.ReadDir(filepath.Dir(f.path))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		if at, ok := f.movedAt(e.Name()); ok {
			olds = append(olds, old{e.Name(), at})
		}
	}
	slices.SortFunc(olds, func(a, b old) int { return cmp.Or(b.at.Compare(a.at), cmp.Compare(a.name, b.name)) })
	return olds, nil
}

// prune removes files that were moved aside too long ago, or are too many.
func (f *file) prune() error {
	olds, err := f.olds()
	errs := []error{err}
	for i, o := range olds {
		if i >= f.count || f.now().Sub(o.at) > f.age {
			errs = append(errs, f.remove(o.name))
		}
	}
	return errors.Join(errs...)
}

// movedAt reads a file's name; ok is false if it is not one that was moved aside. Calico's are compressed.
func (f *file) movedAt(name string) (at time.Time, ok bool) {
	stem, ext := f.stem()
	name = strings.TrimSuffix(strings.TrimSuffix(name, ".zst"), ".gz")
	middle, isOurs := strings.CutPrefix(name, stem)
	middle, hasExt := strings.CutSuffix(middle, ext)
	at, err := time.Parse(stamp, middle)
	return at, isOurs && hasExt && err == nil
}
