// Command bench measures what Muslin costs against the least that it could cost, and makes one page of it.
//
// Floor and subject run by turns, ten rounds of each, and the ratio is the median of the rounds' own ratios. Absolute times belong to the machine,
// ratios are what to keep. What is measured is a list of parts (see parts), each chosen by a flag of its name; without any, all are. With -record
// the page is kept in RESULTS.md, each part between two markers and with the commit that it was measured at; what stands around the markers is
// written by hand and stays. -profile measures nothing against a floor, but says where the time of an ADD goes.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
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

// bench is what every part needs to know.
type bench struct {
	bin    string // folder of the built programs
	rounds int
}

// part is one table of the page.
type part struct {
	name  string // of its flag and its markers
	about string
	run   func(context.Context, bench) ([]row, error)
}

func parts() []part {
	return []part{
		{"serial", "ADD and DEL, one by one", onNode("serial")},
		{"parallel", "ADD and DEL, 16 in parallel", onNode("parallel")},
		{"requests", "what ADD and DEL ask of etcd", onNode("requests")},
		{"cpu", "the processor's time for ADD and DEL", onNode("cpu")},
		{"process", "the start of the plugin's process, and the sizes of the programs", onNode("process")},
		{"addresses", "handing out addresses; needs no root", runAddresses},
		{"bound", "addresses of ten nodes on one etcd that is slower than they are", runBound},
		{"fleet", "addresses of ten nodes that share the processors with their etcd; needs no root", runFleet},
		{"start", "an agent's start, until it is ready", runStart},
		{"memory", "the agent's memory", runMemory},
		{"routes", "how changes of the datastore become routes", runRoutesPart},
		{"traffic", "traffic between pods", runTraffic},
		{"bgp", "BGP to a full table, against BIRD", runPeeringPart},
		{"operator", "the operator's command; needs no root", runOperator},
		{"policy", "compiling policy, and what it costs a packet", runPolicy},
	}
}

// options are the command line.
type options struct {
	bench
	inner, what          string
	all, record, profile bool
	results              string
	chosen               map[string]*bool // parts, by name
}

func readOptions() options {
	o := options{chosen: map[string]*bool{}}
	flag.StringVar(&o.inner, "inner", "", "folder of the programs; measure here, inside a node (used by bench itself)")
	flag.StringVar(&o.what, "what", "", "what to do there")
	flag.StringVar(&o.bin, "bin", "bin", "folder of the built programs")
	flag.IntVar(&o.rounds, "rounds", 10, "how often floor and subject take turns")
	flag.BoolVar(&o.all, "all", false, "measure every part: as without any of their flags")
	flag.BoolVar(&o.record, "record", false, "keep what is measured in -results, with commit, date and machine")
	flag.StringVar(&o.results, "results", "test/bench/RESULTS.md", "the page to keep it in")
	flag.BoolVar(&o.profile, "profile", false, "say where the time of an ADD goes, and measure nothing else")
	for _, p := range parts() {
		o.chosen[p.name] = flag.Bool(p.name, false, "measure only "+p.about)
	}
	flag.Parse()
	return o
}

// wanted are the parts that the command line names, or all.
func (o options) wanted() (out []part) {
	for _, p := range parts() {
		if *o.chosen[p.name] {
			out = append(out, p)
		}
	}
	if o.all || len(out) == 0 {
		return parts()
	}
	return out
}

func run(ctx context.Context) error {
	o := readOptions()
	if o.inner != "" {
		return runInside(ctx, bench{o.inner, o.rounds}, o.what)
	}
	if o.profile {
		return runProfile(ctx, o.bench)
	}
	fmt.Printf("%d rounds, floor and muslin by turns; medians\n", o.rounds)
	for _, p := range o.wanted() {
		began := time.Now()
		rows, err := p.run(ctx, o.bench)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		fmt.Printf("\n%s: %s (%v)\n", p.name, p.about, time.Since(began).Round(time.Second))
		if err := printTable(os.Stdout, rows); err != nil {
			return err
		}
		if !o.record {
			continue
		}
		if err := record(ctx, o.results, p.name, rows); err != nil {
			return err
		}
	}
	return nil
}

// onNode is a part that is measured inside a lab of one node.
func onNode(what string) func(context.Context, bench) ([]row, error) {
	return func(ctx context.Context, b bench) (rows []row, err error) {
		o := lab.Defaults()
		o.Nodes = 1
		err = withLab(ctx, b.bin, o, func(l *lab.Lab, work string) (err error) {
			rows, err = b.inside(ctx, l, work, what)
			return err
		})
		return rows, err
	}
}

// runInside does what the command line says on a node of a lab, and says as JSON what came of it.
func runInside(ctx context.Context, b bench, what string) error {
	var peers int
	if _, err := fmt.Sscanf(what, "speak %d", &peers); err == nil {
		return runSpeaker(ctx, peers)
	}
	var share float64
	if _, err := fmt.Sscanf(what, "etcd %g", &share); err == nil {
		return runEtcd(ctx, b.bin, share)
	}
	rows, err := measureInside(ctx, b, what)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(rows)
}

func measureInside(ctx context.Context, b bench, what string) ([]row, error) {
	var nodes, pods int
	var endpoints bool
	switch what {
	case "serial", "parallel", "requests", "cpu", "process", "profile":
		return runInner(ctx, b, what)
	case "routes":
		return runRoutes(ctx, b)
	case "peering":
		return runPeering(ctx)
	}
	if _, err := fmt.Sscanf(what, "fill %d %t %d", &nodes, &endpoints, &pods); err == nil {
		return nil, runFill(ctx, b, filling{nodes, endpoints, pods})
	}
	if _, err := fmt.Sscanf(what, "start %d", &nodes); err == nil {
		return startInside(ctx, b, nodes)
	}
	return nil, fmt.Errorf("-what %q: there is no such thing", what)
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

// inside runs this very program on the lab's first node, and returns what it has measured there.
func (b bench) inside(ctx context.Context, l *lab.Lab, work, what string, env ...string) (rows []row, err error) {
	var out bytes.Buffer
	err = l.Exec(ctx, "node-1", lab.Command{
		Args: []string{filepath.Join(work, "bench"), "-inner", work, "-rounds", fmt.Sprint(b.rounds), "-what", what}, Stdout: &out, Stderr: os.Stderr, Env: env,
	})
	if err != nil {
		return nil, err
	}
	return rows, json.Unmarshal(out.Bytes(), &rows)
}

// collect puts the programs, the floors and this very program into one folder, which every node of the lab sees.
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
	return errors.Join(buildFloor(ctx, work, "floor"), buildFloor(ctx, work, "etcdfloor"))
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

// copyFile copies a program in small pieces, as whoever unpacks a container's image does: of a file that is written at once the kernel keeps, and maps, pieces
// of 2 MiB, and then all of a program is in memory as soon as a tenth is used.
func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.CopyBuffer(struct{ io.Writer }{out}, struct{ io.Reader }{in}, make([]byte, 32<<10)) // without the kernel's own copying, which takes it whole
	return err
}
