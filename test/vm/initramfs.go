package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// job is what the guest does, as the file jobFile tells it. One without Args only boots.
type job struct {
	Args    []string
	Env     []string
	Dir     string
	Modules []string // files of the initial file system, to be loaded in this order
	Library string   // what becomes /lib/modules
}

const (
	guestInit = "/init" // this program there
	jobFile   = "/job"
)

// initramfs returns a file in memory with the guest's initial file system: this program, the modules that it needs to reach the real
// root, and the job. The kernel itself adds /dev/console.
func initramfs(ctx context.Context, k kernel, j job) (*os.File, error) {
	modules, err := k.early(ctx)
	if err != nil {
		return nil, fmt.Errorf("find modules: %w", err)
	}
	var a archive
	for _, path := range modules {
		name := "/" + filepath.Base(path)
		j.Modules = append(j.Modules, name)
		if err := a.copy(name, path); err != nil {
			return nil, fmt.Errorf("read module: %w", err)
		}
	}
	if err := a.copy(guestInit, "/proc/self/exe"); err != nil {
		return nil, fmt.Errorf("read this program: %w", err)
	}
	j.Library = k.modules()
	text, err := json.Marshal(j)
	if err != nil {
		return nil, fmt.Errorf("write job: %w", err)
	}
	a.add(jobFile, 0o600, text)
	return a.file()
}

// archive is a cpio archive in the form that the kernel reads, see its Documentation/driver-api/early-userspace/buffer-format.rst.
type archive struct{ bytes.Buffer }

// add appends a regular file.
func (a *archive) add(path string, mode int, data []byte) {
	a.entry(path[1:], unix.S_IFREG|mode, data)
}

// copy is add for an executable file of this machine.
func (a *archive) copy(path, from string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	a.add(path, 0o755, data)
	return nil
}

func (a *archive) entry(name string, mode int, data []byte) {
	fields := []int{
		0, // inode: only files with more than one name need it
		mode,
		0, 0, // user and group
		1, // names
		0, // time
		len(data),
		0, 0, 0, 0, // device, and that which the file stands for
		len(name) + 1,
		0, // checksum, unused
	}
	a.WriteString("070701")
	for _, field := range fields {
		fmt.Fprintf(a, "%08X", field)
	}
	a.WriteString(name + "\x00")
	a.pad()
	a.Write(data)
	a.pad()
}

// pad fills up to a multiple of four bytes, as both name and data end.
func (a *archive) pad() {
	for a.Len()%4 != 0 {
		a.WriteByte(0)
	}
}

// file ends the archive and returns it as a file without a name.
func (a *archive) file() (*os.File, error) {
	a.entry("TRAILER!!!", 0, nil)
	fd, err := unix.MemfdCreate("initramfs", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make file in memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), "initramfs")
	if _, err := f.Write(a.Bytes()); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("write file in memory: %w", err)
	}
	return f, nil
}
