package cni

import (
	"context"
	"time"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/attachlock"
	"github.com/muslin-cni/muslin/internal/cni/netconf"
	"github.com/muslin-cni/muslin/internal/hostside"
)

// door is a way to the IPAM handler: the agent's socket, or the module as a program. Both do the same work in etcd. The host's side
// of the pod is written by the agent behind the first, and by this process behind the second.
type door interface {
	register(context.Context, attach.Request) answer             // begin to allocate, and to write the endpoint
	finish(context.Context, hostside.Workload) error             // return when the host's side is in the kernel
	release(context.Context, attach.Request) error               // free the addresses, delete the endpoint
	query(context.Context, attach.Request) (attach.Reply, error) // answer a CHECK, GC or Free
	confirm(context.Context, hostside.Workload) error            // after a CHECK: is the host's side in the kernel
	close()
}

// answer waits for what a door was asked for. It is called once, by whoever asked.
type answer func() (attach.Reply, error)

// open chooses the door. Only an agent that cannot be connected to is passed by; once a request has been sent, its door stays. The
// module holds lock too, nil for none: should it outlive this process, no later command overtakes it.
func (p *Plugin) open(conf *netconf.Conf, req attach.Request, args *skel.CmdArgs, lock *attachlock.Lock) (door, error) {
	agent, err := dialAgent(p.Limits.Turn)
	if err == nil {
		agent.wait = time.Duration(conf.PolicyTimeout) * time.Second
		return agent, nil
	}
	if !noAgent(err) {
		return nil, failure(attach.CodeTryAgain, err, "look at the agent's log on this node")
	}
	if (req.Verb == attach.Add || req.Verb == attach.Check) && conf.PolicyWait != netconf.NoWait {
		return nil, failure(attach.CodeTryAgain, err,
			"the agent is not running on this node: start it (its daemon set's pod, or muslin-node), the pod is tried again by itself")
	}
	return newModuleDoor(conf, args, lock)
}
