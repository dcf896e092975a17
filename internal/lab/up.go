package lab

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	upTimeout     = 3 * time.Minute
	holderTimeout = 20 * time.Second
	holdersAtOnce = 8
)

// Config says what lab to bring up and where.
type Config struct {
	Dir      string // of its state; "": DefaultDir
	Bin      string // folder of the programs, muslin-lab itself among them
	Options  Options
	Progress func(string) // told of each step; nil: nobody
	Guarded  bool         // the lab does not outlive the calling process, even one that is killed
}

// Up brings a lab up and returns when every agent is ready. Where it fails it leaves nothing behind. A lab that is up already and
// has the same options is returned as it is, with agents and etcd started again where they had died; other options are an error.
// It needs root, and takes at most five minutes.
func Up(ctx context.Context, cfg Config) (*Lab, error) {
	ctx, cancel := context.WithTimeout(ctx, patient(upTimeout))
	defer cancel()
	if os.Geteuid() != 0 {
		return nil, errors.New("a lab needs root, for it makes network namespaces: use sudo")
	}
	if err := cfg.Options.Validate(); err != nil {
		return nil, err
	}
	bin, err := programs(cfg)
	if err != nil {
		return nil, err
	}
	l := newLab(cfg.Dir, cfg.Progress)
	unlock, err := l.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	s, err := l.peek()
	if err == nil {
		return l, l.again(ctx, s, cfg.Options)
	}
	if !errors.Is(err, ErrNotUp) {
		return nil, err
	}
	if cfg.Guarded {
		if l.guard, err = startGuard(bin, l.dir); err != nil {
			return nil, err
		}
	}
	if err := l.create(ctx, bin, cfg.Options); err != nil {
		if errors.Is(ctx.Err(), context.Canceled) {
			err = fmt.Errorf("bring the lab up: interrupted: %w", err)
		}
		return nil, errors.Join(err, l.clear(context.WithoutCancel(ctx)), removeFile(l.lockPath()), l.guard.release())
	}
	return l, nil
}

// programs finds the folder of the programs and checks that those needed are in it.
func programs(cfg Config) (string, error) {
	bin, err := filepath.Abs(cfg.Bin)
	if err == nil {
		bin, err = filepath.EvalSymlinks(bin)
	}
	if err != nil {
		return "", fmt.Errorf("find programs: %w", err)
	}
	need := []string{"muslin-lab", "muslin-node", "muslin", "muslin-ipam"}
	if cfg.Options.NoAgents {
		need = need[:1]
	}
	var missing []string
	for _, name := range need {
		if _, err := os.Stat(filepath.Join(bin, name)); err != nil {
			missing = append(missing, name)
		}
	}
	if cfg.Options.fabricRoutes() {
		for _, name := range BIRD.programs() {
			if _, err := findProgram(name, searchPath(bin)); err != nil {
				return "", fmt.Errorf("%w: the router between the subnets needs it with --bgp: `apt-get install bird2`", err)
			}
		}
	}
	if len(missing) > 0 {
		return "", fmt.Errorf("%s not found in %s: build with `make build`", strings.Join(missing, ", "), bin)
	}
	return bin, nil
}

// again is Up on a lab that exists.
func (l *Lab) again(ctx context.Context, s *state, o Options) error {
	const remedy = "run `muslin-lab down` first"
	if !s.Ready {
		return errors.New("an earlier `up` was interrupted: " + remedy)
	}
	if !s.Options.equal(o) {
		return fmt.Errorf("another lab is up (%s; asked for: %s): %s", s.Options, o, remedy)
	}
	for _, n := range s.Nodes {
		if !n.Holder.alive() {
			return fmt.Errorf("the lab is broken, for the process that holds %s is gone: %s", n.Name, remedy)
		}
	}
	for _, r := range s.Routers {
		if !r.Holder.alive() {
			return fmt.Errorf("the lab is broken, for the process that holds %s is gone: %s", r.Spec.Name, remedy)
		}
	}
	if !s.Fabric.alive() || !s.Outside.alive() {
		return errors.New("the lab is broken, for the process that holds its fabric is gone: " + remedy)
	}
	l.progress("the lab is up already")
	return errors.Join(l.startServices(ctx, s), l.save(s))
}

// String is the options as one reads them on a command line.
func (o Options) String() string {
	text := fmt.Sprintf("--nodes %d --subnets %d --mode %s --pool %s --block-size %d", o.Nodes, o.Subnets, o.Mode, o.Pool, o.BlockSize)
	if o.DualStack {
		text += fmt.Sprintf(" --dual-stack --mode6 %s --pool6 %s --block-size6 %d", o.mode(true), o.Pool6, o.BlockSize6)
	}
	if o.Etcd != "" {
		text += " --etcd " + o.Etcd
	}
	if o.TLS {
		text += " --tls"
	}
	if o.Members > 1 {
		text += fmt.Sprintf(" --members %d", o.Members)
	}
	if o.EtcdQuota > 0 {
		text += fmt.Sprintf(" --etcd-quota %d", o.EtcdQuota)
	}
	if o.BGP {
		text += " --bgp"
	}
	if o.WireGuard {
		text += " --wireguard"
	}
	return text
}

// create makes a lab where none is. The state is on disk before the first process starts, so that Down finds whatever exists.
func (l *Lab) create(ctx context.Context, bin string, o Options) error {
	since, err := ticksNow()
	if err != nil {
		return err
	}
	s := &state{ID: randomHex(16), Since: since, Bin: bin, Options: o, Nodes: plannedNodes(o)}
	if err := os.MkdirAll(filepath.Join(l.dir, "logs"), 0o700); err != nil {
		return fmt.Errorf("make lab's folder: %w", err)
	}
	if err := l.save(s); err != nil {
		return err
	}
	if err := errors.Join(l.startHolders(ctx, s), l.save(s)); err != nil {
		return err
	}
	if err := errors.Join(wireFabric(s), l.makeCertificates(s)); err != nil {
		return err
	}
	l.progress(fmt.Sprintf("nodes: %d, subnets: %d, joined by the fabric", o.Nodes, o.Subnets))
	if err := l.startServices(ctx, s); err != nil {
		return err
	}
	s.Ready = true
	return l.save(s)
}

// startHolders starts the process of every namespace, several at a time, and records them in s.
func (l *Lab) startHolders(ctx context.Context, s *state) error {
	ctx, cancel := context.WithTimeout(ctx, patient(holderTimeout))
	defer cancel()
	var group errgroup.Group
	group.SetLimit(holdersAtOnce)
	hold := func(name string, into *process) {
		group.Go(func() error {
			c, err := l.holder(s, name).start(ctx)
			*into = c.process
			return err
		})
	}
	hold("fabric", &s.Fabric)
	hold("outside", &s.Outside)
	for i := range s.Nodes {
		hold(s.Nodes[i].Name, &s.Nodes[i].Holder)
	}
	return group.Wait()
}

func (l *Lab) holder(s *state, name string) daemon {
	machine := sha256.Sum256([]byte(s.ID + name))
	return daemon{
		args:  []string{self(s.Bin), "run-holder", "--hostname", name, "--machine-id", hex.EncodeToString(machine[:16]), "--bin", s.Bin},
		env:   markedEnv(s, roleHolder),
		log:   l.logPath("holder-" + name),
		flags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWUTS,
		ready: true,
	}
}

// startServices starts etcd and the agents that do not run, and records them in s.
func (l *Lab) startServices(ctx context.Context, s *state) error {
	if err := l.startEtcd(ctx, s); err != nil {
		return err
	}
	if err := l.save(s); err != nil {
		return err
	}
	if s.Options.Etcd == "" {
		l.progress("etcd serves on " + s.Options.endpoint())
	} else {
		l.progress("etcd at " + s.Options.Etcd + " is passed on to " + s.Options.endpoint())
	}
	if s.Options.NoAgents {
		return nil
	}
	var group errgroup.Group
	for i := range s.Nodes {
		group.Go(func() error {
			if err := writeConflist(s, &s.Nodes[i]); err != nil {
				return err
			}
			return l.startAgent(ctx, s, &s.Nodes[i])
		})
	}
	if err := errors.Join(group.Wait(), l.save(s)); err != nil {
		return err
	}
	l.progress(fmt.Sprintf("agents ready: %d", len(s.Nodes)))
	return l.startRouters(ctx, s)
}

// startRouters starts the BGP daemons that do not run.
func (l *Lab) startRouters(ctx context.Context, s *state) error {
	errs := []error{l.startFabricBGP(ctx, s)}
	for i := range s.Routers {
		errs = append(errs, l.startRouter(ctx, s, &s.Routers[i]))
	}
	return errors.Join(append(errs, l.save(s))...)
}

// Down ends every process of the lab in dir and removes its folder. No lab is no error. It waits at most half a minute.
func Down(ctx context.Context, dir string) error {
	l := newLab(dir, nil)
	unlock, err := l.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	return errors.Join(l.clear(ctx), removeFile(l.lockPath()))
}

// Down ends the lab; see the function of that name.
func (l *Lab) Down(ctx context.Context) error {
	if err := Down(ctx, l.dir); err != nil {
		return err
	}
	released := l.guard.release()
	l.guard = guard{}
	return released
}

// clear does the work of Down for a caller that holds the lock.
func (l *Lab) clear(ctx context.Context) error {
	const timeout = 30 * time.Second
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	s, err := l.peek()
	if err != nil && !errors.Is(err, ErrNotUp) {
		return err // without the id nobody can say which processes are the lab's
	}
	if s != nil {
		if err := endAll(ctx, s); err != nil {
			return fmt.Errorf("end the lab's processes: %w", err)
		}
	}
	if err := os.RemoveAll(l.dir); err != nil {
		return fmt.Errorf("remove lab's folder: %w", err)
	}
	return nil
}

// endAll kills until nothing is left: first what works in the namespaces, then their holders. What was forked meanwhile is
// found by the next round. One that is ending bears no mark any more, so those found are remembered until they are gone.
func endAll(ctx context.Context, s *state) error {
	ending := map[process]struct{}{}
	return poll(ctx, func() bool {
		maps.DeleteFunc(ending, func(p process, _ struct{}) bool { return p.gone() })
		holders, others := marked(s.ID, s.Since)
		victims := others
		if len(others)+len(ending) == 0 {
			victims = holders
		}
		for _, p := range victims {
			ending[p] = struct{}{}
			_ = p.signal(unix.SIGKILL) // one that cannot be killed is met again, until the deadline
		}
		return len(holders)+len(others)+len(ending) == 0
	})
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove file: %w", err)
	}
	return nil
}

// self is the program that runs the lab's own daemons.
func self(bin string) string { return filepath.Join(bin, "muslin-lab") }

// markedEnv is what every daemon of the lab has in its environment.
func markedEnv(s *state, role string) []string {
	return []string{idVar + "=" + s.ID, roleVar + "=" + role, "PATH=" + searchPath(s.Bin), "HOME=/root", "LANG=C.UTF-8"}
}

// searchPath finds the lab's programs first, and those that an unprivileged PATH leaves out.
func searchPath(bin string) string {
	return bin + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
}

func randomHex(bytes int) string {
	b := make([]byte, bytes)
	_, _ = rand.Read(b) // never fails, crypto/rand
	return hex.EncodeToString(b)
}

// writeConflist writes the node's CNI configuration as its administrator would.
func writeConflist(s *state, n *Node) error {
	ipam := map[string]any{"type": "muslin-ipam"}
	if s.Options.DualStack {
		ipam["assign_ipv6"] = "true"
	}
	plugin := map[string]any{
		"type":                   "muslin",
		"nodename":               n.Name,
		"nodename_file_optional": true,
		"ipam":                   ipam,
		"capabilities":           map[string]any{annotationsCapability: true},
	}
	for name, value := range s.Options.etcdSettings() {
		plugin[strings.ToLower(name)] = value
	}
	conf := map[string]any{
		"name":       "k8s-pod-network",
		"cniVersion": "1.0.0",
		"plugins":    []any{plugin},
	}
	b, err := json.MarshalIndent(conf, "", "  ")
	if err != nil {
		return fmt.Errorf("encode CNI configuration of %s: %w", n.Name, err)
	}
	if err := os.WriteFile(n.path(filepath.Join(cniConfDir, cniList)), append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write CNI configuration of %s: %w", n.Name, err)
	}
	return nil
}

// path is where a file of the node is seen from the machine.
func (n *Node) path(inside string) string {
	return filepath.Join("/proc", fmt.Sprint(n.Holder.PID), "root", inside)
}
