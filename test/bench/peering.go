package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/muslin-cni/muslin/internal/bgp"
	"github.com/muslin-cni/muslin/internal/peering"
)

const (
	peeringRounds = 3
	peeringPort   = 179 // in a network namespace of its own
	peeringAS     = 64512
	// peeringRest is how long speakers are left alone between rounds: by then they take a session again.
	peeringRest = 4 * time.Second
	// gathering is how long the agent waits for more of what peers say before it looks, at least, gatheringShare times as long as the last look took, and gatheringMost at most.
	gathering      = 100 * time.Millisecond
	gatheringShare = 4
	gatheringMost  = time.Second
)

// peeringSizes are peers and routes of each.
func peeringSizes() [][2]int { return [][2]int{{10, 1000}, {100, 100}, {100, 1000}} }

// receiver is what a round has measured of one receiver.
type receiver struct {
	full, spread time.Duration // to all routes, from its start and from its first route
	cpu          time.Duration
	memory       int64 // bytes, at most
}

// runPeeringPart measures how long a node takes to learn what its peers have to say, and what that costs it, with BIRD in the same place by turns. Every
// peer is a BIRD of its own; all are in one network namespace, on addresses of its loopback device.
func runPeeringPart(ctx context.Context, _ bench) (rows []row, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	inner := exec.CommandContext(ctx, self, "-inner", "none", "-what", "peering")
	inner.Stderr = os.Stderr
	inner.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	out, err := inner.Output()
	if err != nil {
		return nil, err
	}
	return rows, json.Unmarshal(out, &rows)
}

// runPeering is runPeeringPart in the namespace.
func runPeering(ctx context.Context) (out []row, err error) {
	for _, args := range [][]string{{"link", "set", "lo", "up"}, {"address", "add", "10.9.0.1/16", "dev", "lo"}} { // the whole range is local then
		if err := ip(ctx, args...); err != nil {
			return nil, err
		}
	}
	dir, err := os.MkdirTemp("", "muslin-bench-bgp-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	for _, size := range peeringSizes() {
		birds, ours, err := peeringRow(ctx, filepath.Join(dir, fmt.Sprintf("%dx%d", size[0], size[1])), size[0], size[1])
		if err != nil {
			return nil, err
		}
		out = append(out, peeringRows(fmt.Sprintf("%d peers of %d routes: ", size[0], size[1]), birds, ours)...)
	}
	return out, nil
}

// peeringRows are the lines of one size.
func peeringRows(size string, birds, ours receiver) []row {
	seconds := func(what string, bird, our time.Duration) row {
		return row{What: size + what, Floor: fmt.Sprintf("%.2f s", bird.Seconds()), Subject: fmt.Sprintf("%.2f s", our.Seconds()), Ratio: fmt.Sprintf("%.2f", our.Seconds()/bird.Seconds())}
	}
	return []row{
		seconds("full table, from the start", birds.full, ours.full), seconds("from the first route", birds.spread, ours.spread), seconds("CPU", birds.cpu, ours.cpu),
		{What: size + "memory", Floor: fmt.Sprintf("%d MB", birds.memory>>20), Subject: fmt.Sprintf("%d MB", ours.memory>>20), Ratio: fmt.Sprintf("%.2f", float64(ours.memory)/float64(birds.memory))},
	}
}

// peeringRow measures one size: BIRD and ours by turns, with the same peers.
func peeringRow(ctx context.Context, dir string, peers, routes int) (birds, ours receiver, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return birds, ours, err
	}
	stop, err := startSenders(ctx, dir, peers, routes)
	defer func() { err = errors.Join(err, stop()) }()
	if err != nil {
		return birds, ours, err
	}
	var all [2][]receiver
	for r := range peeringRounds {
		for turn := range 2 {
			select {
			case <-ctx.Done():
				return birds, ours, ctx.Err()
			case <-time.After(peeringRest):
			}
			side := (r + turn) % 2
			one, err := receive(ctx, side == 0, dir, peers, routes)
			if err != nil {
				return birds, ours, fmt.Errorf("%d peers with %d routes each, round %d: %w", peers, routes, r, err)
			}
			all[side] = append(all[side], one)
		}
	}
	return medianOf(all[0]), medianOf(all[1]), nil
}

func medianOf(rs []receiver) (out receiver) {
	var full, spread, cpu, memory []time.Duration
	for _, r := range rs {
		full, spread, cpu, memory = append(full, r.full), append(spread, r.spread), append(cpu, r.cpu), append(memory, time.Duration(r.memory))
	}
	return receiver{full: median(full), spread: median(spread), cpu: median(cpu), memory: int64(median(memory))}
}

// peerAddr is the address of a peer, and 10.9.0.1 of who receives.
func peerAddr(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 9, 1, byte(n + 1)}) }

// startSenders starts a BIRD for each peer. stop ends them all.
func startSenders(ctx context.Context, dir string, peers, routes int) (stop func() error, err error) {
	var running []*exec.Cmd
	stop = func() error {
		for _, c := range running {
			_ = c.Process.Kill() // it may have ended
			_ = c.Wait()         // a killed program's error is no news
		}
		return nil
	}
	for n := range peers {
		var b strings.Builder
		fmt.Fprintf(&b, "router id %v;\nprotocol device { scan time 60; }\nprotocol static { ipv4;\n", peerAddr(n))
		for r := range routes {
			fmt.Fprintf(&b, "route 20.%d.%d.%d/32 blackhole;\n", n, r/256, r%256)
		}
		fmt.Fprintf(&b, "}\nprotocol bgp up { local %v as %d; neighbor 10.9.0.1 as %[2]d; multihop; strict bind on; passive on; error wait time 1,1; ipv4 { import none; export all; }; }\n", peerAddr(n), peeringAS)
		c, err := startBIRD(ctx, filepath.Join(dir, fmt.Sprint("peer-", n)), b.String())
		if err != nil {
			return stop, err
		}
		running = append(running, c)
	}
	return stop, nil
}

// startBIRD starts a BIRD whose configuration and socket have that name.
func startBIRD(ctx context.Context, name, config string) (*exec.Cmd, error) {
	if err := os.WriteFile(name+".conf", []byte(config), 0o600); err != nil {
		return nil, err
	}
	c := exec.CommandContext(ctx, "bird", "-f", "-c", name+".conf", "-s", name+".ctl")
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		return nil, fmt.Errorf("%w: `apt-get install bird2`", err)
	}
	return c, nil
}

// receive starts BIRD or ours, waits until it has all routes, and kills it.
func receive(ctx context.Context, bird bool, dir string, peers, routes int) (receiver, error) {
	start := time.Now()
	var c *exec.Cmd
	var count func() (int, error)
	var err error
	if bird {
		c, count, err = receiveByBIRD(ctx, dir, peers)
	} else {
		c, count, err = receiveByOurs(ctx, peers)
	}
	if err != nil {
		return receiver{}, err
	}
	var first, full time.Time
	for full.IsZero() && err == nil {
		var n int
		n, err = count()
		if n > 0 && first.IsZero() {
			first = time.Now()
		}
		if n == peers*routes {
			full = time.Now()
		}
		if ctx.Err() != nil {
			err = fmt.Errorf("%d of %d routes: %w", n, peers*routes, ctx.Err())
		}
	}
	memory, memErr := peak(c.Process.Pid)
	_ = c.Process.Kill() // it may have ended
	_ = c.Wait()         // a killed program's error is no news
	if err := cmp.Or(err, memErr); err != nil {
		return receiver{}, err
	}
	return receiver{full: full.Sub(start), spread: full.Sub(first), cpu: c.ProcessState.UserTime() + c.ProcessState.SystemTime(), memory: memory}, nil
}

var highWater = regexp.MustCompile(`VmHWM:\s+(\d+) kB`)

// peak is the most memory that a process has had, in bytes. (That of wait4 counts what its parent had, too.)
func peak(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	m := highWater.FindSubmatch(text)
	if m == nil {
		return 0, fmt.Errorf("process %d has no VmHWM", pid)
	}
	kb, err := strconv.ParseInt(string(m[1]), 10, 64)
	return kb << 10, err
}

// receiveByBIRD starts a BIRD that has all the peers, as that of a Calico node has them.
func receiveByBIRD(ctx context.Context, dir string, peers int) (*exec.Cmd, func() (int, error), error) {
	var b strings.Builder
	b.WriteString("router id 10.9.0.1;\nprotocol device { scan time 60; }\n")
	for n := range peers {
		fmt.Fprintf(&b, "protocol bgp p%d { local 10.9.0.1 as %d; neighbor %v as %[2]d; multihop; strict bind on; connect delay time 1; connect retry time 1; ipv4 { import all; export none; }; }\n", n, peeringAS, peerAddr(n))
	}
	name := filepath.Join(dir, "receiver")
	_ = os.Remove(name + ".ctl") // there may be none
	c, err := startBIRD(ctx, name, b.String())
	return c, func() (int, error) {
		<-time.After(10 * time.Millisecond)
		n, err := birdCount(name + ".ctl")
		if err != nil && time.Now().Before(started(c).Add(10*time.Second)) {
			return 0, nil // it does not answer yet
		}
		return n, err
	}, err
}

// started is when the process has started, by its folder in /proc.
func started(c *exec.Cmd) time.Time {
	info, err := os.Stat(fmt.Sprint("/proc/", c.Process.Pid))
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

var routeCount = regexp.MustCompile(`(\d+) of \d+ routes`)

// birdCount asks BIRD how many routes it has.
func birdCount(socket string) (int, error) {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if _, err := io.WriteString(c, "show route count\n"); err != nil {
		return 0, err
	}
	lines := bufio.NewScanner(c)
	for lines.Scan() {
		if m := routeCount.FindStringSubmatch(lines.Text()); m != nil {
			return strconv.Atoi(m[1])
		}
	}
	return 0, errors.Join(errors.New("BIRD does not say how many routes it has"), lines.Err())
}

// receiveByOurs starts this program as a speaker.
func receiveByOurs(ctx context.Context, peers int) (*exec.Cmd, func() (int, error), error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	c := exec.CommandContext(ctx, self, "-inner", "none", "-what", fmt.Sprint("speak ", peers))
	c.Stderr = os.Stderr
	out, err := c.StdoutPipe()
	if err == nil {
		err = c.Start()
	}
	lines := bufio.NewScanner(out)
	return c, func() (int, error) {
		if !lines.Scan() {
			return 0, errors.Join(errors.New("the speaker has ended"), lines.Err())
		}
		return strconv.Atoi(lines.Text())
	}, err
}

// runSpeaker is a node's BGP as the agent has it, which prints how many routes it would give the kernel whenever that is another number.
func runSpeaker(ctx context.Context, peers int) error {
	cfg := peering.Speaker{AS: peeringAS, RouterID: netip.MustParseAddr("10.9.0.1"), Port: peeringPort, Listen: []netip.Addr{netip.MustParseAddr("10.9.0.1")}}
	accept, reject := []peering.Term{{Verdict: peering.Accept}}, []peering.Term{{Verdict: peering.Reject}}
	for n := range peers {
		cfg.Sessions = append(cfg.Sessions, peering.Session{
			Name: fmt.Sprint("p", n), Kind: peering.Mesh, Peer: peerAddr(n), Port: peeringPort, PeerAS: peeringAS, LocalAS: peeringAS,
			Source: cfg.RouterID, Restart: 2 * time.Minute, Import: accept, Export: reject,
		})
	}
	s := bgp.New(slog.New(slog.DiscardHandler), bgp.Options{})
	if err := s.Apply(ctx, cfg); err != nil {
		return err
	}
	took := time.Duration(0)
	for was := 0; ; {
		select {
		case <-ctx.Done():
			return s.Close(context.WithoutCancel(ctx))
		case <-s.Changed():
			<-time.After(min(max(gathering, gatheringShare*took), gatheringMost))
		}
		began := time.Now()
		paths, err := s.Learned()
		if err != nil {
			return err
		}
		if n := len(peering.Kernel(paths, peering.Rules{})); n != was {
			was = n
			fmt.Println(n)
		}
		took = time.Since(began)
	}
}
