package hosts

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/attachlock"
	"github.com/muslin-cni/muslin/internal/config"
	"github.com/muslin-cni/muslin/internal/doctor"
	"github.com/muslin-cni/muslin/internal/install"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/nft"
	"github.com/muslin-cni/muslin/internal/rtnl"
)

func hostFacts(ctx context.Context) (kernel.Host, error) {
	c, err := rtnl.Open()
	if err != nil {
		return kernel.Host{}, err
	}
	defer c.Close()
	return c.Host(ctx)
}

// routesOf lists the routes that are ours by these settings.
func routesOf(d config.Dataplane) func(context.Context) (map[kernel.RouteKey]kernel.Route, error) {
	return func(ctx context.Context) (map[kernel.RouteKey]kernel.Route, error) {
		c, err := rtnl.Open()
		if err != nil {
			return nil, err
		}
		defer c.Close()
		c.Own(kernel.Ownership{Protocol: d.RouteProtocol, Prefixes: d.InterfacePrefixes})
		return c.Routes().List(ctx)
	}
}

// waysTo asks the kernel for the way to each target.
func waysTo(targets []doctor.Target) func(context.Context) (map[netip.Addr]kernel.Hop, error) {
	return func(ctx context.Context) (map[netip.Addr]kernel.Hop, error) {
		c, err := rtnl.Open()
		if err != nil {
			return nil, err
		}
		defer c.Close()
		var to []netip.Addr
		for _, t := range targets {
			to = append(to, t.Addr)
		}
		return c.Ways(ctx, to)
	}
}

func listChains(ctx context.Context) ([]nft.Chain, error) {
	c, err := nft.OpenToRead()
	if err != nil {
		return nil, err
	}
	chains, err := c.Chains(ctx)
	return chains, errors.Join(err, c.Close())
}

// lacking are the features that the kernel says nowhere that it has.
func (x examiner) lacking(context.Context) ([]doctor.Feature, error) {
	release, err := kernelRelease()
	if err != nil {
		return nil, err
	}
	has, err := system{root: x.root, release: release}.survey()
	if err != nil {
		return nil, err
	}
	if len(has.builtin) == 0 && len(has.modules) == 0 {
		return nil, errors.New("the kernel says nowhere what it has: neither in /proc/config.gz, /boot nor /lib/modules")
	}
	var out []doctor.Feature
	for _, f := range features() {
		if !has.feature(f) {
			out = append(out, doctor.Feature{Name: f.module, For: f.only})
		}
	}
	return out, nil
}

// sysctls reads the settings that are judged. Those of namespaces are those of this process's.
func (x examiner) sysctls(h kernel.Host) func(context.Context) (map[string]string, error) {
	return func(context.Context) (map[string]string, error) {
		paths := []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv4/conf/all/rp_filter", "net/netfilter/nf_conntrack_count", "net/netfilter/nf_conntrack_max"}
		for dev := range h.Links {
			paths = append(paths, "net/ipv4/conf/"+dev+"/forwarding", "net/ipv4/conf/"+dev+"/rp_filter")
		}
		out := map[string]string{}
		var errs []error
		for _, p := range paths {
			text, err := os.ReadFile(filepath.Join("/proc/sys", p))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			errs = append(errs, err)
			out[p] = strings.TrimSpace(string(text))
		}
		return out, errors.Join(errs...)
	}
}

// legacyChains lists the chains of iptables-legacy in the tables that the kernel has. To look at others would make them.
func (x examiner) legacyChains(ctx context.Context) ([]doctor.LegacyChain, error) {
	var out []doctor.LegacyChain
	var errs []error
	for _, f := range []struct {
		v6            bool
		names, saving string
	}{{false, "ip_tables_names", "iptables-legacy-save"}, {true, "ip6_tables_names", "ip6tables-legacy-save"}} {
		tables, err := os.ReadFile(filepath.Join(x.proc, "thread-self/net", f.names))
		if errors.Is(err, fs.ErrNotExist) || err == nil && len(bytes.TrimSpace(tables)) == 0 {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		text, err := x.output(ctx, f.saving)
		if err != nil {
			errs = append(errs, fmt.Errorf("list the tables of iptables-legacy: %w", err))
			continue
		}
		out = append(out, parseSaved(text, f.v6)...)
	}
	return out, errors.Join(errs...)
}

// output runs one of the host's programs: from a container with its root in another folder, in that. It is looked for where systems have such programs.
func (x examiner) output(ctx context.Context, program string, args ...string) (string, error) {
	path := program
	for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"} {
		if _, err := os.Stat(x.at(filepath.Join(dir, program))); err == nil && !filepath.IsAbs(program) {
			path = filepath.Join(dir, program)
			break
		}
	}
	cmd := exec.CommandContext(ctx, path, args...)
	if x.host() != "" && filepath.IsAbs(path) {
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: x.host()}
		cmd.Dir = "/"
	}
	cmd.WaitDelay = factGrace
	text, err := cmd.Output()
	return string(text), err
}

// parseSaved reads the chains in what iptables-save prints.
func parseSaved(text string, v6 bool) (out []doctor.LegacyChain) {
	table := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "*"); ok {
			table = name
		}
		if chain, ok := strings.CutPrefix(line, ":"); ok {
			if fields := strings.Fields(chain); len(fields) >= 2 {
				out = append(out, doctor.LegacyChain{V6: v6, Table: table, Name: fields[0], Drop: fields[1] == "DROP"})
			}
		}
	}
	return out
}

func (x examiner) rival(context.Context) (string, error) {
	err := install.Rival(x.proc)
	rival, ok := errors.AsType[*install.RivalError](err)
	switch {
	case !ok:
		return "", err
	case rival.PID == 0:
		return rival.Command, nil
	}
	return fmt.Sprintf("process %d, %s", rival.PID, rival.Command), nil
}

// processes calls f with the command line of every process of this network namespace, until it says that this was enough.
func (x examiner) processes(f func(dir string, args []string) (enough bool)) error {
	entries, err := os.ReadDir(x.proc)
	if err != nil {
		return fmt.Errorf("look for processes: %w", err)
	}
	here, err := os.Readlink(filepath.Join(x.proc, "thread-self/ns/net"))
	if err != nil {
		return fmt.Errorf("look for processes: %w", err)
	}
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		dir := filepath.Join(x.proc, e.Name())
		line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || len(line) == 0 { // a thread of the kernel, a zombie, or gone
			continue
		}
		if there, err := os.Readlink(filepath.Join(dir, "ns/net")); err != nil || there != here {
			continue
		}
		if f(dir, strings.Split(string(bytes.TrimRight(line, "\x00")), "\x00")) {
			return nil
		}
	}
	return nil
}

// watched are the programs that run here and may be in the way. firewalld is a script: its interpreter is what runs.
func (x examiner) watched(context.Context) ([]string, error) {
	var out []string
	err := x.processes(func(_ string, args []string) bool {
		for _, name := range []string{doctor.NetworkManagerProgram, doctor.NetworkdProgram, doctor.FirewalldProgram} {
			script := strings.HasPrefix(filepath.Base(args[0]), "python")
			runs := filepath.Base(args[0]) == name || script && slices.ContainsFunc(args[1:], func(a string) bool { return filepath.Base(a) == name })
			if runs && !slices.Contains(out, name) {
				out = append(out, name)
			}
		}
		return false
	})
	return out, err
}

// agentProcess is the agent of this host while it runs.
type agentProcess struct {
	env  config.Env
	root string // what its paths are below, as this process sees them; "": it sees what we see
}

func (x examiner) agentProcess() (a agentProcess, ok bool) {
	err := x.processes(func(dir string, args []string) bool {
		if filepath.Base(args[0]) != "muslin-node" || len(args) > 1 { // it has other verbs, which end soon
			return false
		}
		environ, err := os.ReadFile(filepath.Join(dir, "environ"))
		if err != nil {
			return false
		}
		values := map[string]string{}
		for pair := range strings.SplitSeq(string(environ), "\x00") {
			name, text, _ := strings.Cut(pair, "=")
			values[name] = text
		}
		a.env, ok = func(name string) string { return values[name] }, true
		ours, errOurs := os.Readlink(filepath.Join(x.proc, "thread-self/ns/mnt"))
		theirs, errTheirs := os.Readlink(filepath.Join(dir, "ns/mnt"))
		if errOurs != nil || errTheirs != nil || ours != theirs {
			a.root = filepath.Join(dir, "root")
		}
		return true
	})
	return a, ok && err == nil
}

// unitEnv is the environment of the agent's unit; nil if there is none.
func (x examiner) unitEnv() map[string]string {
	text, err := os.ReadFile(x.at("/etc/muslin/muslin-node.env"))
	if err != nil {
		return nil
	}
	out := map[string]string{}
	scan := bufio.NewScanner(bytes.NewReader(text))
	for scan.Scan() {
		line := strings.TrimSpace(scan.Text())
		name, value, ok := strings.Cut(line, "=")
		if ok && !strings.HasPrefix(line, "#") {
			out[strings.TrimSpace(name)] = strings.Trim(strings.TrimSpace(value), `"'`)
		}
	}
	return out
}

// agent asks the agent how it is doing.
func (x examiner) agent(ctx context.Context) (a doctor.Agent, err error) {
	socket := x.at(x.socket)
	notRoot := errors.New("this command must run as root: the agent's socket is root's alone")
	a.Runs, err = attachlock.Held(filepath.Dir(socket), attach.AgentLock)
	switch {
	case errors.Is(err, os.ErrPermission):
		return a, notRoot
	case err != nil || !a.Runs:
		return a, err
	}
	told, err := askAgent(ctx, socket, attach.Report)
	if errors.Is(err, os.ErrPermission) {
		return a, notRoot
	}
	var refused *attach.Error
	if err != nil && !errors.As(err, &refused) { // an older agent, which does not know the question, refuses it
		a.Socket = err
		return a, nil
	}
	a.Self = told.Agent
	if _, err := askAgent(ctx, socket, attach.Status); err != nil {
		a.Serves = err
	}
	r, err := ask(ctx, socket)
	a.NoBGP, a.Sessions = r.Why, r.Peers
	return a, err
}
