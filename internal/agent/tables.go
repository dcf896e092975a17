package agent

import (
	"context"
	"errors"

	"github.com/muslin-cni/muslin/internal/config"
	"github.com/muslin-cni/muslin/internal/reconcile"
	"github.com/muslin-cni/muslin/internal/sysctl"
	"github.com/muslin-cni/muslin/internal/xtables"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// openKernel opens every kernel table. Which iptables to use is a setting, so etcd has been read by now.
func (a *Agent) openKernel(ctx context.Context) error {
	global, err := a.felixConfig(ctx, "default")
	if err != nil {
		return err
	}
	node, err := a.felixConfig(ctx, "node."+a.node)
	if err != nil {
		return err
	}
	d, _ := config.Effective(a.env, global, node) // problems are said by the loop
	a.backend = d.IptablesBackend
	sysctls, err := sysctl.Open("/proc/sys")
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
	tables := reconcile.Tables{
		Sysctls: sysctls, Links: a.rtnl.Links(), Addrs: a.rtnl.Addrs(), Neighs: a.rtnl.Neighs(), FDB: a.rtnl.FDB(),
		Sets: sets, Routes: a.rtnl.Routes(), Chains: chains,
	}
	if a.noIPv6 == "" {
		chains6, err := chains.IPv6(ctx)
		if err != nil {
			a.noIPv6 = err.Error()
		} else {
			tables.Chains6 = chains6
		}
	}
	if a.chains, err = chains.Watch(a.log); err != nil {
		return err
	}
	a.kernel = reconcile.New(tables, a.log)
	return ctx.Err()
}

func (a *Agent) felixConfig(ctx context.Context, name string) (*api.FelixConfiguration, error) {
	e, err := store.Get[api.FelixConfiguration](ctx, a.store, (*api.FelixConfiguration)(nil).KindOf().Key("", name))
	var unreadable *store.UnreadableError
	if errors.Is(err, store.ErrNotFound) || errors.As(err, &unreadable) { // the loop names what cannot be read
		return nil, nil
	}
	return e.Value, err
}
