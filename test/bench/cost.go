package main

import (
	"bufio"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// requests counts what etcd is asked for, by its own metrics, while pods are attached and detached one by one. The agent asks a little by itself
// every now and then: hence the median of the rounds.
func (b *inner) requests() ([]row, error) {
	var transactions, reads []float64
	for r := range b.rounds {
		before, err := askedOfEtcd()
		if err != nil {
			return nil, err
		}
		for _, do := range []side{b.muslinAdd, b.muslinDel} {
			if _, err := timed(r, serialOps, 1, do); err != nil {
				return nil, err
			}
		}
		after, err := askedOfEtcd()
		if err != nil {
			return nil, err
		}
		transactions = append(transactions, float64(after["Txn"]-before["Txn"])/serialOps)
		reads = append(reads, float64(after["Range"]-before["Range"])/serialOps)
	}
	count := func(xs []float64) string { return fmt.Sprintf("%.2f", median(xs)) }
	return []row{
		{What: "etcd transactions of an ADD and its DEL", Subject: count(transactions), Aim: "2"},
		{What: "range reads of an ADD and its DEL", Subject: count(reads), Aim: "0"},
	}, nil
}

// askedOfEtcd is how many requests of each method etcd has begun to serve.
func askedOfEtcd() (_ map[string]int, err error) {
	res, err := http.Get(strings.Split(os.Getenv("ETCD_ENDPOINTS"), ",")[0] + "/metrics")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, res.Body.Close()) }()
	out := map[string]int{}
	for s := bufio.NewScanner(res.Body); s.Scan(); {
		name, value, _ := strings.Cut(s.Text(), "} ")
		labels, ok := strings.CutPrefix(name, "grpc_server_started_total{")
		if !ok || !strings.Contains(labels, `grpc_service="etcdserverpb.KV"`) {
			continue
		}
		_, method, _ := strings.Cut(labels, `grpc_method="`)
		method, _, _ = strings.Cut(method, `"`)
		if out[method], err = strconv.Atoi(value); err != nil {
			return nil, fmt.Errorf("read etcd's metrics: %w", err)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("etcd's metrics do not count its requests")
	}
	return out, nil
}

// processors compares what the processors have to do: for the raw attach in its process, for ours in the plugin's and the agent's. Neither side's is
// etcd's, nor what the kernel does on its own account.
func (b *inner) processors() ([]row, error) {
	agent, err := processOf("agent")
	if err != nil {
		return nil, err
	}
	var cs [2]comparison
	cs[0].name, cs[1].name = "processor time of an ADD", "processor time of a DEL"
	for r := range b.rounds {
		for i, verb := range []string{"ADD", "DEL"} {
			spent, err := b.spent(agent, func(i int) (time.Duration, error) { return b.execute(b.cniEnv(verb, r, i), b.conf, "muslin") })
			if err != nil {
				return nil, err
			}
			cs[i].subject = append(cs[i].subject, spent)
		}
		for i, args := range []func(int) []string{
			func(i int) []string {
				return []string{"add", netnsPath(i), fmt.Sprintf("floor%d", i), fmt.Sprintf("10.99.0.%d", i+1)}
			},
			func(i int) []string { return []string{"del", netnsPath(i)} },
		} {
			spent, err := b.spent(0, func(i int) (time.Duration, error) { return b.execute(nil, nil, "floor", args(i)...) })
			if err != nil {
				return nil, err
			}
			cs[i].floor = append(cs[i].floor, spent)
		}
	}
	return []row{cs[0].row("2"), cs[1].row("")}, nil
}

// spent is what serialOps commands use each, with what a process that goes on uses meanwhile; 0: there is none.
func (b *inner) spent(beside int, do func(i int) (time.Duration, error)) (total time.Duration, err error) {
	before, err := processorTime(beside)
	if err != nil {
		return 0, err
	}
	for i := range serialOps {
		used, err := do(i)
		if err != nil {
			return 0, err
		}
		total += used
	}
	after, err := processorTime(beside)
	return (total + after - before) / serialOps, err
}

// processorTime is what a process has used of the processors since its start, its ended threads included; 0 for process 0.
func processorTime(pid int) (time.Duration, error) {
	if pid == 0 {
		return 0, nil
	}
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^uint32(pid)<<3|2), &ts); err != nil { // the clock of a process: clock_getcpuclockid(3)
		return 0, fmt.Errorf("read the processor time of process %d: %w", pid, err)
	}
	return time.Duration(ts.Nano()), nil
}

// processOf is this lab's process of that role: agent, or etcd.
func processOf(role string) (int, error) {
	all, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		return 0, err
	}
	for _, path := range all {
		text, _ := os.ReadFile(path) // of one that has just ended: nothing
		env := strings.Split(string(text), "\x00")
		if slices.Contains(env, "MUSLIN_LAB="+os.Getenv("MUSLIN_LAB")) && slices.Contains(env, "MUSLIN_LAB_ROLE="+role) {
			return strconv.Atoi(filepath.Base(filepath.Dir(path)))
		}
	}
	return 0, fmt.Errorf("the lab has no process that is its %s", role)
}
