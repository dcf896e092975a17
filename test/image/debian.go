package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// debian is a package as Debian's archive serves it. apt has checked it against the archive's signature.
type debian struct {
	name, version, arch string
	archive             string // the .deb
	sum                 string // its SHA-256
	tree                string // where it is unpacked
}

// fetch downloads packages, in the versions that this machine's lists name, and unpacks them. What is in the folder already is not fetched again.
func fetch(cache string, names []string) ([]debian, error) {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, err
	}
	var out []debian
	for _, name := range names {
		d, err := candidate(name)
		if err != nil {
			return nil, err
		}
		if err := d.download(cache); err != nil {
			return nil, fmt.Errorf("fetch package %s: %w", name, err)
		}
		if err := d.unpack(cache); err != nil {
			return nil, fmt.Errorf("unpack package %s: %w", name, err)
		}
		out = append(out, d)
	}
	return out, nil
}

// candidate is the version that apt would install.
func candidate(name string) (debian, error) {
	text, err := run("", "apt-cache", "show", "--no-all-versions", name)
	if err != nil {
		return debian{}, fmt.Errorf("look for package %s: %w; `apt-get update` fetches the lists", name, err)
	}
	d := debian{name: name}
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch key {
		case "Version":
			d.version = value
		case "Architecture":
			d.arch = value
		case "SHA256":
			d.sum = value
		}
	}
	if d.version == "" || d.sum == "" {
		return debian{}, fmt.Errorf("look for package %s: apt knows none; `apt-get update` fetches the lists", name)
	}
	return d, nil
}

// download has apt fetch the package unless the folder has it, and holds it to the archive's checksum.
func (d *debian) download(cache string) error {
	d.archive = filepath.Join(cache, fmt.Sprintf("%s_%s_%s.deb", d.name, strings.ReplaceAll(d.version, ":", "%3a"), d.arch))
	if d.check() == nil {
		return nil
	}
	if _, err := run(cache, "apt-get", "download", "-q", d.name+"="+d.version); err != nil {
		return err
	}
	return d.check()
}

func (d *debian) check() error {
	content, err := os.ReadFile(d.archive)
	if err != nil {
		return err
	}
	if sum := sha256.Sum256(content); hex.EncodeToString(sum[:]) != d.sum {
		return fmt.Errorf("%s is not what Debian's archive lists: remove it", d.archive)
	}
	return nil
}

func (d *debian) unpack(cache string) error {
	d.tree = filepath.Join(cache, "tree-"+d.sum)
	if _, err := os.Stat(d.tree); err == nil {
		return nil
	}
	tmp, err := os.MkdirTemp(cache, "unpack-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp) //nolint:errcheck // nothing depends on it
	if _, err := run("", "dpkg-deb", "-x", d.archive, tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, d.tree); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// files are the package's files without documentation, but with the licences.
func (d debian) files() (out []file, err error) {
	err = filepath.WalkDir(d.tree, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		name, err := filepath.Rel(d.tree, path)
		if err != nil || !kept(name) {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		f := file{from: path, path: name, mode: info.Mode().Perm()}
		if info.Mode()&fs.ModeSymlink != 0 {
			f.from = ""
			f.link, err = os.Readlink(path)
		}
		out = append(out, f)
		return err
	})
	return out, err
}

func kept(name string) bool {
	if strings.HasPrefix(name, "usr/share/") {
		return strings.HasPrefix(name, "usr/share/doc/") && filepath.Base(name) == "copyright"
	}
	return !strings.Contains(name, "/gconv/") && !strings.Contains(name, "/locale/") // of the C library, for other character sets
}

// run runs a program that ends soon, and returns what it prints.
func run(dir, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "APT::Sandbox::User=root")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}
