package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// group is a control group of this process: a cluster's are below it, so that whoever accounts for this process accounts for them.
type group struct {
	Controllers string // as mount(8) takes them; name=systemd for a hierarchy without any
	Path        string
}

// ownGroups are this process's control groups, one for each hierarchy of version 1.
func ownGroups() ([]group, error) {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("read control groups: %w", err)
	}
	var groups []group
	for line := range strings.Lines(string(b)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) < 3 || fields[1] == "" { // version 2
			continue
		}
		path := filepath.Join("/sys/fs/cgroup", strings.TrimPrefix(fields[1], "name="), fields[2])
		if _, err := os.Stat(path); err == nil {
			groups = append(groups, group{fields[1], path})
		}
	}
	if !slices.ContainsFunc(groups, func(g group) bool { return strings.Contains(g.Controllers, "memory") }) {
		return nil, errors.New("this machine has its control groups by version 2 alone (or none): clusters know version 1 only")
	}
	return groups, nil
}

// groupRoot is where all of a cluster's groups of one hierarchy are.
func (c *cluster) groupRoot(g group) string { return filepath.Join(g.Path, "muslin-k8s-"+c.Name) }

// makeGroups makes a node's groups and lists them where node.sh reads them.
func (c *cluster) makeGroups(node string) error {
	var list strings.Builder
	for _, g := range c.Groups {
		dir := filepath.Join(c.groupRoot(g), node)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make control group: %w", err)
		}
		if strings.Contains(g.Controllers, "cpuset") { // a new set is empty, and nobody can enter it
			if err := errors.Join(inheritSet(filepath.Dir(dir)), inheritSet(dir)); err != nil {
				return err
			}
		}
		fmt.Fprintln(&list, g.Controllers, dir)
	}
	return os.WriteFile(filepath.Join(c.nodeDir(node), "groups"), []byte(list.String()), 0o644)
}

// inheritSet gives a group the processors and memory of the one above it.
func inheritSet(dir string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		set, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, file), set, 0o644)
		}
		if err != nil {
			return fmt.Errorf("copy %s: %w", file, err)
		}
	}
	return nil
}

// removeGroups removes all of the cluster's groups. It fails while processes are in them.
func (c *cluster) removeGroups() error {
	var errs []error
	for _, g := range c.Groups {
		var dirs []string
		err := filepath.WalkDir(c.groupRoot(g), func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				dirs = append(dirs, path)
			}
			if errors.Is(err, fs.ErrNotExist) { // gone meanwhile, or never made
				return nil
			}
			return err
		})
		errs = append(errs, err)
		for _, dir := range slices.Backward(dirs) {
			if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}
