package hosts

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/config"
	"github.com/muslin-cni/muslin/internal/doctor"
)

// disks are the file systems of what agent and plugin write to. A folder that is not there stands for the one that it would be made in.
func (x examiner) disks(n config.Node) func(context.Context) ([]doctor.Disk, error) {
	return func(context.Context) ([]doctor.Disk, error) {
		var out []doctor.Disk
		var errs []error
		seen := map[unix.Fsid]bool{{}: false} // what has no id is no other's
		for _, folder := range []string{filepath.Dir(x.socket), filepath.Dir(cmp.Or(n.MTUFile, "/var/lib/calico/mtu")), "/var/lib/cni", x.confDir} {
			d, id, err := diskOf(x.at(folder))
			d.Path = folder
			errs = append(errs, err)
			d.ReadOnly = d.ReadOnly && folder != x.confDir // some systems' configuration is for good
			if err == nil && !seen[id] {
				out = append(out, d)
			}
			seen[id] = id != unix.Fsid{}
		}
		return out, errors.Join(errs...)
	}
}

func diskOf(folder string) (d doctor.Disk, id unix.Fsid, err error) {
	var s unix.Statfs_t
	err = unix.Statfs(folder, &s)
	for errors.Is(err, fs.ErrNotExist) && folder != "/" {
		folder = filepath.Dir(folder)
		err = unix.Statfs(folder, &s)
	}
	if err != nil {
		return d, id, fmt.Errorf("look for room on the file system of %s: %w", folder, err)
	}
	unit := uint64(s.Frsize)
	return doctor.Disk{Free: s.Bfree * unit, Size: s.Blocks * unit, NoFiles: s.Files > 0 && s.Ffree == 0, ReadOnly: s.Flags&unix.ST_RDONLY != 0}, s.Fsid, nil
}

// dropIns are the files with an ending in these folders, by name; of one name that of the first folder counts, as systemd reads them all.
func (x examiner) dropIns(ending string, folders ...string) ([]string, error) {
	byName := map[string]string{}
	for _, folder := range folders {
		entries, err := os.ReadDir(x.at(folder))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("look for configuration: %w", err)
		}
		for _, e := range entries {
			if _, known := byName[e.Name()]; !known && filepath.Ext(e.Name()) == ending {
				byName[e.Name()] = filepath.Join(folder, e.Name())
			}
		}
	}
	var out []string
	for _, file := range byName {
		out = append(out, file)
	}
	slices.SortFunc(out, func(a, b string) int { return strings.Compare(filepath.Base(a), filepath.Base(b)) })
	return out, nil
}

// keys calls f with each line NAME=value of a file, and the section that it is in.
func (x examiner) keys(file string, f func(section, name, value string)) error {
	section := ""
	return lines(x.at(file), func(line string) {
		line = strings.TrimSpace(line)
		name, value, ok := strings.Cut(line, "=")
		switch {
		case strings.HasPrefix(line, "#"), strings.HasPrefix(line, ";"):
		case strings.HasPrefix(line, "["):
			section = strings.Trim(line, "[]")
		case ok:
			f(section, strings.TrimSpace(name), strings.TrimSpace(value))
		}
	})
}

// bootSettings are the kernel's settings as files set them, the last one counts (sysctl.d(5), sysctl(8)).
func (x examiner) bootSettings(context.Context) (map[string]doctor.BootSetting, error) {
	files, err := x.dropIns(".conf", "/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d", "/lib/sysctl.d")
	out := map[string]doctor.BootSetting{}
	errs := []error{err}
	for _, file := range append(files, "/etc/sysctl.conf") {
		errs = append(errs, x.keys(file, func(_, name, value string) {
			name = strings.TrimPrefix(name, "-")
			if !strings.Contains(name, "/") {
				name = strings.ReplaceAll(name, ".", "/")
			}
			out[name] = doctor.BootSetting{Value: value, File: file}
		}))
	}
	return out, errors.Join(errs...)
}

// networkd reads what systemd-networkd is set to (networkd.conf(5), systemd.network(5)).
func (x examiner) networkd(context.Context) (doctor.Networkd, error) {
	n := doctor.Networkd{Routes: true, Rules: true}
	files, err := x.dropIns(".conf", "/etc/systemd/networkd.conf.d", "/run/systemd/networkd.conf.d", "/usr/local/lib/systemd/networkd.conf.d", "/usr/lib/systemd/networkd.conf.d")
	errs := []error{err}
	for _, file := range slices.Concat([]string{"/usr/lib/systemd/networkd.conf", "/etc/systemd/networkd.conf"}, files) {
		errs = append(errs, x.keys(file, func(section, name, value string) {
			switch section + " " + name {
			case "Network ManageForeignRoutes":
				n.Routes = truth(value)
			case "Network ManageForeignRoutingPolicyRules":
				n.Rules = truth(value)
			}
		}))
	}
	networks, err := x.dropIns(".network", "/etc/systemd/network", "/run/systemd/network", "/usr/local/lib/systemd/network", "/usr/lib/systemd/network")
	errs = append(errs, err)
	for _, file := range networks {
		f := doctor.NetworkFile{Path: file}
		others := false // what else it goes by
		errs = append(errs, x.keys(file, func(section, name, value string) {
			switch {
			case section == "Match" && name == "Name":
				f.Names = append(f.Names, strings.Fields(value)...)
			case section == "Match":
				others = true
			case section == "Link" && name == "Unmanaged":
				f.Unmanaged = truth(value)
			}
		}))
		if !others && len(f.Names) > 0 {
			n.Files = append(n.Files, f)
		}
	}
	return n, errors.Join(errs...)
}

// truth reads a boolean as systemd does (systemd.syntax(7)).
func truth(value string) bool {
	return slices.Contains([]string{"1", "yes", "true", "on"}, strings.ToLower(value))
}

// runtimeConf reads where a container runtime looks for networks: containerd's configuration, also as k3s and RKE2 have it, and CRI-O's. The first file that says
// something counts.
func (x examiner) runtimeConf(context.Context) (doctor.RuntimeConf, error) {
	const rancher = "/var/lib/rancher/"
	for _, file := range []string{"/etc/containerd/config.toml", rancher + "k3s/agent/etc/containerd/config.toml", rancher + "rke2/agent/etc/containerd/config.toml", "/etc/crio/crio.conf"} {
		var set doctor.Folders
		if err := x.keys(file, func(_, name, value string) {
			folders := strings.FieldsFunc(value, func(r rune) bool { return strings.ContainsRune(`[]"', `, r) })
			switch name {
			case "conf_dir", "network_dir":
				set.Conf = strings.Join(folders, "")
			case "bin_dir", "bin_dirs", "plugin_dirs":
				set.Bins = folders
			}
		}); err != nil {
			return doctor.RuntimeConf{}, err
		}
		if set.Conf != "" || len(set.Bins) > 0 {
			return doctor.RuntimeConf{File: file, Folders: set}, nil
		}
	}
	return doctor.RuntimeConf{}, nil
}
