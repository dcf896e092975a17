package cni

import (
	"context"
	"errors"

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

// additions are the changes that make all of want where there is nothing.
func additions[K, V comparable](want map[K]V) []kernel.Change[K, V] { return kernel.Diff(nil, want) }
