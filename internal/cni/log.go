package cni

import (
	"errors"
	"log/slog"
	"os"
	"time"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/cni/cnilog"
	"github.com/muslin-cni/muslin/internal/cni/netconf"
)

// logged carries a command out and logs how it ended. The configuration's own text is never logged: it may hold tokens.
func (p *Plugin) logged(command string, args *skel.CmdArgs, do func(*skel.CmdArgs, *slog.Logger) error) error {
	log, file := cnilog.New(netconf.LogOf(args.StdinData), os.Stderr,
		slog.String("program", "muslin"), slog.String("command", command), slog.String("container", args.ContainerID), slog.String("interface", args.IfName), slog.Int("pid", os.Getpid()))
	defer func() { _ = file.Close() }() // what is not in the file yet never will be
	start := time.Now()
	log.Debug("begin", "netns", args.Netns, "args", args.Args)
	err := do(args, log)
	took := slog.Duration("took", time.Since(start).Round(time.Microsecond))
	if err == nil {
		log.Info("done", took)
		return nil
	}
	code := uint(attach.CodeInternal)
	var told *attach.Error
	if errors.As(err, &told) {
		code = told.Code
	}
	log.Error("failed", took, "code", code, "error", err)
	return err
}
