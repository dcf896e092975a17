package why

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/ctl/cli"
	"github.com/muslin-cni/muslin/internal/nft"
	"github.com/muslin-cni/muslin/internal/policy"
	"github.com/muslin-cni/muslin/internal/reports"
	"github.com/muslin-cni/muslin/internal/ruleset"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

const dropsHelp = `Say which policies and rules of this node drop packets. It is run on the node, as root.

Without --follow: how many packets and bytes each has dropped since its counter was made, which is when the agent put the rule into the kernel;
changes of other rules and restarts of the agent leave it alone. --all counts what rules allow, pass on and log, too, and what staged
policies would have done.

With --follow: each dropped packet as it comes, and each that a Log rule tells of, until interrupted. A rule tells of no more than a few packets a second;
the counters have them all. The agent hands these reports on to any number of readers. Where none runs, the kernel gives them to one at a time, and a second one is refused.`

type dropsOptions struct {
	follow, all bool
	format      string
}

// DropsCommand is "drops", which belongs below "node".
func DropsCommand(env cli.Env) *cobra.Command {
	var o dropsOptions
	c := &cobra.Command{
		Use:   "drops [--follow]",
		Short: "Say which policies and rules drop packets on this host",
		Long:  dropsHelp,
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := cli.CheckFormat(o.format); err != nil {
				return err
			}
			if o.follow && o.all {
				return errors.New("--follow and --all exclude each other")
			}
			return env.With(c.Context(), func(client *store.Client) error {
				d := drops{env: env, client: client, json: o.format == "json"}
				if o.follow {
					return d.follow(c.Context())
				}
				return d.count(c.Context(), o.all)
			})
		},
	}
	f := c.Flags()
	f.BoolVar(&o.follow, "follow", false, "tell each dropped packet as it comes")
	f.BoolVar(&o.all, "all", false, "count what every rule has matched, not only what was dropped")
	f.StringVarP(&o.format, "output", "o", "", "json, with --follow a line for each packet, or text if left out")
	return c
}

// drops tells of what the kernel drops.
type drops struct {
	env    cli.Env
	client *store.Client
	json   bool

	origins map[policy.RuleID]policy.Origin // all that were ever learned: what an id stands for stays true
	pods    map[string][]*api.WorkloadEndpoint
	lost    map[string]bool // rules and interfaces that etcd did not know when it was asked after they had been seen
	failed  time.Time       // when etcd last could not be read
}

// patience is how long etcd is left alone after it could not be read.
const patience = 5 * time.Second

// learn reads etcd.
func (d *drops) learn(ctx context.Context) error {
	f, err := read(ctx, d.client)
	if err != nil {
		return err
	}
	if d.origins == nil {
		f.warn(d.env)
		d.origins, d.lost = map[policy.RuleID]policy.Origin{}, map[string]bool{}
	}
	for id, o := range policy.Origins(f.all) {
		d.origins[id] = o
	}
	d.pods = map[string][]*api.WorkloadEndpoint{}
	for _, w := range f.workloads {
		d.pods[w.Spec.InterfaceName] = append(d.pods[w.Spec.InterfaceName], w)
	}
	return nil
}

// who is the policy and rule of an id, or the reason for which packets are dropped without.
func (d *drops) who(t ruleset.Told) string {
	if t.Rule == "" {
		return t.Why()
	}
	if o, ok := d.origins[t.Rule]; ok {
		return o.String()
	}
	return "a rule that etcd does not have any more"
}

// counted is a row of the table of counters.
type counted struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
	originJSON
}

// originJSON is a rule, or a reason.
type originJSON struct {
	By        string `json:"by"` // in words
	ID        string `json:"id,omitempty"`
	Reason    string `json:"reason,omitempty"`
	Action    string `json:"action"`
	Policy    string `json:"policy,omitempty"`
	Tier      string `json:"tier,omitempty"`
	Direction string `json:"direction,omitempty"`
	Rule      *int   `json:"rule,omitempty"`
	Staged    bool   `json:"staged,omitempty"`
}

// origin describes what was told.
func (d *drops) origin(t ruleset.Told) originJSON {
	out := originJSON{By: d.who(t), ID: string(t.Rule), Reason: t.Reason, Action: string(api.Deny)}
	if t.Logged {
		out.Action = string(api.Log)
	}
	o, ok := d.origins[t.Rule]
	if !ok {
		return out
	}
	out.Action, out.Tier, out.Direction = string(o.Action()), o.Tier, strings.ToLower(string(o.Direction))
	if o.Policy != nil {
		out.Policy, out.Rule, out.Staged = o.Policy.String(), &o.Rule.Index, o.Policy.Staged
	}
	return out
}

// count prints the counters.
func (d *drops) count(ctx context.Context, all bool) error {
	if err := d.learn(ctx); err != nil {
		return err
	}
	conn, err := nft.OpenToRead()
	if err != nil {
		return err
	}
	counters, err := conn.Counters(ctx, ruleset.Table)
	err = errors.Join(err, conn.Close())
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: run it on the node, as root", err)
	case err != nil:
		return err
	case len(counters) == 0:
		return fmt.Errorf("there are no counters: this host has no table %s, in which its agent enforces policy", ruleset.Table)
	}
	rows := []counted{}
	for name, n := range counters {
		told, ok := ruleset.Counter(name)
		if !ok {
			continue
		}
		row := counted{n.Packets, n.Bytes, d.origin(told)}
		if all || n.Packets > 0 && row.Action == string(api.Deny) && !row.Staged {
			rows = append(rows, row)
		}
	}
	slices.SortFunc(rows, func(a, b counted) int {
		return cmp.Or(cmp.Compare(b.Packets, a.Packets), cmp.Compare(a.By, b.By), cmp.Compare(a.ID, b.ID))
	})
	return d.printCounters(rows)
}

func (d *drops) printCounters(rows []counted) error {
	if d.json {
		return cli.PrintJSON(d.env.Out, rows)
	}
	t := cli.Table{Head: []string{"PACKETS", "BYTES", "ACTION", "BY", "ID"}}
	for _, r := range rows {
		action := r.Action
		if r.Staged {
			action += " (staged)"
		}
		t.Rows = append(t.Rows, []string{fmt.Sprint(r.Packets), fmt.Sprint(r.Bytes), action, r.By, dash(r.ID)})
	}
	return t.Print(d.env.Out)
}

// follow prints each packet that is reported, until ctx is done.
func (d *drops) follow(ctx context.Context) error {
	source, err := reports.Listen(ctx, reports.Socket, ruleset.LogGroup)
	if taken, ok := errors.AsType[*nft.TakenError](err); ok {
		return fmt.Errorf("%w: is \"%s node drops --follow\" running already?", taken, d.env.Program)
	}
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w: run it on the node, as root", err)
	}
	if err != nil {
		return err
	}
	err = d.learn(ctx)
	for err == nil {
		if err = d.next(ctx, source); errors.Is(err, reports.ErrAgentGone) {
			source, err = d.again(ctx, source)
		}
	}
	if ctx.Err() != nil {
		err = nil // interrupted, as it has to be
	}
	return errors.Join(err, source.Close())
}

// again listens to the next agent, or in its place until there is one: agents are restarted.
func (d *drops) again(ctx context.Context, ended reports.Source) (reports.Source, error) {
	if _, err := fmt.Fprintln(d.env.Err, "some packets are missing here: the agent ended"); err != nil {
		return ended, err
	}
	next, err := reports.Listen(ctx, reports.Socket, ruleset.LogGroup)
	if err != nil {
		return ended, err
	}
	return next, ended.Close()
}

func (d *drops) next(ctx context.Context, source reports.Source) error {
	r, err := source.Next(ctx)
	if errors.Is(err, nft.ErrMissed) {
		_, err = fmt.Fprintln(d.env.Err, "some packets are missing here: more came than could be told")
		return err
	}
	if err != nil {
		return err
	}
	told, ok := ruleset.Prefix(r.Prefix)
	if !ok {
		return nil // somebody else's rule
	}
	p, ok := parse(r.Packet)
	if !ok {
		return nil
	}
	in, out := deviceName(r.In), deviceName(r.Out)
	d.refresh(ctx, told, in, out)
	seen := seenPacket{
		Time: d.env.Now().UTC(), Hook: string(r.Hook), In: in, Out: out, From: d.pod(in, p.Source), To: d.pod(out, p.Destination),
		Source: p.Source, Destination: p.Destination, packetJSON: viewPacket(p), originJSON: d.origin(told),
	}
	return seen.print(d)
}

// refresh reads etcd again if it may know what was not known before. What is in the kernel was in etcd first: what is still not known then is
// gone, and is not asked for again. If etcd is away, what is known has to do.
func (d *drops) refresh(ctx context.Context, t ruleset.Told, devices ...string) {
	var unknown []string
	if _, ok := d.origins[t.Rule]; !ok && t.Rule != "" {
		unknown = append(unknown, string(t.Rule))
	}
	for _, dev := range devices {
		if isPods(dev) && d.pods[dev] == nil {
			unknown = append(unknown, dev)
		}
	}
	unknown = slices.DeleteFunc(unknown, func(name string) bool { return d.lost[name] })
	if len(unknown) == 0 || d.env.Now().Sub(d.failed) < patience {
		return
	}
	if err := d.learn(ctx); err != nil {
		d.failed = d.env.Now()
		if ctx.Err() == nil {
			_, _ = fmt.Fprintf(d.env.Err, "names may be missing: %v\n", err)
		}
		return
	}
	for _, name := range unknown {
		d.lost[name] = true // if it is known now, nobody looks here
	}
}

// isPods tells whether an interface is most likely a pod's.
func isPods(device string) bool { return strings.HasPrefix(device, "cali") }

// pod is whose interface it is; the address decides between nodes that both have had the pod. "" if nobody's.
func (d *drops) pod(device string, addr netip.Addr) string {
	name := ""
	for _, w := range d.pods[device] {
		if name == "" || slices.Contains(addresses(w), addr) {
			name = podName(w)
		}
	}
	return name
}

// deviceName is a device's name, and its number if it is gone; "" for none.
func deviceName(index int) string {
	if index == 0 {
		return ""
	}
	if dev, err := net.InterfaceByIndex(index); err == nil {
		return dev.Name
	}
	return fmt.Sprint(index)
}

// seenPacket is a packet that was reported.
type seenPacket struct {
	Time        time.Time  `json:"time"`
	Hook        string     `json:"hook,omitempty"`
	In          string     `json:"in,omitempty"`
	Out         string     `json:"out,omitempty"`
	From        string     `json:"from,omitempty"` // pods
	To          string     `json:"to,omitempty"`
	Source      netip.Addr `json:"source"`
	Destination netip.Addr `json:"destination"`
	packetJSON
	originJSON
}

func (s seenPacket) print(d *drops) error {
	if d.json {
		return cli.PrintLine(d.env.Out, s)
	}
	what := "dropped"
	if s.Action == string(api.Log) {
		what = "logged"
	}
	id := ""
	if s.ID != "" {
		id = " (" + s.ID + ")"
	}
	_, err := fmt.Fprintf(d.env.Out, "%s %s %s > %s %v in %s: %s by %s%s\n", s.Time.Format(time.RFC3339),
		dash(s.Hook), end(s.Source, s.From, s.In), end(s.Destination, s.To, s.Out), s.packetJSON, dash(s.Direction), what, s.By, id)
	return err
}

// end is one end of a packet's way: 10.65.0.1 (default/web, cali123).
func end(a netip.Addr, pod, device string) string {
	var about []string
	for _, text := range []string{pod, device} {
		if text != "" {
			about = append(about, text)
		}
	}
	if len(about) == 0 {
		return a.String()
	}
	return fmt.Sprintf("%v (%s)", a, strings.Join(about, ", "))
}
