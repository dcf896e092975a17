// Package install puts what the container runtime needs on a host, keeps it there, and takes it away again.
//
// What it promises, and how:
//
//  1. Nothing is half there: every file is written beside its place, synced and renamed; certificates change all at once, by one link. Of several
//     installers one works at a time.
//  2. The kubelet takes a node for ready when it finds a network configuration, so that one comes last, and only once the agent
//     can serve. It stays while the agent restarts: pods then wait for seconds instead of the node being drained of them.
//  3. What is not ours is left alone: programs that were put on the host are written down there with their hashes, and only what still has
//     its hash is taken away.
//  4. No credentials for Kubernetes are on the host's disk, unless CALICO_CNI_SERVICE_ACCOUNT asks for them: the agent knows
//     the facts of pods. Certificates for etcd are there, since a pod must be able to end while no agent runs.
package install

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"
)

// Installer keeps a host's files as its settings say. Run is for one caller; the other methods too.
type Installer struct {
	s       Settings
	account account // nil: no kubeconfig is written
	log     *slog.Logger
	now     func() time.Time

	copied bool      // programs were gone through
	renew  time.Time // when the kubeconfig's token is to be renewed
	said   string    // the failure that was logged last
	told   bool      // that the configuration is there
}

// interval is how often certificates are read anew: the kubelet itself takes a minute to pass on a changed Secret.
const interval = 10 * time.Second

// New returns an installer, or says why no runtime would take the configuration. env is asked where the settings want a kubeconfig, for the API
// server's address.
func New(s Settings, env func(string) string, log *slog.Logger) (*Installer, error) {
	i := &Installer{s: s, log: log, now: time.Now}
	if _, err := s.Configuration(); err != nil {
		return nil, err
	}
	if s.Account == "" {
		return i, nil
	}
	a, err := openAccount(s.Account, env)
	if err != nil {
		return nil, fmt.Errorf("write a kubeconfig, as CALICO_CNI_SERVICE_ACCOUNT asks: %w", err)
	}
	i.account = a
	return i, nil
}

// Once puts everything in place: programs and certificates at once, the configuration when ready is closed. It waits for that until ctx ends.
func (i *Installer) Once(ctx context.Context, ready <-chan struct{}) error {
	if err := i.prepare(ctx); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return fmt.Errorf("wait for the agent before the network configuration is written: %w", context.Cause(ctx))
	case <-ready:
	}
	return i.alone(ctx, i.configure)
}

// Run does the same and then keeps it so until ctx ends: certificates that change are put in place, and what others remove or change is put back.
// What fails is logged, and tried again.
func (i *Installer) Run(ctx context.Context, ready <-chan struct{}) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	serving := false
	for {
		err := i.prepare(ctx)
		if err == nil && serving {
			err = i.alone(ctx, i.configure)
		}
		i.say(ctx, err)
		select {
		case <-ctx.Done():
			return
		case <-ready:
			serving, ready = true, nil
		case <-tick.C:
		}
	}
}

// say logs a failure once, and when it is over.
func (i *Installer) say(ctx context.Context, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	switch {
	case text == i.said || ctx.Err() != nil:
		return
	case err != nil:
		i.log.Error("host not set up for pods; it is tried again", "error", err)
	default:
		i.log.Info("host set up for pods after all")
	}
	i.said = text
}

// prepare puts in place what the configuration needs.
func (i *Installer) prepare(ctx context.Context) error {
	if err := i.alone(ctx, i.files); err != nil {
		return err
	}
	return i.kubeconfig(ctx)
}

// files puts programs and certificates in place.
func (i *Installer) files() error {
	if !i.copied || i.missing() {
		if err := i.programs(); err != nil {
			return err
		}
		i.copied = true
	}
	changed, err := i.certificates()
	if err != nil {
		return err
	}
	if changed {
		i.log.Info("etcd's certificates written for the plugin", "folder", i.tlsDir())
	}
	return nil
}

// configure writes the network configuration if it is not there as it should be, and removes the one that it takes the place of.
func (i *Installer) configure() error {
	text, err := i.s.render(i.certificatePath)
	if err != nil {
		return err
	}
	path := filepath.Join(i.s.NetDir, i.s.Name)
	changed, err := writeFile(path, []byte(text), 0o600)
	if err != nil {
		return fmt.Errorf("write the network configuration: %w", err)
	}
	if changed || !i.told {
		i.log.Info("network configuration in place", "file", filepath.Join(i.s.InnerNetDir, i.s.Name), "written", changed)
		i.told = true
	}
	if i.s.OldName == "" || i.s.OldName == i.s.Name {
		return nil
	}
	if err := os.Remove(filepath.Join(i.s.NetDir, i.s.OldName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the network configuration of before: %w", err)
	}
	return nil
}
