package module

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/cni/netconf"
	"github.com/muslin-cni/muslin/internal/register"
)

// Check reports whether etcd still holds what Add gave (CNI spec 1.1, "CHECK"): for our own plugin with the endpoint, and then it prints
// what it found; for any other the addresses, which must be those of the result that the runtime passes on. It changes nothing.
// Errors are *types.Error.
func (m *Module) Check(args *skel.CmdArgs) error {
	return m.run(attach.Check, args, func(ctx context.Context, c *command) error {
		if c.conf.Muslin == nil {
			return c.checkAllocation(ctx, args.StdinData)
		}
		reply, err := c.handler.Check(ctx, c.req)
		if err != nil {
			return err
		}
		return m.print(reply)
	})
}

// checkAllocation holds the container's addresses in etcd to those of the result, in which other modules' may be too.
func (c *command) checkAllocation(ctx context.Context, stdin []byte) error {
	prev, err := netconf.PrevResult(stdin)
	if err != nil {
		return err
	}
	addrs, err := c.handler.CheckAllocation(ctx, c.req)
	if err != nil {
		return err
	}
	listed := map[netip.Addr]bool{}
	for _, ip := range prev.IPs {
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			listed[a.Unmap()] = true
		}
	}
	for _, a := range addrs {
		if !listed[a] {
			return &attach.Error{
				Code: attach.CodeMissing, Msg: fmt.Sprintf("check container %s: it has the address %v in etcd, and its result does not", c.req.ContainerID, a),
				Details: "delete the pod; what replaces it is attached anew",
			}
		}
	}
	return nil
}

// GC frees what this node has of the network beyond the attachments that live (CNI spec 1.1, "GC"). For our own plugin, which removes
// the interfaces in between, it does either half and prints what is stale. Errors are *types.Error.
func (m *Module) GC(args *skel.CmdArgs) error {
	return m.run(attach.GC, args, func(ctx context.Context, c *command) error {
		switch {
		case c.conf.Muslin == nil:
			return c.collect(ctx, args.StdinData)
		case c.req.Verb == attach.Free:
			if err := c.handler.Free(ctx, c.req); err != nil {
				return err
			}
			return m.print(attach.Reply{})
		}
		stale, err := c.handler.Stale(ctx, c.req)
		if err != nil {
			return err
		}
		return m.print(attach.Reply{Stale: stale})
	})
}

// collect frees the addresses of what is stale. The interfaces are the main plugin's.
func (c *command) collect(ctx context.Context, stdin []byte) (err error) {
	if c.req.Valid, err = netconf.ValidAttachments(stdin); err != nil {
		return err
	}
	if c.req.Stale, err = c.handler.Stale(ctx, c.req); err != nil {
		return err
	}
	return c.handler.Free(ctx, c.req)
}

// Status reports whether an Add would be served now (CNI spec 1.1, "STATUS"): whether etcd answers, is ready and has this node. The error
// is a *types.Error with code 50.
func (m *Module) Status(args *skel.CmdArgs) error {
	conf, err := netconf.ParseModule(args.StdinData)
	if err != nil {
		return netconf.AsCNI(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), m.Timeout)
	defer cancel()
	err = with(&conf, nil, func(h *register.Handler) error { return h.Ready(ctx) })
	var told *attach.Error
	if errors.As(err, &told) && told.Code != attach.CodeNotAvailable {
		err = &attach.Error{Code: attach.CodeNotAvailable, Msg: told.Msg, Details: told.Details} // a node that is not set up yet, say
	}
	return netconf.AsCNI(err)
}

// print answers our own plugin.
func (m *Module) print(reply attach.Reply) error {
	if err := json.NewEncoder(m.Stdout).Encode(reply); err != nil {
		return &attach.Error{Code: attach.CodeIO, Msg: "print answer: " + err.Error()}
	}
	return nil
}
