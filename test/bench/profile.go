package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/muslin-cni/muslin/internal/lab"
)

// profiled is how many ADDs are looked at.
const profiled = 200

// agentMetrics is where the agent of a profiled node says how long the stages of ADDs took.
const agentMetrics = "http://127.0.0.1:9091/metrics"

// runProfile says where the time of ADDs goes that come one by one: by the stages that the plugin's log and the agent's metrics tell, and by the
// processors' time of each process.
func runProfile(ctx context.Context, b bench) error {
	o := lab.Defaults()
	o.Nodes, o.AgentEnv = 1, []string{"FELIX_PROMETHEUSMETRICSENABLED=true"}
	return withLab(ctx, b.bin, o, func(l *lab.Lab, work string) error {
		rows, err := b.inside(ctx, l, work, "profile")
		if err != nil {
			return err
		}
		for _, r := range rows {
			if _, err := fmt.Printf("%-64s %10s %8s\n", r.What, r.Subject, r.Ratio); err != nil {
				return err
			}
		}
		return nil
	})
}

// stages are the parts of the plugin's life, each by the line of its log that ends it.
func stages() [][2]string {
	return [][2]string{
		{"begin", "process: from exec to the first line of the program"},
		{"locked, and door open", "plugin: configuration, namespace, attach lock, connection to the agent"},
		{"registered, and interface made", "agent and etcd: facts, transaction; meanwhile plugin: veth pair"},
		{"pod's side set", "plugin: state, routes and addresses in the pod"},
		{"host's side in the kernel", "agent: policy and routes of the host's side"},
		{"done", "plugin: result"},
	}
}

// observed is what was seen of ADDs from outside.
type observed struct {
	pids         map[string]int           // of the processes that go on, by role
	spent        map[string]time.Duration // by role; the plugin's, which are many processes, under "plugin"
	begun, ended []time.Time
}

// profile looks at ADDs.
func (b *inner) profile(ctx context.Context) ([]row, error) {
	dir, err := os.MkdirTemp("", "muslin-bench-profile-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	log := filepath.Join(dir, "plugin.log")
	b.conf = netconf(fmt.Sprintf(`"log_level":"debug","log_file_path":%q,`, log))
	o := observed{pids: map[string]int{}, spent: map[string]time.Duration{}}
	for _, role := range []string{"agent", "etcd"} {
		if o.pids[role], err = processOf(role); err != nil {
			return nil, err
		}
	}
	before, err := stagesOfAgent(ctx)
	if err != nil {
		return nil, err
	}
	for i := range profiled {
		if err := b.observe(&o, i/parallelOps, i%parallelOps); err != nil {
			return nil, err
		}
	}
	after, err := stagesOfAgent(ctx)
	if err != nil {
		return nil, err
	}
	out, err := stagesOfPlugin(log, o.begun, o.ended)
	if err != nil {
		return nil, err
	}
	return append(out, sharesOf(before, after, o.spent)...), nil
}

// observe attaches a pod, and detaches it again unobserved.
func (b *inner) observe(o *observed, round, i int) error {
	if err := o.charge(-1); err != nil {
		return err
	}
	o.begun = append(o.begun, time.Now())
	plugin, err := b.execute(b.cniEnv("ADD", round, i), b.conf, "muslin")
	if err != nil {
		return err
	}
	o.ended = append(o.ended, time.Now())
	o.spent["plugin"] += plugin
	if err := o.charge(1); err != nil {
		return err
	}
	return b.muslinDel(round, i)
}

// charge adds what the processes that go on have used since their start, with a sign: before, and after.
func (o *observed) charge(sign time.Duration) error {
	for role, pid := range o.pids {
		used, err := processorTime(pid)
		if err != nil {
			return err
		}
		o.spent[role] += sign * used
	}
	return nil
}

// sharesOf are the agent's stages, and each process's time on the processors.
func sharesOf(before, after map[string]time.Duration, spent map[string]time.Duration) (out []row) {
	for _, stage := range []string{"facts", "etcd", "link", "kernel"} {
		out = append(out, share("of it, as the agent measures: "+stage, (after[stage]-before[stage])/profiled, 0))
	}
	var total time.Duration
	for _, t := range spent {
		total += t
	}
	for _, who := range []string{"plugin", "agent", "etcd"} {
		out = append(out, share("processor time: "+who, spent[who]/profiled, total/profiled))
	}
	return append(out, share("processor time: all three", total/profiled, total/profiled))
}

// share is a time of one ADD, and its part of the whole where that is known.
func share(what string, t, of time.Duration) row {
	r := row{What: what, Subject: ms(t)}
	if of > 0 {
		r.Ratio = fmt.Sprintf("%.0f %%", 100*float64(t)/float64(of))
	}
	return r
}

// stagesOfPlugin reads the log of ADDs, which says the time to the millisecond: over many ADDs what is cut off is the same at both ends of a stage.
func stagesOfPlugin(log string, begun, ended []time.Time) (out []row, err error) {
	text, err := os.ReadFile(log)
	if err != nil {
		return nil, err
	}
	sums, err := sumStages(string(text), begun, ended)
	if err != nil {
		return nil, err
	}
	var total time.Duration
	for _, t := range sums {
		total += t
	}
	n := time.Duration(len(begun))
	for _, s := range append(stages(), [2]string{processEnd, "process: its end"}) {
		out = append(out, share(s[1], sums[s[0]]/n, total/n))
	}
	return append(out, share("an ADD, one by one", total/n, total/n)), nil
}

// processEnd is the stage that no line of the log ends.
const processEnd = "end"

// sumStages adds up the stages of the log, by the lines that end them.
func sumStages(log string, begun, ended []time.Time) (map[string]time.Duration, error) {
	const cutOff = time.Millisecond / 2 // on average
	sums := map[string]time.Duration{}
	last, n := time.Time{}, 0
	for line := range strings.Lines(log) {
		if !strings.Contains(line, "command=ADD") {
			continue
		}
		at, msg, err := entry(line)
		if err != nil {
			return nil, err
		}
		if msg == "begin" && n < len(begun) {
			last = begun[n]
			n++
		}
		at = at.Add(cutOff)
		sums[msg] += at.Sub(last)
		last = at
		if msg == "done" && n > 0 {
			sums[processEnd] += ended[n-1].Sub(last)
		}
	}
	if n != len(begun) {
		return nil, fmt.Errorf("the plugin's log has %d ADDs, want %d", n, len(begun))
	}
	return sums, nil
}

// entry is time and message of a line of slog's text.
func entry(line string) (time.Time, string, error) {
	at, rest, ok := strings.Cut(strings.TrimPrefix(line, "time="), " ")
	_, msg, found := strings.Cut(rest, "msg=")
	if !ok || !found {
		return time.Time{}, "", fmt.Errorf("the plugin's log holds %q", line)
	}
	when, err := time.Parse(time.RFC3339, at)
	if err != nil {
		return time.Time{}, "", fmt.Errorf("read the plugin's log: %w", err)
	}
	if quoted, err := strconv.QuotedPrefix(msg); err == nil {
		msg, err = strconv.Unquote(quoted)
		return when, msg, err
	}
	msg, _, _ = strings.Cut(msg, " ")
	return when, msg, nil
}

// stagesOfAgent is how long ADDs have spent in each of the agent's stages, all together.
func stagesOfAgent(ctx context.Context) (_ map[string]time.Duration, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, agentMetrics, nil)
	if err != nil {
		return nil, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask the agent for its metrics: %w", err)
	}
	defer func() { err = errors.Join(err, res.Body.Close()) }()
	out := map[string]time.Duration{}
	for s := bufio.NewScanner(res.Body); s.Scan(); {
		stage, ok := strings.CutPrefix(s.Text(), `muslin_add_stage_seconds_sum{stage="`)
		if !ok {
			continue
		}
		stage, value, _ := strings.Cut(stage, `"} `)
		seconds, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return nil, fmt.Errorf("read the agent's metrics: %w", err)
		}
		out[stage] = time.Duration(seconds * float64(time.Second))
	}
	return out, nil
}
