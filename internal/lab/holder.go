package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// masked are the folders whose other entries a node shares with the machine; what is named below them is the node's own.
var masked = map[string][]string{
	"/etc":     {"cni", "machine-id"},
	"/var/lib": {"calico", "cni"},
}

const (
	netnsDir      = "/run/netns" // where `ip netns` looks
	machineIDFile = "/etc/machine-id"
	machineDir    = "/run/.machine"  // the machine's folders under a node's own
	cniConfDir    = "/etc/cni/net.d" // of the node
	cniCache      = "/var/lib/cni"   // libcni's default
	cniList       = "10-muslin.conflist"
)

// holderSpec is what a holder process is told on its command line.
type holderSpec struct {
	hostname  string
	machineID string
	bin       string // stays visible whatever is mounted over it
}

// hold makes the namespaces that this process was started in a node's, says that they are ready, and keeps them until ctx ends.
// It refuses to work in the machine's own namespaces.
func hold(ctx context.Context, spec holderSpec) error {
	if err := isolated(); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(spec.hostname)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := mountNode(spec); err != nil {
		return err
	}
	if err := sayReady(); err != nil {
		return fmt.Errorf("report readiness: %w", err)
	}
	<-ctx.Done()
	return nil
}

// isolated holds this process's namespaces against its parent's.
func isolated() error {
	for _, ns := range []string{"net", "mnt", "uts"} {
		mine, err := os.Readlink("/proc/self/ns/" + ns)
		if err != nil {
			return fmt.Errorf("read namespace: %w", err)
		}
		parents, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", os.Getppid(), ns))
		if err != nil {
			return fmt.Errorf("read parent's namespace: %w", err)
		}
		if mine == parents {
			return fmt.Errorf("the %s namespace is the parent's: only `muslin-lab up` starts holders", ns)
		}
	}
	return nil
}

func mountNode(spec holderSpec) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	bin, err := os.Open(spec.bin)
	if err != nil {
		return fmt.Errorf("open programs' folder: %w", err)
	}
	defer bin.Close()
	if err := mountTmpfs("/run"); err != nil {
		return err
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil { // /sys/class/net shows the mounter's network namespace
		return fmt.Errorf("mount /sys: %w", err)
	}
	for dir, own := range masked {
		if err := mask(dir, own); err != nil {
			return err
		}
	}
	if err := nodeFiles(spec); err != nil {
		return err
	}
	return reveal(bin, spec.bin)
}

func mountTmpfs(dir string) error {
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", dir, err)
	}
	return nil
}

// nodeFiles makes what a freshly booted host has.
func nodeFiles(spec holderSpec) error {
	for _, dir := range []string{netnsDir, "/run/lock", cniConfDir, cniCache, "/var/lib/calico"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make node's folder: %w", err)
		}
	}
	if err := os.WriteFile(machineIDFile, []byte(spec.machineID+"\n"), 0o444); err != nil {
		return fmt.Errorf("write machine id: %w", err)
	}
	if sameFolder("/run", "/var/run") {
		return nil
	}
	if err := unix.Mount("/run", "/var/run", "", unix.MS_BIND, ""); err != nil { // a link on most systems, a folder on some
		return fmt.Errorf("bind /var/run to /run: %w", err)
	}
	return nil
}

// mask puts a tmpfs over dir that shows the same entries, except for own, which it leaves out. Nothing needs to exist on the
// machine for that, and nothing is made there.
func mask(dir string, own []string) error {
	beneath := filepath.Join(machineDir, dir)
	if err := os.MkdirAll(beneath, 0o755); err != nil {
		return fmt.Errorf("make mount point: %w", err)
	}
	if err := unix.Mount(dir, beneath, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s: %w", dir, err)
	}
	if err := mountTmpfs(dir); err != nil {
		return err
	}
	entries, err := os.ReadDir(beneath)
	if err != nil {
		return fmt.Errorf("list %s: %w", dir, err)
	}
	left := make(map[string]bool)
	for _, name := range own {
		left[name] = true
	}
	var errs []error
	for _, e := range entries {
		if !left[e.Name()] {
			errs = append(errs, mirror(filepath.Join(beneath, e.Name()), filepath.Join(dir, e.Name()), e.Type()))
		}
	}
	return errors.Join(errs...)
}

// mirror makes what is at from appear at to, which does not exist.
func mirror(from, to string, kind os.FileMode) error {
	var err error
	switch {
	case kind&os.ModeSymlink != 0:
		text, err := os.Readlink(from)
		if err != nil {
			return fmt.Errorf("read link: %w", err)
		}
		return os.Symlink(text, to)
	case kind.IsDir():
		err = os.Mkdir(to, 0o755)
	default:
		err = os.WriteFile(to, nil, 0o600)
	}
	if err != nil {
		return fmt.Errorf("make mount point: %w", err)
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s: %w", to, err)
	}
	return nil
}

// reveal binds the folder that dir is to path, unless it can still be seen there.
func reveal(dir *os.File, path string) error {
	before, err := dir.Stat()
	if err != nil {
		return fmt.Errorf("look at programs' folder: %w", err)
	}
	if now, err := os.Stat(path); err == nil && os.SameFile(before, now) {
		return nil
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return fmt.Errorf("make mount point: %w", err)
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()), path, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind programs' folder %s: %w", path, err)
	}
	return nil
}

func sameFolder(a, b string) bool {
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	return errX == nil && (errors.Is(errY, os.ErrNotExist) || errY == nil && os.SameFile(x, y))
}
