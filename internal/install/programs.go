package install

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// receiptName is a file beside the programs that says which of them are ours and what was in them, so that others' are never taken away.
const receiptName = ".muslin.installed"

// aliases are the names under which a host's configuration for Calico calls our programs.
var aliases = map[string]string{"calico": "muslin", "calico-ipam": "muslin-ipam"}

// missing tells whether a program of ours has gone from a folder that had it.
func (i *Installer) missing() bool {
	for _, dir := range i.s.Bins {
		listed, err := readReceipt(dir)
		if err != nil {
			return true // which programs says properly
		}
		for name := range listed {
			if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
				return true
			}
		}
	}
	return false
}

// programs puts the programs into every folder for them that can be written. It fails where there is none.
func (i *Installer) programs() error {
	names, err := i.s.offered()
	if err != nil {
		return err
	}
	var why []error
	done := 0
	for _, dir := range i.s.Bins {
		if err := unix.Access(dir, unix.W_OK); err != nil {
			why = append(why, fmt.Errorf("%s: %w", dir, err))
			continue
		}
		if err := i.fill(dir, names); err != nil {
			return fmt.Errorf("put programs into %s: %w", dir, err)
		}
		done++
	}
	if done == 0 {
		return fmt.Errorf("put programs on the host: no folder for them can be written: %w", errors.Join(why...))
	}
	return nil
}

// offered are the names of the programs that there are to put on the host.
func (s Settings) offered() ([]string, error) {
	entries, err := os.ReadDir(s.Source)
	if err != nil {
		return nil, fmt.Errorf("look for programs: %w", err)
	}
	var out []string
	for _, e := range entries {
		_, alias := aliases[e.Name()]
		if e.Type().IsRegular() && !alias && !s.Skip[e.Name()] && hostProgram(e.Name()) {
			out = append(out, e.Name())
		}
	}
	if !s.Skip["muslin"] && !slices.Contains(out, "muslin") {
		return nil, fmt.Errorf("look for programs: %s holds no muslin", s.Source)
	}
	return out, nil
}

// hostProgram tells whether a program is one that runtimes call. The folder of a build holds others too.
func hostProgram(name string) bool {
	if strings.HasPrefix(name, "muslin") {
		return name == "muslin" || name == "muslin-ipam"
	}
	return !strings.HasPrefix(name, ".")
}

// fill makes one folder hold the programs, and no longer those that an earlier version has put there and this one does not know.
func (i *Installer) fill(dir string, names []string) error {
	if err := sweep(dir); err != nil {
		return err
	}
	before, err := readReceipt(dir)
	if err != nil {
		return err
	}
	now := map[string]string{}
	for _, name := range names {
		if now[name], err = i.program(filepath.Join(i.s.Source, name), filepath.Join(dir, name), before[name]); err != nil {
			return err
		}
	}
	for alias, name := range aliases {
		if i.s.Skip[alias] || now[name] == "" {
			continue
		}
		path := filepath.Join(dir, alias)
		have, err := hash(path)
		if err != nil {
			return err
		}
		if i.s.Keep && have != "" && have != before[alias] {
			continue
		}
		if err := link(name, path); err != nil {
			return err
		}
		now[alias] = linkTo + name
	}
	maps.DeleteFunc(now, func(_, sum string) bool { return sum == "" })
	maps.DeleteFunc(before, func(name, _ string) bool { return now[name] != "" })
	if err := removeUnchanged(dir, before); err != nil {
		return err
	}
	return writeReceipt(dir, now)
}

// program puts one program in place and returns its hash, or "" where another's stays in its place. before is what was put there last.
func (i *Installer) program(from, to, before string) (string, error) {
	want, err := hash(from)
	if err != nil {
		return "", err
	}
	have, err := hash(to)
	if err != nil || have == want {
		return want, err
	}
	if have != "" && i.s.Keep {
		if have == before {
			return have, nil // an older one of ours
		}
		return "", nil
	}
	if err := copyFile(from, to); err != nil {
		return "", err
	}
	i.log.Info("program put on the host", "program", to)
	return want, nil
}

// removeUnchanged removes the programs of a receipt that are still what they were when it was written.
func removeUnchanged(dir string, listed map[string]string) error {
	var errs []error
	for name, sum := range listed {
		path := filepath.Join(dir, name)
		have, err := hash(path)
		if err == nil && have == sum {
			err = removeFile(path)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// readReceipt returns the hashes of our programs in a folder by their names; none if nothing was put there.
func readReceipt(dir string) (map[string]string, error) {
	text, err := os.ReadFile(filepath.Join(dir, receiptName))
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
		return nil, err
	}
	out := map[string]string{}
	for line := range strings.Lines(string(text)) {
		sum, name, ok := strings.Cut(strings.TrimSpace(line), "  ")
		if ok && filepath.Base(name) == name {
			out[name] = sum
		}
	}
	return out, nil
}

func writeReceipt(dir string, sums map[string]string) error {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(sums)) {
		fmt.Fprintf(&b, "%s  %s\n", sums[name], name)
	}
	_, err := writeFile(filepath.Join(dir, receiptName), []byte(b.String()), 0o644)
	return err
}
