package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

const (
	demoNodes   = 3
	podsPerNode = 2
	demoTimeout = 2 * time.Minute
)

// ErrUnreachable means that a check ran and not every way works. The report says which.
var ErrUnreachable = errors.New("not every way works")

// Demo brings up a lab beside the one in dir, attaches two pods to each of three nodes on two subnets, shows on w how they reach each
// other, encrypted between nodes or not, and takes everything down again, whatever happens. It fails unless the whole matrix holds.
func Demo(ctx context.Context, dir, bin string, wireGuard bool, w io.Writer) (err error) {
	ctx, cancel := context.WithTimeout(ctx, patient(demoTimeout))
	defer cancel()
	began := time.Now()
	say := func(text string) { fmt.Fprintf(w, "[%5.1fs] %s\n", time.Since(began).Seconds(), text) }
	dir = newLab(dir, nil).dir + "-demo"
	alone, err := tryLock(dir + ".running")
	if err != nil {
		return err
	}
	if alone == nil {
		return errors.New("another demo is running on this machine: wait for it")
	}
	defer func() { err = errors.Join(err, removeFile(dir+".running"), alone.Close()) }()
	if err := Down(ctx, dir); err != nil { // of one that was killed
		return err
	}
	options := Defaults()
	options.Nodes, options.Subnets, options.Mode, options.WireGuard = demoNodes, 2, CrossSubnet, wireGuard
	say("bringing up " + options.String())
	l, err := Up(ctx, Config{Dir: dir, Bin: bin, Options: options, Progress: say, Guarded: true})
	if err != nil {
		return err
	}
	defer func() {
		downErr := l.Down(context.WithoutCancel(ctx))
		say("the lab is down")
		err = errors.Join(err, downErr)
	}()
	return l.show(ctx, w, say)
}

// show is the demo in a lab that is up.
func (l *Lab) show(ctx context.Context, w io.Writer, say func(string)) error {
	var took []time.Duration
	for i := range demoNodes * podsPerNode {
		spec := PodSpec{
			Name:   fmt.Sprintf("pod-%d%c", i/podsPerNode+1, 'a'+i%podsPerNode),
			Node:   fmt.Sprintf("node-%d", i/podsPerNode+1),
			Labels: map[string]string{"app": "demo"},
		}
		pod, err := l.AddPod(ctx, spec)
		if err != nil {
			return err
		}
		say(fmt.Sprintf("%s on %s has %s (ADD took %s)", pod.Name, pod.Node, pod.Addr, milliseconds(pod.Took)))
		took = append(took, pod.Took)
	}
	say("trying every way by TCP and UDP, full-size packets between nodes")
	report, err := l.Check(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintln(w)
	report.WriteText(w)
	slices.Sort(took)
	fmt.Fprintf(w, "\nADD through libcni: min %s, median %s, max %s (%d pods)\n", milliseconds(took[0]),
		milliseconds((took[(len(took)-1)/2]+took[len(took)/2])/2), milliseconds(took[len(took)-1]), len(took))
	fmt.Fprint(w, "\nnode-1 $ ip route\n")
	if err := l.Exec(ctx, "node-1", Command{Args: []string{"ip", "route"}, Stdout: w, Stderr: w}); err != nil {
		return fmt.Errorf("show routes of node-1: %w", err)
	}
	fmt.Fprint(w, tryNext)
	if !report.OK {
		return fmt.Errorf("%w: %d of %d fail", ErrUnreachable, report.Failed(), len(report.Pairs))
	}
	return nil
}

func milliseconds(d time.Duration) string { return fmt.Sprintf("%.1f ms", d.Seconds()*1e3) }

const tryNext = `
To try it yourself, as root:
  bin/muslin-lab up --nodes 3 --subnets 2 --mode direct   # pods meet only within a subnet
  bin/muslin-lab pod add web --node node-1
  bin/muslin-lab pod add db --node node-2
  bin/muslin-lab pod exec web -- ip addr
  bin/muslin-lab check                                    # which ways work, and why others do not
  bin/muslin-lab exec node-1 -- ip route
  bin/muslin-lab logs node-1
  bin/muslin-lab down

`
