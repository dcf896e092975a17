package hosts

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/muslin-cni/muslin/internal/config"
	"github.com/muslin-cni/muslin/internal/ctl/cli"
	"github.com/muslin-cni/muslin/internal/doctor"
	"github.com/muslin-cni/muslin/internal/machineid"
	"github.com/muslin-cni/muslin/internal/startup"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
)

// examiner gathers what a doctor judges. It only looks.
type examiner struct {
	env     cli.Env
	root    string   // of the host's files; "/" outside a container
	proc    string   // where the host's processes are to be seen
	socket  string   // of the agent
	confDir string   // of network configurations, below root
	binDirs []string // of CNI programs, below root
}

const (
	factTimeout = 8 * time.Second // for one fact, so that nothing that hangs keeps the others
	factGrace   = time.Second     // for what was told to end, to say why
	etcdTimeout = 3 * time.Second // for one answer of etcd

	examTimeout = 25 * time.Second // for all facts together: some wait for others
)

// fact looks for one thing. What does not end in time is given up, and goes on by itself until this process ends.
func fact[T any](ctx context.Context, look func(context.Context) (T, error)) doctor.Fact[T] {
	ctx, cancel := context.WithTimeout(ctx, factTimeout)
	defer cancel()
	done := make(chan doctor.Fact[T], 1)
	go func() {
		v, err := look(ctx)
		done <- doctor.Fact[T]{Value: v, Err: err}
	}()
	select {
	case f := <-done:
		return f
	case <-ctx.Done():
	}
	select {
	case f := <-done:
		return f
	case <-time.After(factGrace):
		return doctor.Fact[T]{Err: fmt.Errorf("it was given up after %v", factTimeout)}
	}
}

// host is what the host's paths are below; "": this process sees them as they are.
func (x examiner) host() string {
	if filepath.Clean(x.root) == "/" {
		return ""
	}
	return x.root
}

// at is a path of the host, as this process sees it.
func (x examiner) at(path string) string { return filepath.Join(x.root, path) }

// view looks for everything, all at once.
func (x examiner) view(ctx context.Context) doctor.View {
	ctx, cancel := context.WithTimeout(ctx, examTimeout)
	defer cancel()
	v := doctor.View{Now: x.env.Now(), Looked: doctor.Folders{Conf: x.confDir, Bins: x.binDirs}}
	s := x.settingsInTime(ctx)
	v.Speaks = s.node.Backend == config.BGP
	v.Node = fact(ctx, func(context.Context) (string, error) { return x.name(s) })
	v.Machine = fact(ctx, func(context.Context) (string, error) { return x.machine(s.node.MachineIDFile).Ask() })
	var all sync.WaitGroup
	all.Go(func() {
		v.Etcd = fact(ctx, s.examine)
		v.Settings, _ = config.Effective(x.data(ctx, s, &v)) // what it cannot read the agent tells
		v.Routes = fact(ctx, routesOf(v.Settings))
		v.Ways = fact(ctx, waysTo(v.Targets()))
	})
	all.Go(func() {
		v.Host = fact(ctx, hostFacts)
		v.Sysctls = fact(ctx, x.sysctls(v.Host.Value))
	})
	all.Go(func() { v.Disks = fact(ctx, x.disks(s.node)) })
	all.Go(func() { v.Lacking = fact(ctx, x.lacking) })
	all.Go(func() { v.Boot = fact(ctx, x.bootSettings) })
	all.Go(func() { v.Chains = fact(ctx, listChains) })
	all.Go(func() { v.Legacy = fact(ctx, x.legacyChains) })
	all.Go(func() { v.Rival = fact(ctx, x.rival) })
	all.Go(func() { v.Processes = fact(ctx, x.watched) })
	all.Go(func() { v.NetworkManager = fact(ctx, x.networkManager) })
	all.Go(func() { v.Networkd = fact(ctx, x.networkd) })
	all.Go(func() { v.UFW = fact(ctx, x.ufw) })
	all.Go(func() { v.Agent = fact(ctx, x.agent) })
	all.Go(func() { v.Bins = fact(ctx, x.programs) })
	all.Go(func() { v.Set = fact(ctx, x.runtimeConf) })
	all.Go(func() { v.PodMTU = fact(ctx, x.podMTU(s.node.MTUFile)) })
	all.Go(func() {
		v.Conf = fact(ctx, x.configurations)
		v.Certificates = fact(ctx, func(context.Context) ([]doctor.Certificate, error) { return x.certificates(s, v.Conf.Value), nil })
	})
	all.Wait()
	return v
}

// name is the node's.
func (x examiner) name(s settings) (string, error) {
	if s.err != nil && s.node.NodeNameFile == "" {
		return "", s.err
	}
	cfg := s.node
	cfg.NodeNameFile = x.at(cfg.NodeNameFile)
	return startup.NodeName(cfg, s.get)
}

// machine is where this machine's id is looked for.
func (x examiner) machine(file string) machineid.Sources {
	from := machineid.Host(file)
	if file != "" {
		from.File = x.at(file)
	}
	from.Said, from.Firmware, from.Kept = x.at(from.Said), x.at(from.Firmware), x.at(from.Kept)
	for i := range from.System {
		from.System[i] = x.at(from.System[i])
	}
	if file != "" {
		from.Said = from.File // what Ask looks at first
	}
	return from
}

// settings are those of the node's agent.
type settings struct {
	get   config.Env // the environment, with the settings file behind it
	file  config.File
	node  config.Node
	etcd  store.Config
	err   error  // why etcd's settings make no sense
	owner string // whose they are
}

// settingsInTime is settings, which looks at processes and files: one that hangs, as some do with a dead disk, leaves this process's own environment.
func (x examiner) settingsInTime(ctx context.Context) settings {
	found := fact(ctx, func(context.Context) (settings, error) { return x.settings(), nil })
	if found.Err != nil {
		return settings{get: x.env.Getenv, err: fmt.Errorf("look for the agent's settings: %w", found.Err), owner: "muslinctl"}
	}
	return found.Value
}

// settings finds the agent's: in its own environment while it runs, else in that of its unit, else in ours. The paths that they name are those of who has
// them: of the agent, which may have mounts of its own, of the host, and of this process.
func (x examiner) settings() settings {
	env, root, owner := x.env.Getenv, x.host(), "muslinctl"
	if a, ok := x.agentProcess(); ok {
		env, root, owner = a.env, a.root, "agent"
	} else if unit := x.unitEnv(); unit != nil {
		env = func(name string) string { return cmp.Or(x.env.Getenv(name), unit[name]) }
		owner = "agent"
	}
	s := settings{owner: owner}
	s.file, _ = config.ReadFileBelow(root, env) // one that cannot be read keeps the agent from starting, and its log says so
	s.get = config.Local(env, s.file)
	s.node, s.err = config.FromEnv(s.get)
	var err error
	if owner == "agent" {
		s.etcd, err = store.FromEnv(s.get)
	} else {
		s.etcd, err = x.env.Etcd()
		root = ""
	}
	s.err = errors.Join(s.err, err)
	s.etcd.Timeout = etcdTimeout
	for _, file := range []*string{&s.etcd.TLS.CAFile, &s.etcd.TLS.CertFile, &s.etcd.TLS.KeyFile} {
		if *file != "" && root != "" {
			*file = filepath.Join(root, *file)
		}
	}
	return s
}

func (s settings) examine(ctx context.Context) ([]store.Member, error) {
	if len(s.etcd.Endpoints) == 0 && s.etcd.DiscoverySRV == "" && s.err != nil {
		return nil, s.err
	}
	return store.Examine(ctx, s.etcd)
}

// data reads what etcd holds into v, once it is known whether etcd answers, and returns where the dataplane's settings come from.
func (x examiner) data(ctx context.Context, s settings, v *doctor.View) config.Sources {
	from := config.Sources{Env: s.get, File: s.file}
	answers := false
	for _, m := range v.Etcd.Value {
		answers = answers || m.Err == nil
	}
	if v.Etcd.Err != nil || !answers {
		v.Data.Err = doctor.ErrNoEtcd
		return from
	}
	got := fact(ctx, func(ctx context.Context) (held, error) { return read(ctx, s.etcd, v.Node.Value) })
	if got.Err != nil {
		v.Data.Err = fmt.Errorf("%w: %w", doctor.ErrNoEtcd, got.Err)
		return from
	}
	v.Data.Value, from.Node, from.Global = got.Value.Data, got.Value.node, got.Value.global
	return from
}

// held is what etcd holds.
type held struct {
	doctor.Data
	node, global *api.FelixConfiguration
}

func read(ctx context.Context, cfg store.Config, node string) (d held, err error) {
	c, err := store.New(cfg)
	if err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	felixes := (*api.FelixConfiguration)(nil).KindOf()
	keys := []string{cli.ClusterKey(), api.IdentityKey(node), api.IPAMConfigKey, felixes.Key("", "default"), felixes.Key("", "node."+node)}
	ranges := make([]store.Range, len(keys))
	for i, k := range keys {
		ranges[i] = store.Range{Key: k}
	}
	if _, err := c.Revision(ctx); err != nil { // with it goes the time to connect
		return d, err
	}
	began := time.Now()
	got, _, err := c.Read(ctx, ranges...)
	if err != nil {
		return d, err
	}
	d.Took = time.Since(began)
	d.Config = api.DefaultIPAMConfig()
	d.Cluster = one[api.ClusterInformation](&d.Data, keys[0], got[0])
	d.Identity = one[api.NodeIdentity](&d.Data, keys[1], got[1])
	if stored := one[api.IPAMConfig](&d.Data, keys[2], got[2]); stored != nil {
		d.Config = *stored
	}
	d.global, d.node = one[api.FelixConfiguration](&d.Data, keys[3], got[3]), one[api.FelixConfiguration](&d.Data, keys[4], got[4])
	d.IPAM, err = ipam.LoadView(ctx, c)
	return d, err
}

// one is a value that may not be there; one that cannot be read is noted.
func one[T api.Value](d *doctor.Data, key string, kvs []store.KV) *T {
	e, err := store.One[T](key, kvs)
	if bad, ok := errors.AsType[*store.UnreadableError](err); ok {
		d.Bad = append(d.Bad, *bad)
		return nil
	}
	return e.Value
}
