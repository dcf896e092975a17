package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// DefaultDir holds a lab's state unless its Config, or MUSLIN_LAB_DIR for the command, says otherwise.
const DefaultDir = "/run/muslin-lab"

// lockTimeout bounds how long a command waits for another one on the same lab.
const lockTimeout = 2 * time.Minute

// ErrNotUp means that no lab is up in the folder.
var ErrNotUp = errors.New("no lab is up: bring one up with `muslin-lab up`")

// Node is one host of a lab.
type Node struct {
	Name   string     `json:"name"`
	Subnet int        `json:"subnet"`         // from 1
	Addr   netip.Addr `json:"addr"`           // of eth0
	Addr6  netip.Addr `json:"addr6,omitzero"` // of eth0, in a dual-stack lab
	Holder process    `json:"holder"`
	Agent  process    `json:"agent,omitzero"` // zero when stopped by the lab
}

// Pod is one pod of a lab, as its ADD left it.
type Pod struct {
	Name        string            `json:"name"`
	Node        string            `json:"node"`
	Addr        netip.Addr        `json:"addr,omitzero"`  // IPv4; zero until ADD has succeeded
	Addr6       netip.Addr        `json:"addr6,omitzero"` // as Addr, in a dual-stack lab
	IPv6Only    bool              `json:"ipv6Only,omitempty"`
	ContainerID string            `json:"containerID"`
	UID         string            `json:"uid"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Took        time.Duration     `json:"took,omitempty"` // of ADD, as measured around libcni
}

// Addrs are the pod's addresses, IPv4 first.
func (p *Pod) Addrs() []netip.Addr { return valid(p.Addr, p.Addr6) }

func valid(addrs ...netip.Addr) []netip.Addr {
	return slices.DeleteFunc(addrs, func(a netip.Addr) bool { return !a.IsValid() })
}

// state is what lab.json holds.
type state struct {
	ID      string    `json:"id"`
	Since   uint64    `json:"since"` // clock ticks since boot: no process of the lab is older
	Ready   bool      `json:"ready"` // up has finished
	Bin     string    `json:"bin"`   // folder of the programs
	Options Options   `json:"options"`
	Fabric  process   `json:"fabric"`
	Outside process   `json:"outside"`
	Etcd    []process `json:"etcd,omitempty"` // etcd's members, zero where one was stopped; or the relay to the one outside
	Nodes   []Node    `json:"nodes"`
	Pods    []Pod     `json:"pods"`

	FabricRouter *Router  `json:"fabricRouter,omitempty"` // the fabric's own BGP; nil: it has none
	Routers      []Router `json:"routers,omitempty"`
}

func (s *state) node(name string) (*Node, error) {
	for i := range s.Nodes {
		if s.Nodes[i].Name == name {
			return &s.Nodes[i], nil
		}
	}
	if len(s.Nodes) == 0 {
		return nil, fmt.Errorf("node %q does not exist: this lab has none", name)
	}
	return nil, fmt.Errorf("node %q does not exist: this lab has %s to %s", name, s.Nodes[0].Name, s.Nodes[len(s.Nodes)-1].Name)
}

func (s *state) pod(name string) (*Pod, error) {
	for i := range s.Pods {
		if s.Pods[i].Name == name {
			return &s.Pods[i], nil
		}
	}
	return nil, fmt.Errorf("pod %q does not exist: `muslin-lab pod list` shows those that do", name)
}

// Lab is a lab that is up. Its methods may be called concurrently, from several processes too.
type Lab struct {
	dir      string
	progress func(string)
	guard    guard // of a guarded lab, in the process that brought it up
}

// Open returns the lab that is up in dir ("": DefaultDir), or ErrNotUp.
func Open(dir string) (*Lab, error) {
	l := newLab(dir, nil)
	if _, err := l.load(); err != nil {
		return nil, err
	}
	return l, nil
}

func newLab(dir string, progress func(string)) *Lab {
	if dir == "" {
		dir = DefaultDir
	}
	if progress == nil {
		progress = func(string) {}
	}
	return &Lab{dir: filepath.Clean(dir), progress: progress}
}

// Nodes lists the lab's nodes in order.
func (l *Lab) Nodes() ([]Node, error) {
	s, err := l.load()
	if err != nil {
		return nil, err
	}
	return s.Nodes, nil
}

// Pods lists the lab's pods in the order of their ADDs.
func (l *Lab) Pods() ([]Pod, error) {
	s, err := l.load()
	if err != nil {
		return nil, err
	}
	return s.Pods, nil
}

func (l *Lab) statePath() string { return filepath.Join(l.dir, "lab.json") }

func (l *Lab) logPath(name string) string { return filepath.Join(l.dir, "logs", name+".log") }

// peek reads the state of a lab in whatever condition; it returns ErrNotUp if there is none.
func (l *Lab) peek() (*state, error) {
	b, err := os.ReadFile(l.statePath())
	if errors.Is(err, os.ErrNotExist) {
		return nil, ErrNotUp
	}
	if errors.Is(err, os.ErrPermission) {
		return nil, fmt.Errorf("only root can work with a lab, use sudo: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("read lab state: %w", err)
	}
	s := &state{}
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("decode %s: %w", l.statePath(), err)
	}
	return s, nil
}

// load reads the state of a lab that is up.
func (l *Lab) load() (*state, error) {
	s, err := l.peek()
	if err != nil {
		return nil, err
	}
	if !s.Ready {
		return nil, errors.New("the lab is not up yet, or `up` was interrupted: wait for it, or run `muslin-lab down` and `muslin-lab up`")
	}
	return s, nil
}

// save replaces the state as a whole: a reader sees the old one or the new one.
func (l *Lab) save(s *state) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("encode lab state: %w", err)
	}
	next := l.statePath() + ".next"
	if err := os.WriteFile(next, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write lab state: %w", err)
	}
	if err := os.Rename(next, l.statePath()); err != nil {
		return fmt.Errorf("replace lab state: %w", err)
	}
	return nil
}

// update changes the state of a lab that is up, alone.
func (l *Lab) update(ctx context.Context, change func(*state) error) error {
	unlock, err := l.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	s, err := l.load()
	if err != nil {
		return err
	}
	if err := change(s); err != nil {
		return err
	}
	return l.save(s)
}

func (l *Lab) lockPath() string { return l.dir + ".lock" }

// lock waits until no other command works on the lab, at most for lockTimeout.
func (l *Lab) lock(ctx context.Context) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	if err := os.MkdirAll(filepath.Dir(l.lockPath()), 0o755); err != nil {
		return nil, fmt.Errorf("make folder for the lab's lock: %w", err)
	}
	var f *os.File
	waitErr := poll(ctx, func() bool {
		f, err = tryLock(l.lockPath())
		return f != nil || err != nil
	})
	if waitErr != nil {
		return nil, fmt.Errorf("lock %s: another muslin-lab command is still working on this lab: %w", l.lockPath(), waitErr)
	}
	if err != nil {
		return nil, err
	}
	return func() { _ = f.Close() }, nil
}

// tryLock returns nil and no error while another holds the lock.
func tryLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil && sameFile(f, path) {
		return f, nil
	}
	_ = f.Close()                                          // never written
	if err == nil || errors.Is(err, syscall.EWOULDBLOCK) { // held, or removed by the `down` that held it
		return nil, nil
	}
	return nil, fmt.Errorf("lock %s: %w", path, err)
}

func sameFile(f *os.File, path string) bool {
	a, errA := f.Stat()
	b, errB := os.Stat(path)
	return errA == nil && errB == nil && os.SameFile(a, b)
}
