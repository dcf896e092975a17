package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// kernelPackage depends on the newest kernel that Debian builds for virtual machines.
const kernelPackage = "linux-image-cloud-amd64"

// fetchLimit bounds each step of fetching the kernel, 27 MB.
const fetchLimit = 5 * time.Minute

// earlyModules are those without which the guest cannot reach its root and its standard output. It loads others when they are asked for.
var earlyModules = []string{"virtio_pci", "virtio_console", "virtiofs", "overlay"}

// kernel is an unpacked package of Debian's.
type kernel struct {
	root    string // has boot/ and lib/modules/ in it
	version string
}

func (k kernel) image() string { return filepath.Join(k.root, "boot", "vmlinuz-"+k.version) }

// modules is the folder that the guest sees as /lib/modules.
func (k kernel) modules() string { return filepath.Join(k.root, "lib", "modules") }

// fetchKernel returns the kernel in the cache folder, which the caller has locked, and puts the newest there if there is none. It is unpacked
// rather than installed: installed, it would be this machine's.
func fetchKernel(ctx context.Context, cache string) (kernel, error) {
	root := filepath.Join(cache, "linux")
	if _, err := os.Stat(root); err == nil {
		return openKernel(root)
	}
	fmt.Fprintf(os.Stderr, "vm: fetching %s into %s\n", kernelPackage, root)
	unfinished := root + ".new"
	if err := os.RemoveAll(unfinished); err != nil { // of one that was cut short
		return kernel{}, fmt.Errorf("fetch kernel: %w", err)
	}
	if err := unpackKernel(ctx, unfinished); err != nil {
		return kernel{}, fmt.Errorf("fetch kernel: %w", err)
	}
	if err := os.Rename(unfinished, root); err != nil {
		return kernel{}, fmt.Errorf("fetch kernel: %w", err)
	}
	return openKernel(root)
}

func openKernel(root string) (kernel, error) {
	images, err := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return kernel{}, fmt.Errorf("open kernel: %s/boot has %d kernels, not one: remove %s, and it is fetched anew", root, len(images), root)
	}
	return kernel{root: root, version: strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")}, nil
}

// unpackKernel makes root a folder with the files of the newest kernel's package.
func unpackKernel(ctx context.Context, root string) error {
	packed := filepath.Join(root, "deb")
	if err := os.MkdirAll(packed, 0o755); err != nil {
		return err
	}
	if err := download(ctx, packed); err != nil { // maybe for want of apt's lists, or of new ones
		if _, err := output(ctx, packed, "apt-get", "update", "-qq"); err != nil {
			return err
		}
		if err := download(ctx, packed); err != nil {
			return err
		}
	}
	debs, err := filepath.Glob(filepath.Join(packed, "*.deb"))
	if err != nil || len(debs) != 1 {
		return fmt.Errorf("apt-get downloaded %d packages, not one", len(debs))
	}
	if _, err := output(ctx, root, "dpkg", "-x", debs[0], root); err != nil {
		return err
	}
	k, err := openKernel(root)
	if err != nil {
		return err
	}
	// A package that is installed gets this list from its own script.
	if _, err := output(ctx, root, "depmod", "-b", root, k.version); err != nil {
		return err
	}
	return os.RemoveAll(packed)
}

// download puts the newest kernel's package into folder.
func download(ctx context.Context, folder string) error {
	depends, err := output(ctx, folder, "apt-cache", "depends", kernelPackage)
	if err != nil {
		return err
	}
	_, after, found := strings.Cut(depends, "Depends: ")
	if !found {
		return fmt.Errorf("apt knows no %s: is this Debian?", kernelPackage)
	}
	name, _, _ := strings.Cut(after, "\n")
	// As root, for the user that apt would otherwise be cannot write to a folder of root's.
	_, err = output(ctx, folder, "apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", name)
	return err
}

// early returns the files of earlyModules and of what they depend on, in the order in which to load them.
func (k kernel) early(ctx context.Context) ([]string, error) {
	var files []string
	seen := make(map[string]bool)
	for _, name := range earlyModules {
		out, err := output(ctx, "/", "modprobe", "-d", k.root, "-S", k.version, "--show-depends", name)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(out) { // insmod FILE, or builtin NAME
			word := strings.Fields(line)
			if len(word) >= 2 && word[0] == "insmod" && !seen[word[1]] {
				seen[word[1]] = true
				files = append(files, word[1])
			}
		}
	}
	return files, nil
}

// output runs a program of this machine and returns its standard output.
func output(ctx context.Context, dir, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if errors.Is(err, exec.ErrNotFound) {
		return "", fmt.Errorf("%w: sudo make deps installs it", err)
	}
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}

// lockFolder makes a folder and waits until nobody else has it locked. The kernel gives the lock back with the process.
func lockFolder(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make folder for the kernel: %w", err)
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("lock folder of the kernel: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock folder of the kernel: %w", err)
	}
	return func() { _ = f.Close() }, nil
}
