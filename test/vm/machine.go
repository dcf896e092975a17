package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const qemu = "qemu-system-x86_64"

// kvmLimit is how long a kernel may take to boot with KVM, which is a second where it boots at all.
const kvmLimit = 20 * time.Second

// Why a machine was ended. Callers tell a program that ran out of time from everything else.
var (
	errBootLimit = errors.New("it has not booted in time")
	errRunLimit  = errors.New("the program ran out of time")
)

// machine says what to boot and how. Nothing of it outlives run.
type machine struct {
	kernel    kernel
	accel     string // kvm or tcg
	cpus      int
	memory    int // MiB
	bootLimit time.Duration
	runLimit  time.Duration
	stdout    io.Writer // of the program
	stderr    io.Writer
}

// bestAccel returns kvm if that boots the kernel here, else tcg. A /dev/kvm proves nothing: in a virtual machine it may open and yet
// never get a kernel through. So the kernel is booted once, and the cache folder, which the caller has locked, remembers the verdict until this machine
// boots again.
func (m machine) bestAccel(ctx context.Context, cache string) (string, error) {
	if _, err := os.Stat("/dev/kvm"); err != nil {
		return "tcg", nil
	}
	bootID, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("choose accelerator: %w", err)
	}
	file := filepath.Join(cache, "accel")
	known, _ := os.ReadFile(file) // if there is no such file, it is not known
	if accel, found := strings.CutPrefix(string(known), string(bootID)); found {
		return accel, nil
	}
	probe := m
	probe.accel, probe.bootLimit, probe.runLimit = "kvm", kvmLimit, kvmLimit
	accel := "kvm"
	if _, err := probe.run(ctx, job{}); err != nil {
		accel = "tcg"
	}
	if err := ctx.Err(); err != nil {
		return "", fmt.Errorf("choose accelerator: %w", err)
	}
	if err := os.WriteFile(file, append(bootID, accel...), 0o644); err != nil {
		return "", fmt.Errorf("remember accelerator: %w", err)
	}
	return accel, nil
}

// run boots the machine, does the job and returns the program's status. When it returns, the machine is gone.
func (m machine) run(ctx context.Context, j job) (int, error) {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	files, err := initramfs(ctx, m.kernel, j)
	if err != nil {
		return 0, fmt.Errorf("prepare guest: %w", err)
	}
	defer files.Close()
	share, socket, err := startShare(ctx)
	if err != nil {
		return 0, err
	}
	defer func() {
		_ = socket.Close()
		stop(nil) // if the emulator never ran, nothing else ends it
		_ = share.Wait()
	}()
	var w wires
	var console tail
	status := make(chan int, 1)
	report := func(r io.Reader) { m.follow(r, stop, status) }
	err = w.connect(copyTo(&console), copyTo(m.stdout), copyTo(m.stderr), report)
	if err == nil {
		err = m.emulate(ctx, w.there, files, socket)
	}
	w.closeThere()
	w.wait()
	select {
	case s := <-status:
		return s, nil
	default:
		return 0, m.explain(context.Cause(ctx), err, console.kept)
	}
}

// follow reads what the guest reports, moves the deadline as it goes, and sends the program's status once it has ended.
func (m machine) follow(report io.Reader, stop context.CancelCauseFunc, status chan<- int) {
	limit := time.AfterFunc(m.bootLimit, func() { stop(errBootLimit) })
	defer func() { limit.Stop() }()
	for scanner := bufio.NewScanner(report); scanner.Scan(); {
		if scanner.Text() == reportBooted {
			limit.Stop()
			limit = time.AfterFunc(m.runLimit, func() { stop(errRunLimit) })
		} else if s, err := strconv.Atoi(scanner.Text()); err == nil {
			status <- s
		}
	}
}

// explain says why there is no status. A machine that was ended has a reason; else the emulator's error may be one.
func (m machine) explain(reason, err error, console []byte) error {
	switch {
	case reason == nil && err != nil:
		reason = err
	case reason == nil:
		reason = errors.New("it stopped before it told the program's status")
	}
	return fmt.Errorf("virtual machine (%s, Linux %s, limits: boot %v, program %v): %w; the end of its console:\n%s",
		m.accel, m.kernel.version, m.bootLimit, m.runLimit, reason, console)
}

// emulate runs the emulator until the machine ends or ctx does. The first of wires is the guest's console, the others its ports.
func (m machine) emulate(ctx context.Context, wires []*os.File, initramfs, share *os.File) error {
	cmd := exec.CommandContext(ctx, qemu)
	pass := func(f *os.File) string { // returns the number that the file has there
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
		return strconv.Itoa(2 + len(cmd.ExtraFiles))
	}
	cpu := "host"
	if m.accel == "tcg" {
		cpu = "max,la57=off" // a fifth level of page tables is one more to walk by emulation
	}
	memory := strconv.Itoa(m.memory)
	cmd.Args = append(cmd.Args, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "q35,memory-backend=ram,accel="+m.accel, // microvm has less to emulate, but hangs in a third of the boots
		"-object", "memory-backend-memfd,id=ram,share=on,size="+memory+"M", // shared, for virtiofsd reads and writes there
		"-m", memory, "-smp", strconv.Itoa(m.cpus), "-cpu", cpu,
		"-kernel", m.kernel.image(), "-initrd", "/dev/fd/"+pass(initramfs),
		"-append", "console=ttyS0 quiet panic=-1 reboot=t mitigations=off", // a panic ends the machine too
		"-chardev", "socket,id=root,fd="+pass(share), "-device", "vhost-user-fs-pci,chardev=root,tag="+rootTag,
		"-chardev", "socket,id=console,fd="+pass(wires[0]), "-serial", "chardev:console",
		// Ports, because a serial line alters bytes, and the device that gives QEMU a status cuts it to seven bits.
		"-device", "virtio-serial-pci")
	for i, wire := range wires[1:] {
		cmd.Args = append(cmd.Args, "-chardev", fmt.Sprintf("socket,id=port%d,fd=%s", i+1, pass(wire)),
			"-device", fmt.Sprintf("virtserialport,chardev=port%d,nr=%d", i+1, i+1))
	}
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", qemu, err, bytes.TrimSpace(said))
	}
	return nil
}
