// Package machineid names the machine that this is, so that two hosts with one node name are told apart.
//
// The name is the one that the system gave itself (machine-id(5)), which a new installation changes and a restart does not. Where
// there is none, the firmware's; and where that has none either, a random one that is kept in a file.
package machineid

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Sources says where to look. The zero value is no use; see Host.
type Sources struct {
	File     string   // the only file to look at, which must hold an id; "": the following
	Said     string   // where the host's agent says which id it has found; the first to be looked at, for those who are not the agent
	System   []string // files that hold an id, in order
	Firmware string   // the firmware's id of the machine
	Kept     string   // where a random id is kept
}

// Host is where a host keeps its id. file is the operator's choice, "" if there is none.
func Host(file string) Sources {
	return Sources{
		File:     file,
		Said:     "/run/muslin/machine-id",
		System:   []string{"/etc/machine-id", "/var/lib/dbus/machine-id"},
		Firmware: "/sys/class/dmi/id/product_uuid",
		Kept:     "/var/lib/calico/machine-id",
	}
}

// ErrNone means that nothing on this host says which machine it is.
var ErrNone = errors.New("this machine has no id")

// Find returns the id of this machine, in lower case, for the host's agent. The error is ErrNone if no source has one.
func (s Sources) Find() (string, error) {
	if s.File != "" {
		id, err := read(s.File)
		if err == nil && id == "" {
			err = fmt.Errorf("%s holds none: %w", s.File, ErrNone)
		}
		if err != nil {
			return "", fmt.Errorf("read machine id: %w", err)
		}
		return id, nil
	}
	for _, path := range slices.Concat(s.System, []string{s.Firmware, s.Kept}) {
		id, err := read(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("read machine id: %w", err)
		}
		if id != "" && !(path == s.Firmware && placeholder(id)) {
			return id, nil
		}
	}
	return "", fmt.Errorf("read machine id: %w", ErrNone)
}

// FindOrMake is Find, but where there is no id it makes a random one and keeps it; made says that it did.
func (s Sources) FindOrMake() (id string, made bool, err error) {
	id, err = s.Find()
	if !errors.Is(err, ErrNone) || s.File != "" {
		return id, false, err
	}
	raw := make([]byte, 16)
	_, _ = rand.Read(raw) // never fails, crypto/rand
	id = hex.EncodeToString(raw)
	if err := write(s.Kept, id); err != nil {
		return "", false, fmt.Errorf("keep a random machine id: %w", err)
	}
	return id, true, nil
}

// Say tells this host's programs which id its agent has found: the agent may see other files than they do.
func (s Sources) Say(id string) error {
	if err := write(s.Said, id); err != nil {
		return fmt.Errorf("say which machine this is: %w", err)
	}
	return nil
}

// Ask returns the id that the agent has said, else what Find finds.
func (s Sources) Ask() (string, error) {
	id, err := read(s.Said)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read machine id: %w", err)
	}
	if id != "" {
		return id, nil
	}
	return s.Find()
}

// read returns what a file holds; "" if that is no id, as before a system's first boot.
func read(path string) (string, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	id := strings.ToLower(strings.TrimSpace(string(raw)))
	if id == "uninitialized" {
		return "", nil
	}
	return id, nil
}

// placeholder reports an id that many machines have, whose maker did not set it.
func placeholder(id string) bool {
	digits := strings.ReplaceAll(id, "-", "")
	return strings.Trim(digits, "0") == "" || strings.Trim(digits, "f") == "" || id == "03000200-0400-0500-0006-000700080009"
}

// write replaces a file at once or not at all, making its folder if need be.
func write(path, id string) error {
	if old, err := read(path); err == nil && old == id {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	next := path + ".next"
	if err := os.WriteFile(next, []byte(id+"\n"), 0o644); err != nil {
		return err
	}
	return os.Rename(next, path)
}
