package cni

import (
	"context"
	"fmt"
	"time"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/cni/netconf"
)

// statusTimeout bounds STATUS, which runtimes ask for often.
const statusTimeout = time.Second

// Status reports whether an ADD would be served now (CNI spec 1.1, "STATUS"): whether the agent, which opens its socket only once the
// kernel is as it should be, can be connected to. It asks nothing of etcd. The error is a *types.Error with code 50.
func (p *Plugin) Status(args *skel.CmdArgs) error { return netconf.AsCNI(p.status(args)) }

func (p *Plugin) status(args *skel.CmdArgs) error {
	conf, err := netconf.Parse(args.StdinData)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), statusTimeout)
	defer cancel()
	agent, err := dialAgent(ctx, statusTimeout)
	if err == nil {
		agent.close()
		return delegate(ctx, "STATUS", &conf, args)
	}
	if conf.PolicyWait == netconf.NoWait && noAgent(err) {
		return delegate(ctx, "STATUS", &conf, args) // pods do not wait for an agent
	}
	return failure(attach.CodeNotAvailable, fmt.Errorf("see whether pods can be attached: %w", err), "the agent is not ready on this node: start it, or look at its log")
}
