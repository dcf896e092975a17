package agent

import (
	"context"

	"github.com/muslin-cni/muslin/internal/config"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/reconcile"
	"github.com/muslin-cni/muslin/internal/rtnl"
	"github.com/muslin-cni/muslin/internal/sysctl"
	"github.com/muslin-cni/muslin/internal/xtables"
)

// settings are the kernel's, set by messages where there are such, else by files.
type settings struct {
	*sysctl.Table
	messages rtnl.Settings
}

// Apply sets settings. Errors are those of the files.
func (s settings) Apply(ctx context.Context, changes []kernel.Change[kernel.SysctlKey, string]) error {
	return s.Table.Apply(ctx, s.messages.Apply(ctx, changes))
}

// openKernel opens every kernel table. Which iptables to use is a setting, so etcd has been read by now.
func (a *Agent) openKernel(ctx context.Context) error {
	global, err := felixConfig(ctx, a.store, "default")
	if err != nil {
		return err
	}
	node, err := felixConfig(ctx, a.store, "node."+a.node)
	if err != nil {
		return err
	}
	d, _ := config.Effective(config.Sources{Env: a.env, File: a.file, Node: node, Global: global}) // problems are said by the loop
	a.backend = d.IptablesBackend
	a.servers.begin(ctx, d.WireGuard.Hosts)
	sysctls, err := sysctl.Open(sysctl.Where())
	if err != nil {
		return err
	}
	sets, err := xtables.OpenSets()
	if err != nil {
		return err
	}
	chains, err := xtables.OpenChains(ctx, xtables.Backend(a.backend))
	if err != nil {
		return err
	}
	a.chains = append(a.chains, chains)
	tables := reconcile.Tables{
		Sysctls: settings{sysctls, a.rtnl.Settings()}, Links: a.rtnl.Links(), WGs: a.wireguard.Devices(), Peers: a.wireguard.Peers(), Addrs: a.rtnl.Addrs(), Neighs: a.rtnl.Neighs(), FDB: a.rtnl.FDB(),
		Sets: sets, Routes: a.rtnl.Routes(), Rules: a.rtnl.Rules(), Chains: chains,
	}
	if a.noIPv6 == "" {
		chains6, err := chains.IPv6(ctx)
		if err != nil {
			a.noIPv6 = err.Error()
		} else {
			tables.Chains6 = chains6
			a.chains = append(a.chains, chains6)
		}
	}
	if a.damage, err = chains.Watch(a.log); err != nil {
		return err
	}
	a.kernel = reconcile.New(tables, a.log)
	return ctx.Err()
}
