// Package module answers CNI commands as IPAM module, straight against etcd.
//
// Called by our own network plugin, which hands over its whole request, it does what the agent does for that: addresses and
// endpoint in one transaction. Called by any other plugin it hands out addresses and writes no endpoint.
package module

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/cni/cnilog"
	"github.com/muslin-cni/muslin/internal/cni/netconf"
	"github.com/muslin-cni/muslin/internal/fault"
	"github.com/muslin-cni/muslin/internal/machineid"
	"github.com/muslin-cni/muslin/internal/register"
	"github.com/muslin-cni/muslin/pkg/store"
)

// DefaultTimeout bounds a command. One call of etcd has a shorter limit of its own, but there are several when others write
// the same keys.
const DefaultTimeout = 30 * time.Second

// Module answers CNI commands.
type Module struct {
	Timeout time.Duration // of one command
	Stdout  io.Writer     // for results
}

// Add gives the container addresses and prints them. Repeated, it prints the same ones. Errors are *types.Error.
func (m *Module) Add(args *skel.CmdArgs) error {
	return m.run(attach.Add, args, func(ctx context.Context, c *command) error {
		res, err := c.add(ctx)
		if err != nil {
			return err
		}
		printable, err := res.GetAsVersion(c.conf.ResultVersion())
		if err != nil {
			return &attach.Error{Code: attach.CodeBadVersion, Msg: err.Error()}
		}
		if err := fault.At(fault.ModuleAddDone); err != nil {
			return err
		}
		if err := printable.PrintTo(m.Stdout); err != nil {
			return err
		}
		return fault.At(fault.ModuleAddPrinted)
	})
}

// Del takes back what Add gave. It succeeds if there is nothing to take back. Errors are *types.Error.
func (m *Module) Del(args *skel.CmdArgs) error {
	return m.run(attach.Del, args, func(ctx context.Context, c *command) error { return c.del(ctx) })
}

// command is one CNI command, read.
type command struct {
	conf    netconf.Module
	req     attach.Request
	handler *register.Handler
}

// run reads the command and calls do on it with the connection to etcd open.
func (m *Module) run(verb attach.Verb, args *skel.CmdArgs, do func(context.Context, *command) error) error {
	log, file := cnilog.New(netconf.LogOf(args.StdinData), os.Stderr,
		slog.String("program", "muslin-ipam"), slog.String("command", string(verb)), slog.String("container", args.ContainerID), slog.Int("pid", os.Getpid()))
	defer func() { _ = file.Close() }() // what is not in the file yet never will be
	start := time.Now()
	err := m.carryOut(verb, args, log, do)
	took := slog.Duration("took", time.Since(start).Round(time.Microsecond))
	if err != nil {
		log.Error("failed", took, "error", err)
		return netconf.AsCNI(err)
	}
	log.Info("done", took)
	return nil
}

// carryOut is run without the log.
func (m *Module) carryOut(verb attach.Verb, args *skel.CmdArgs, log *slog.Logger, do func(context.Context, *command) error) error {
	conf, err := netconf.ParseModule(args.StdinData)
	if err != nil {
		return err
	}
	req, err := request(&conf, verb, args)
	if err != nil {
		return err
	}
	timeout := m.Timeout
	if len(req.ReadinessGates) > 0 {
		timeout += attach.ReadinessTimeout
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return with(&conf, log, func(h *register.Handler) error { return do(ctx, &command{conf: conf, req: req, handler: h}) })
}

// with opens the connection to etcd for as long as do runs.
func with(conf *netconf.Module, log *slog.Logger, do func(*register.Handler) error) error {
	node, err := conf.Node.Name()
	if err != nil {
		return err
	}
	machine, err := machineid.Host(os.Getenv("MUSLIN_MACHINE_ID_FILE")).Ask()
	if err != nil && !errors.Is(err, machineid.ErrNone) { // without an id, only a name that is nobody's will do
		return &attach.Error{Code: attach.CodeIO, Msg: err.Error()}
	}
	client, err := connect(conf, os.Getenv)
	if err != nil {
		return err
	}
	defer client.Close()
	return do(register.New(register.Config{Client: client, Node: node, Machine: machine, Log: log, PodFacts: podFacts(conf)}))
}

// request is what our own plugin hands over, else what the configuration and the environment say.
func request(conf *netconf.Module, verb attach.Verb, args *skel.CmdArgs) (attach.Request, error) {
	if conf.Muslin == nil {
		return conf.Request(verb, args)
	}
	same := conf.Muslin.Verb == verb || conf.Muslin.Verb == attach.Free && verb == attach.GC
	if conf.Muslin.Version != attach.Version || !same {
		return attach.Request{}, &attach.Error{
			Code:    attach.CodeBadConfig,
			Msg:     fmt.Sprintf("read request: it is %q of version %d, want %q of version %d", conf.Muslin.Verb, conf.Muslin.Version, verb, attach.Version),
			Details: "install muslin and muslin-ipam from the same release",
		}
	}
	return *conf.Muslin, nil
}

func (c *command) add(ctx context.Context) (*types100.Result, error) {
	res := &types100.Result{CNIVersion: types100.ImplementedSpecVersion}
	if c.conf.Muslin == nil {
		addrs, err := c.handler.Allocate(ctx, c.req)
		for _, a := range addrs {
			res.IPs = append(res.IPs, &types100.IPConfig{Address: ipNet(a)})
			if c.conf.Type == "calico" { // takes a route as the sign to make the host's
				res.Routes = append(res.Routes, &types.Route{Dst: ipNet(a)})
			}
		}
		return res, err
	}
	reply, err := c.handler.Add(ctx, c.req)
	for _, a := range reply.Addrs {
		res.IPs = append(res.IPs, &types100.IPConfig{Interface: types100.Int(0), Address: ipNet(netip.PrefixFrom(a, a.BitLen()))})
	}
	res.Interfaces = []*types100.Interface{{Name: c.req.IfName, Mac: reply.MAC, Sandbox: c.req.Netns}}
	return res, err
}

func (c *command) del(ctx context.Context) error {
	var err error
	if c.conf.Muslin == nil {
		err = c.handler.Release(ctx, c.req)
	} else {
		err = c.handler.Del(ctx, c.req)
	}
	if err != nil {
		return err
	}
	return fault.At(fault.ModuleDelDone)
}

// connect prepares the connection to etcd. A key of the configuration beats its environment variable.
func connect(conf *netconf.Module, getenv func(string) string) (*store.Client, error) {
	cfg, err := store.FromEnv(conf.Over(getenv))
	if err != nil {
		return nil, badSettings(err)
	}
	client, err := store.New(cfg)
	if err != nil {
		return nil, badSettings(err)
	}
	return client, nil
}

func badSettings(err error) error {
	return &attach.Error{
		Code: attach.CodeBadConfig, Msg: fmt.Sprintf("connect to etcd: %v", err),
		Details: "the settings are the keys etcd_… of the network configuration, else the variables ETCD_…",
	}
}

// ipNet is a prefix as the CNI library takes it.
func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
