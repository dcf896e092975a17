// Command bench measures what a pod's ADD and DEL cost against the least that they could cost.
//
// The floor is a process of its own that sends the netlink messages of an attach and nothing else, plus one etcd transaction
// of three keys with values as large as those of a real ADD. Floor and plugin run in alternation on one lab node with an embedded
// etcd; the ratio is the median of the rounds' own ratios. Absolute times belong to the machine, ratios are what to keep.
//
// What addresses alone cost, and what the operator's command does, are measured apart, each against an etcd of its own: see addressBench
// and operatorBench.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/muslin-cni/muslin/internal/lab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	inner := flag.String("inner", "", "folder of the programs; measure here, inside a node (used by bench itself)")
	what := flag.String("what", "attach", "what to do there: attach, routes, fill NODES ENDPOINTS, peering or speak PEERS")
	bin := flag.String("bin", "bin", "folder of the built programs")
	addresses := flag.Bool("addresses", false, "measure only what handing out addresses costs; needs no root")
	operator := flag.Bool("operator", false, "measure only the operator's command; needs no root")
	memory := flag.Bool("memory", false, "measure only the agent's memory")
	traffic := flag.Bool("traffic", false, "measure only traffic between pods")
	routes := flag.Bool("routes", false, "measure only how changes of the datastore become routes")
	peering := flag.Bool("bgp", false, "measure only how long BGP takes to a full table, against BIRD")
	flag.Parse()
	if *inner != "" {
		return runInside(ctx, *inner, *what)
	}
	fmt.Printf("%d rounds, floor and muslin by turns; times per operation, median of the rounds\n", rounds)
	all := !*addresses && !*operator && !*routes && !*traffic && !*memory && !*peering
	if all {
		if err := outer(ctx, *bin); err != nil {
			return err
		}
	}
	if all || *routes {
		if err := onRoutes(ctx, *bin); err != nil {
			return err
		}
	}
	if all || *peering {
		if err := onPeering(ctx); err != nil {
			return err
		}
	}
	if all || *memory {
		if err := onMemory(ctx, *bin); err != nil {
			return err
		}
	}
	var cs []comparison
	if all || *traffic {
		more, err := runTraffic(ctx, *bin)
		if err != nil {
			return err
		}
		cs = append(cs, more...)
	}
	if all || *addresses {
		more, err := runAddresses(ctx)
		if err != nil {
			return err
		}
		cs = append(cs, more...)
	}
	if all || *operator {
		more, err := runOperator(ctx, *bin)
		if err != nil {
			return err
		}
		cs = append(cs, more...)
	}
	return printTable(os.Stdout, cs)
}

// runInside does what the command line says on a node of a lab.
func runInside(ctx context.Context, bin, what string) error {
	var nodes, peers int
	var endpoints bool
	if _, err := fmt.Sscanf(what, "speak %d", &peers); err == nil {
		return runSpeaker(ctx, peers)
	}
	switch what {
	case "attach":
		return runInner(ctx, bin)
	case "routes":
		return runRoutes(ctx)
	case "peering":
		return runPeering(ctx)
	}
	if _, err := fmt.Sscanf(what, "fill %d %t", &nodes, &endpoints); err != nil {
		return fmt.Errorf("-what %q: %w", what, err)
	}
	return runFill(ctx, nodes, endpoints)
}

// outer measures attaches inside a lab of one node.
func outer(ctx context.Context, bin string) error {
	o := lab.Defaults()
	o.Nodes = 1
	return withLab(ctx, bin, o, func(l *lab.Lab, work string) error { return inside(ctx, l, work, "attach") })
}

// withLab brings a lab up, of which every node sees the programs in the folder work, and takes it down again after measure.
func withLab(ctx context.Context, bin string, o lab.Options, measure func(l *lab.Lab, work string) error) (err error) {
	work, err := os.MkdirTemp("", "muslin-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	if err := collect(ctx, bin, work); err != nil {
		return err
	}
	l, err := lab.Up(ctx, lab.Config{Dir: filepath.Join("/run", filepath.Base(work)), Bin: work, Options: o, Guarded: true})
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err = errors.Join(err, l.Down(ctx))
	}()
	return measure(l, work)
}

// inside runs this very program on the lab's first node.
func inside(ctx context.Context, l *lab.Lab, work, what string) error {
	return l.Exec(ctx, "node-1", lab.Command{
		Args: []string{filepath.Join(work, "bench"), "-inner", work, "-what", what}, Stdout: os.Stdout, Stderr: os.Stderr,
	})
}

// collect puts the programs, the floor and this very program into one folder, which every node of the lab sees.
func collect(ctx context.Context, bin, work string) error {
	for _, p := range []string{"muslin", "muslin-ipam", "muslin-node", "muslin-lab"} {
		if err := copyFile(filepath.Join(bin, p), filepath.Join(work, p)); err != nil {
			return fmt.Errorf("%w (build first: make build)", err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := copyFile(self, filepath.Join(work, "bench")); err != nil {
		return err
	}
	return buildFloor(ctx, work, "floor")
}

// buildFloor makes one of the programs below this package's folder, as the others are built.
func buildFloor(ctx context.Context, dir, program string) error {
	build := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, program), "./test/bench/"+program)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w: %s", program, err, out)
	}
	return nil
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o755)
}
