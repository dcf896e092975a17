package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/cni/cnilog"
	"github.com/muslin-cni/muslin/internal/config"
	"github.com/muslin-cni/muslin/internal/install"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/machineid"
	"github.com/muslin-cni/muslin/internal/nft"
	"github.com/muslin-cni/muslin/internal/reconcile"
	"github.com/muslin-cni/muslin/internal/rtnl"
	"github.com/muslin-cni/muslin/internal/ruleset"
	"github.com/muslin-cni/muslin/internal/xtables"
)

// uninstall takes every kernel object and every file of ours off this host, by the marks that an agent without memory knows them by: the kernel is
// made to match the empty state. Settings of the kernel have no mark and stay as they are.
//
// Pods that are still attached would lose their network for good, so they must be gone, unless force says to cut them off. The order is that of
// taking leave: the runtime stops calling the plugin before anything that the plugin needs goes.
func uninstall(ctx context.Context, p Process, force bool) error {
	log := newLogs(p.Stderr).logger()
	if err := install.Rival(procDir); err != nil { // its marks are the same as ours
		return err
	}
	at, err := places()
	if err != nil {
		return err
	}
	s, err := install.FromEnv(lookup(p.Environ), at)
	if err != nil {
		return err
	}
	lock, err := alone(ctx)
	if err != nil {
		return err
	}
	defer lock.Release()
	c, err := newClearance(log)
	if err != nil {
		return err
	}
	defer c.rtnl.Close()
	if err := c.pods(ctx, force); err != nil {
		return err
	}
	removed, confErr := s.RemoveConfiguration()
	for _, file := range removed.Files {
		log.Info("network configuration removed", "file", file)
	}
	err = errors.Join(confErr, c.kernel(ctx), c.podDevices(ctx), s.RemoveFiles(), removeOwnFiles(p.Environ), removeLogs(removed.Logs))
	if err == nil {
		log.Info("nothing of Muslin is left on this host, but for kernel settings such as net.ipv4.ip_forward, which stay as they are")
	}
	return err
}

// uninstallAndStay does the same and then stays until ctx ends, as a pod of a DaemonSet has to.
func uninstallAndStay(ctx context.Context, p Process) error {
	if err := uninstall(ctx, p, false); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// removeLogs removes the logs of our plugins, also where something else has failed: once the network configuration is gone, nothing names them any more.
func removeLogs(paths []string) error {
	var errs []error
	for _, path := range paths {
		errs = append(errs, cnilog.Remove(path))
	}
	return errors.Join(errs...)
}

// clearance takes the kernel's objects away.
type clearance struct {
	rtnl *rtnl.Conn
	own  kernel.Ownership
	log  *slog.Logger
}

func newClearance(log *slog.Logger) (*clearance, error) {
	protocols, err := readProtocols()
	if err != nil {
		return nil, err
	}
	conn, err := rtnl.Open()
	if err != nil {
		return nil, err
	}
	own := kernel.Ownership{Former: protocols}
	conn.Own(own)
	return &clearance{rtnl: conn, own: own, log: log}, nil
}

// pods refuses while pods are attached.
func (c *clearance) pods(ctx context.Context, force bool) error {
	names, err := c.workloads(ctx)
	if err != nil || len(names) == 0 || force {
		return err
	}
	const shown = 5
	more := ""
	if len(names) > shown {
		more = ", …"
	}
	return fmt.Errorf("%d pods are attached (%s%s) and would lose their network: drain the node first, or add --force to cut them off",
		len(names), strings.Join(names[:min(len(names), shown)], ", "), more)
}

// workloads are the host's sides of pods' interfaces.
func (c *clearance) workloads(ctx context.Context) ([]string, error) {
	all, err := c.rtnl.Names(ctx)
	if err != nil {
		return nil, err
	}
	maps.DeleteFunc(all, func(name string, _ bool) bool { return !c.own.Workload(name) })
	return slices.Sorted(maps.Keys(all)), nil
}

// podDevices removes the interfaces of pods that were to be cut off: what the plugin made is ours too.
func (c *clearance) podDevices(ctx context.Context) error {
	names, err := c.workloads(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		errs = append(errs, c.rtnl.RemovePair(name))
		c.log.Info("pod cut off", "device", name)
	}
	return errors.Join(errs...)
}

// kernel empties every table: of iptables both backends, since the one in use may have changed.
func (c *clearance) kernel(ctx context.Context) error {
	sets, err := xtables.OpenSets()
	if err != nil {
		return err
	}
	defer sets.Close()
	errs := []error{c.policy(ctx)}
	for _, b := range []xtables.Backend{xtables.Legacy, xtables.NFT} {
		errs = append(errs, c.chains(ctx, b))
	}
	errs = append(errs, c.clear(ctx, reconcile.Tables{
		Links: c.rtnl.Links(), Addrs: c.rtnl.Addrs(), Neighs: c.rtnl.Neighs(), FDB: c.rtnl.FDB(), Sets: sets, Routes: c.rtnl.Routes(),
		Rules: c.rtnl.Rules(),
	}))
	return errors.Join(errs...)
}

// policy deletes the table of policy. A kernel without nftables has none.
func (c *clearance) policy(ctx context.Context) error {
	conn, err := nft.OpenToRead()
	if err != nil {
		return fmt.Errorf("delete the table of policy: %w", err)
	}
	return errors.Join(conn.Delete(ctx, ruleset.Table), conn.Close())
}

// chains empties what one backend of iptables holds, of both families. One that is not installed has made nothing.
func (c *clearance) chains(ctx context.Context, b xtables.Backend) error {
	chains, err := xtables.OpenChains(ctx, b)
	if errors.Is(err, xtables.ErrMissing) {
		return nil
	}
	if err != nil {
		return err
	}
	tables := reconcile.Tables{Chains: chains}
	if chains6, err := chains.IPv6(ctx); err != nil {
		c.log.Debug("no rules for IPv6 are looked for", "backend", b, "error", err)
	} else {
		tables.Chains6 = chains6
	}
	return c.clear(ctx, tables)
}

// clear makes tables hold nothing of ours.
func (c *clearance) clear(ctx context.Context, t reconcile.Tables) error {
	r := reconcile.New(t, c.log)
	_, listErr := r.Refresh(ctx)
	done, err := r.Apply(ctx, kernel.NewState())
	if done.Changed > 0 {
		c.log.Info("kernel objects removed", "objects", done.Changed, "by_table", done.Tables)
	}
	return errors.Join(listErr, err)
}

// removeOwnFiles removes what the agent has written on the host. Its folders may be mounts, so what is in them goes and they may stay.
func removeOwnFiles(environ []string) error {
	cfg, err := config.FromEnv(lookup(environ))
	errs := []error{}
	if err != nil {
		errs = append(errs, fmt.Errorf("read the environment: %w", err))
	}
	for _, file := range []string{cfg.NodeNameFile, cfg.MTUFile, cfg.ShutdownFile, machineid.Host("").Kept} {
		if file == "" {
			continue
		}
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove a file of the agent: %w", err))
		}
	}
	return errors.Join(append(errs, emptyRunDir())...)
}

// emptyRunDir removes all of the agent's folder but the lock that is held, which goes with its release.
func emptyRunDir() error {
	dir := filepath.Dir(attach.Socket)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("empty the agent's folder: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if e.Name() != attach.AgentLock {
			errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}
