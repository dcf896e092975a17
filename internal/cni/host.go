package cni

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/hostside"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/rtnl"
	"github.com/muslin-cni/muslin/internal/sysctl"
)

// programHost writes a workload's settings, neighbours and routes into the calling thread's network namespace, where no agent does
// it. They are the agent's own to the letter, so that one that starts later changes nothing.
func programHost(ctx context.Context, w hostside.Workload) error {
	want := kernel.NewState()
	w.Add(want)
	settings, err := sysctl.Open(sysctl.Root)
	if err != nil {
		return err
	}
	defer settings.Close()
	links, err := rtnl.Open()
	if err != nil {
		return err
	}
	defer links.Close()
	return errors.Join(
		settings.Apply(ctx, additions(want.Sysctls)),
		links.Neighs().Apply(ctx, additions(want.Neighs)),
		links.Routes().Apply(ctx, additions(want.Routes)), // the last: from here on there is traffic
	)
}

// confirmHost compares the calling thread's network namespace with what programHost writes, or an agent that ran here before. The error
// names what is missing.
func confirmHost(ctx context.Context, w hostside.Workload) error {
	want := kernel.NewState()
	w.Add(want)
	links, err := rtnl.Open()
	if err != nil {
		return err
	}
	defer links.Close()
	routes, err := links.Routes().List(ctx)
	if err != nil {
		return err
	}
	neighs, err := links.Neighs().List(ctx)
	if err != nil {
		return err
	}
	var lacking []string
	for k, r := range want.Routes {
		if routes[k] != r {
			lacking = append(lacking, fmt.Sprintf("the route %v dev %s", k.Dst, w.Dev.Name))
		}
	}
	for k, mac := range want.Neighs {
		if neighs[k] != mac {
			lacking = append(lacking, fmt.Sprintf("the neighbour %v lladdr %v dev %s", k.Addr, mac, w.Dev.Name))
		}
	}
	if len(lacking) == 0 {
		return nil
	}
	slices.Sort(lacking)
	return &attach.Error{
		Code: attach.CodeMissing, Msg: "on the host are missing " + strings.Join(lacking, "; "),
		Details: "delete the pod, or start the agent on this node, which puts them back",
	}
}

// additions are the changes that make all of want where there is nothing.
func additions[K, V comparable](want map[K]V) []kernel.Change[K, V] { return kernel.Diff(nil, want) }
