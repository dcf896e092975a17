package cni

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/cni/netconf"
)

// How long STATUS may take: for the agent to answer, which it does from memory, and to ask etcd where there is none.
const (
	statusTimeout       = 5 * time.Second
	moduleStatusTimeout = 10 * time.Second
)

// Status reports whether an ADD would be served now (CNI spec 1.1, "STATUS"): whether the agent, which opens its socket only once the
// kernel is as it should be, can be connected to, and still has the node's name. It asks nothing of etcd, unless pods need not wait for an
// agent and none is there: then the IPAM module asks whether etcd answers, is ready and has this node. The error is a *types.Error. Its code is 50, or 51
// if an agent has gone without a word: nobody keeps the routes of pods that run up to date.
func (p *Plugin) Status(args *skel.CmdArgs) error { return netconf.AsCNI(p.status(args)) }

func (p *Plugin) status(args *skel.CmdArgs) error {
	conf, err := netconf.Parse(args.StdinData)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), moduleStatusTimeout)
	defer cancel()
	agent, err := dialAgent(statusTimeout)
	if err == nil {
		defer agent.close()
		if _, err := agent.anew(ctx, "ask the agent whether pods can be attached", attach.Request{Version: attach.Version, Verb: attach.Status}); err != nil {
			return notAvailable(err)
		}
		return delegate(ctx, "STATUS", &conf, args)
	}
	if conf.PolicyWait == netconf.NoWait && noAgent(err) {
		if err := moduleStatus(ctx, &conf, args); err != nil {
			return notAvailable(err)
		}
		return delegate(ctx, "STATUS", &conf, args)
	}
	code := uint(attach.CodeNotAvailable)
	if errors.Is(err, unix.ECONNREFUSED) { // one that ends in good order takes its socket away
		code = attach.CodeLimited
	}
	return failure(code, fmt.Errorf("see whether pods can be attached: %w", err), "the agent is not ready on this node: start it, or look at its log")
}

// moduleStatus asks the IPAM module.
func moduleStatus(ctx context.Context, conf *netconf.Conf, args *skel.CmdArgs) error {
	door, err := newModuleDoor(conf, args, nil)
	if err != nil {
		return err
	}
	return door.status(ctx)
}

// notAvailable is the error with the code that runtimes look for.
func notAvailable(err error) error {
	var told *attach.Error
	if !errors.As(err, &told) {
		return failure(attach.CodeNotAvailable, err, "")
	}
	return &attach.Error{Code: attach.CodeNotAvailable, Msg: told.Msg, Details: told.Details}
}
