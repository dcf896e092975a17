package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	rootTag = "root" // of the share, between QEMU and the guest

	// The guest's ports, as the order of the wires has them.
	portStdout = 1
	portStderr = 2
	portReport = 3

	// reportBooted goes to portReport when the program is about to start, and its status follows when it has ended.
	reportBooted = "booted"

	portLimit = 10 * time.Second // how long a port may take to appear once its driver is there
)

// guest is this program as the first process of the guest. It never returns: a machine whose first process ends has nothing to run.
func guest() {
	if err := guestRun(); err != nil {
		fmt.Println("vm:", err) // on the console, which the other side shows if it gets no status
	}
	// The other side has everything that it should: a write to a port returns when it has been read there.
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART) // -no-reboot makes this the end
	select {}
}

func guestRun() error {
	text, err := os.ReadFile(jobFile)
	if err != nil {
		return fmt.Errorf("read job: %w", err)
	}
	var j job
	if err := json.Unmarshal(text, &j); err != nil {
		return fmt.Errorf("read job: %w", err)
	}
	for _, file := range j.Modules {
		if err := loadModule(file); err != nil {
			return fmt.Errorf("load module %s: %w", file, err)
		}
	}
	if err := enterRoot(j.Library); err != nil {
		return err
	}
	report, err := openPort(portReport)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(report, reportBooted); err != nil {
		return fmt.Errorf("report that the machine has booted: %w", err)
	}
	status := 0
	if len(j.Args) > 0 {
		if status, err = runJob(j); err != nil {
			return fmt.Errorf("run %s: %w", j.Args[0], err)
		}
	}
	_, err = fmt.Fprintln(report, status)
	return err
}

func loadModule(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), "", 0)
}

// mounting is an argument list of mount(2).
type mounting struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

// enterRoot makes the other side's files the root, with a layer above them that takes what is written here, and gives it the kernel's own
// file systems, as a booted machine has them.
func enterRoot(library string) error {
	mounts := []mounting{
		{"root", "/below", "virtiofs", unix.MS_RDONLY, ""},
		{"tmpfs", "/above", "tmpfs", 0, ""},
		{"overlay", "/root", "overlay", 0, "lowerdir=/below,upperdir=/above/files,workdir=/above/work"},
		{"devtmpfs", "/root/dev", "devtmpfs", 0, ""},
		{"devpts", "/root/dev/pts", "devpts", 0, ""},
		{"tmpfs", "/root/dev/shm", "tmpfs", 0, ""},
		{"proc", "/root/proc", "proc", 0, ""},
		{"tmpfs", "/root/run", "tmpfs", 0, "mode=755"},
		{"sysfs", "/root/sys", "sysfs", 0, ""},
		{"bpf", "/root/sys/fs/bpf", "bpf", 0, ""},
		{"cgroup2", "/root/sys/fs/cgroup", "cgroup2", 0, ""},
		{"debugfs", "/root/sys/kernel/debug", "debugfs", 0, ""},
		{filepath.Join("/root", library), "/root/lib/modules", "", unix.MS_BIND, ""},
	}
	for _, m := range mounts {
		if err := m.mount(); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	if err := unix.Chdir("/root"); err != nil {
		return fmt.Errorf("enter root: %w", err)
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil { // pivot_root(2) does not work on an initial file system
		return fmt.Errorf("move root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	if err := unix.Sethostname([]byte("vm")); err != nil {
		return fmt.Errorf("name host: %w", err)
	}
	return nil
}

// mount mounts, and makes the folders that this needs.
func (m mounting) mount() error {
	folders := []string{m.target}
	if m.fstype == "overlay" {
		folders = append(folders, "/above/files", "/above/work")
	}
	for _, folder := range folders {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return err
		}
	}
	return unix.Mount(m.source, m.target, m.fstype, m.flags, m.data)
}

// openPort opens the virtio-serial port of a number. Ports appear a moment after their driver.
func openPort(number int) (*os.File, error) {
	for deadline := time.Now().Add(portLimit); ; time.Sleep(time.Millisecond) {
		found, err := filepath.Glob("/dev/vport*p" + strconv.Itoa(number))
		if err != nil {
			return nil, fmt.Errorf("find port %d: %w", number, err)
		}
		if len(found) > 0 {
			return os.OpenFile(found[0], os.O_WRONLY, 0)
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("find port %d: not there after %v", number, portLimit)
		}
	}
}

// runJob runs the program and returns its status as a shell has it. Meanwhile it does what a first process must: to wait for every process
// whose parent has gone.
func runJob(j job) (int, error) {
	for _, variable := range j.Env { // for PATH, with which programs are found here too
		name, value, _ := strings.Cut(variable, "=")
		if err := os.Setenv(name, value); err != nil {
			return 0, err
		}
	}
	if err := os.Chdir(j.Dir); err != nil {
		return 0, err
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return 0, fmt.Errorf("set lo up: %w: %s", err, out)
	}
	var files [3]*os.File
	var err error
	if files[0], err = os.Open(os.DevNull); err != nil {
		return 0, err
	}
	if files[1], err = openPort(portStdout); err != nil {
		return 0, err
	}
	if files[2], err = openPort(portStderr); err != nil {
		return 0, err
	}
	path, err := exec.LookPath(j.Args[0])
	if err != nil {
		return 0, err
	}
	child, err := os.StartProcess(path, j.Args, &os.ProcAttr{Files: files[:]})
	if err != nil {
		return 0, err
	}
	for {
		var ended unix.WaitStatus
		pid, err := unix.Wait4(-1, &ended, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, err
		case pid != child.Pid:
		case ended.Signaled():
			return 128 + int(ended.Signal()), nil
		default:
			return ended.ExitStatus(), nil
		}
	}
}
