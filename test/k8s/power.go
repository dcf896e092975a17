package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// powerOff takes a node's power away: its processes and network end as they are, and its disk stays. It returns when nothing of the node runs.
func (c *cluster) powerOff(ctx context.Context, node string) error {
	pid, err := c.nodePID(node)
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.offFile(node), nil, 0o644); err != nil {
		return fmt.Errorf("switch %s off: %w", node, err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		return fmt.Errorf("end %s: %w", node, err)
	}
	return waitFor(ctx, 30*time.Second, node+" to end", func() error {
		if pid, err := c.nodePID(node); err == nil {
			return fmt.Errorf("process %d is still there", pid)
		}
		return nil
	})
}

// powerOn lets a node boot that powerOff has ended.
func (c *cluster) powerOn(node string) error { return os.Remove(c.offFile(node)) }

// wipe makes the disk of a node without power that of a new machine, to which its owner has brought a kubelet's identity and images.
func (c *cluster) wipe(node string) error {
	if _, err := c.nodePID(node); err == nil {
		return fmt.Errorf("%s runs", node)
	}
	errs := []error{os.Remove(filepath.Join(c.nodeDir(node), "machine-id"))}
	for _, dir := range nodeDisk() {
		path := filepath.Join(c.nodeDir(node), dir)
		errs = append(errs, os.RemoveAll(path), os.MkdirAll(path, 0o755))
	}
	return errors.Join(errs...)
}
