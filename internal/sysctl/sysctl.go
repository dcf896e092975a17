// Package sysctl reads and writes kernel settings below /proc/sys.
package sysctl

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/kernel"
)

// Root is where the kernel shows its settings. Those of the network are the ones of the network namespace that the thread
// which opens the file is in: a Table is for one namespace.
const Root = "/proc/sys"

// HostRoot is where a container finds them if it was given the host's: its own are read-only unless it is privileged. That there are settings
// of the network is enough, for we write no others.
const HostRoot = "/host" + Root

// Where is HostRoot if it is there, else Root.
func Where() string {
	if _, err := os.Stat(HostRoot + "/net"); err == nil {
		return HostRoot
	}
	return Root
}

// Table is the table of the settings that we want. Nothing is ever removed: a setting that is no longer wanted keeps its value. Any
// goroutine may use it.
type Table struct {
	dir  *os.File // the folder
	root *os.Root // the same: keeps a device's name from leading outside

	mu      sync.Mutex
	devices map[string]*os.File // folders in it that have one for each device: the way to them is most of the work of opening a setting
}

// Open opens the settings below a folder, Root but in tests.
func Open(root string) (*Table, error) {
	r, err := os.OpenRoot(root)
	if err != nil {
		return nil, fmt.Errorf("open kernel settings: %w", err)
	}
	dir, err := r.Open(".")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open kernel settings: %w", err), r.Close())
	}
	return &Table{dir: dir, root: r, devices: map[string]*os.File{}}, nil
}

// Close releases the folder.
func (t *Table) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	err := errors.Join(t.dir.Close(), t.root.Close())
	for path, f := range t.devices {
		err = errors.Join(err, f.Close())
		delete(t.devices, path)
	}
	return err
}

// List finds nothing: settings carry no mark. Read tells of those that somebody wants.
func (t *Table) List(context.Context) (map[kernel.SysctlKey]string, error) { return nil, nil }

// Read reads settings. Those that are not there are left out.
func (t *Table) Read(ctx context.Context, keys []kernel.SysctlKey) (map[kernel.SysctlKey]string, error) {
	out := make(map[kernel.SysctlKey]string, len(keys))
	for _, k := range keys {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("read kernel settings: %w", err)
		}
		b, err := t.read(k.Path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read kernel setting %s: %w", k.Path, err)
		}
		out[k] = strings.Join(strings.Fields(string(b)), " ") // the kernel puts tabs between several values
	}
	return out, nil
}

// Apply writes settings, those of the whole host first, since net/ipv4/ip_forward resets those of devices. A setting of a device
// that is gone is no error. Removals do nothing.
func (t *Table) Apply(ctx context.Context, changes []kernel.Change[kernel.SysctlKey, string]) error {
	sorted := slices.Clone(changes)
	slices.SortStableFunc(sorted, func(a, b kernel.Change[kernel.SysctlKey, string]) int {
		return cmp.Compare(min(a.Key.Index, 1), min(b.Key.Index, 1))
	})
	return kernel.Each(sorted, func(c kernel.Change[kernel.SysctlKey, string]) error {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("set %s: %w", c.Key.Path, err)
		}
		if c.New == nil {
			return nil
		}
		return t.write(c.Key, *c.New)
	})
}

func (t *Table) read(path string) ([]byte, error) {
	f, err := t.open(path, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(f)
	return b, errors.Join(err, f.Close())
}

func (t *Table) write(k kernel.SysctlKey, value string) error {
	f, err := t.open(k.Path, unix.O_WRONLY)
	if errors.Is(err, fs.ErrNotExist) && k.Index != 0 {
		return nil
	}
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS) {
		return fmt.Errorf("set %s = %s: %w; the agent needs /proc/sys/net writable: run it as root, and mount the host's at "+HostRoot+"/net in a container", k.Path, value, err)
	}
	if err != nil {
		return fmt.Errorf("set %s = %s: %w", k.Path, value, err)
	}
	_, err = f.WriteString(value + "\n")
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("set %s = %s: %w", k.Path, value, err)
	}
	return nil
}

// open opens a setting: at once where the kernel can (openat2(2), from Linux 5.6 on), else, and to learn what is in the way, step by step.
func (t *Table) open(path string, flag int) (*os.File, error) {
	from, rest := t.start(path)
	how := unix.OpenHow{Flags: uint64(flag) | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	if fd, err := unix.Openat2(int(from.Fd()), rest, &how); err == nil {
		return os.NewFile(uintptr(fd), path), nil
	}
	return t.root.OpenFile(path, flag, 0)
}

// start is the folder from which a setting is opened, and the way from there.
func (t *Table) start(path string) (*os.File, string) {
	for _, folder := range [...]string{"net/ipv4/conf/", "net/ipv6/conf/", "net/ipv4/neigh/", "net/ipv6/neigh/"} {
		if rest, ok := strings.CutPrefix(path, folder); ok {
			if f := t.devicesIn(folder); f != nil {
				return f, rest
			}
		}
	}
	return t.dir, path
}

// devicesIn is a folder of devices; nil if it cannot be opened.
func (t *Table) devicesIn(folder string) *os.File {
	t.mu.Lock()
	defer t.mu.Unlock()
	f, ok := t.devices[folder]
	if !ok {
		var err error
		if f, err = t.root.Open(folder); err != nil {
			return nil
		}
		t.devices[folder] = f
	}
	return f
}
