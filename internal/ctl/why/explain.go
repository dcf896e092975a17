package why

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/muslin-cni/muslin/internal/ctl/cli"
	"github.com/muslin-cni/muslin/internal/policy"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

const explainHelp = `Say what the policies in etcd make of the first packet of a flow, and why: every rule that is considered where the packet leaves and where it
arrives, in order, with the field that kept it from matching. No agent is asked: this is what each node is to enforce, not what it has
got round to. An answer is an answer, so that the exit code is 0 for Deny too. Limits of the pods' connections and rates come last.

Pods are given as NAMESPACE/POD, as NAMESPACE/WORKLOADENDPOINT, as either alone where only one namespace has it, or by address; --to, and
--from too, may be any other address: of a node, or of the world outside. A service's address is nobody's here: name one of its pods.

Left out, --protocol is TCP, for which most rules are written, and --icmp-type an echo request, as ping sends it. There is no usual port: where
none is given and a rule depends on it, that is an error rather than a guess. "icmp" between addresses of IPv6 means ICMPv6.`

// question is what explain is asked.
type question struct {
	from, to             string
	protocol             string
	port, sourcePort     uint16
	icmpType, icmpCode   uint8
	version              int
	format               string
	kubeconfig           string // for where services are; "": they are not known
	icmpGiven, portGiven bool
}

func explainCommand(env cli.Env) *cobra.Command {
	var q question
	c := &cobra.Command{
		Use:   "explain --from=<POD> --to=<POD|IP> [--port=<PORT>] [--protocol=<PROTOCOL>]",
		Short: "Say whether policies let a packet through, and which rule decides",
		Long:  explainHelp,
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			q.portGiven = c.Flags().Changed("port")
			q.icmpGiven = c.Flags().Changed("icmp-type")
			if err := cli.CheckFormat(q.format); err != nil {
				return err
			}
			return env.With(c.Context(), func(client *store.Client) error {
				f, err := read(c.Context(), client)
				if err != nil {
					return err
				}
				if err := f.locate(c.Context(), q.kubeconfig); err != nil {
					return err
				}
				f.warn(env)
				a, err := f.explain(q)
				if err != nil {
					return err
				}
				return a.print(env, q.format)
			})
		},
	}
	f := c.Flags()
	f.StringVar(&q.from, "from", "", "the pod or address that sends")
	f.StringVar(&q.to, "to", "", "the pod or address that it sends to")
	f.StringVar(&q.protocol, "protocol", "TCP", "TCP, UDP, SCTP, ICMP, ICMPv6, UDPLite, or a number")
	f.Uint16Var(&q.port, "port", 0, "the port that it sends to; needed where a rule depends on it")
	f.Uint16Var(&q.sourcePort, "source-port", 0, "the port that it sends from; needed where a rule depends on it")
	f.Uint8Var(&q.icmpType, "icmp-type", 0, "the type of an ICMP message (default: echo request)")
	f.Uint8Var(&q.icmpCode, "icmp-code", 0, "the code of an ICMP message")
	f.IntVar(&q.version, "ip-version", 0, "4 or 6, for pods that have addresses of both (default 4)")
	f.StringVar(&q.kubeconfig, "kubeconfig", "", "file that says how to reach Kubernetes; needed where rules name services")
	f.StringVarP(&q.format, "output", "o", "", "json, or text if left out")
	for _, name := range []string{"from", "to"} {
		_ = c.MarkFlagRequired(name) // there is such an option
	}
	return c
}

// answer is what becomes of a packet.
type answer struct {
	from, to party
	packet   policy.Packet
	verdict  string // Allow, Deny or Depends
	asked    []asked
	limits   []string
	notes    []string
}

// asked is what one list says: what a pod's or a host's endpoint makes of the packet on one node.
type asked struct {
	node  string
	model policy.Model
	side  policy.Side
	// maybe: the packet passes this endpoint only if it takes its device, which depends on routes.
	maybe bool
}

// explain answers a question.
func (f *facts) explain(q question) (*answer, error) {
	from, err := f.find(q.from)
	if err != nil {
		return nil, fmt.Errorf("--from %s: %w", q.from, err)
	}
	to, err := f.find(q.to)
	if err != nil {
		return nil, fmt.Errorf("--to %s: %w", q.to, err)
	}
	if q.version != 0 && q.version != 4 && q.version != 6 {
		return nil, fmt.Errorf("--ip-version %d: want 4 or 6", q.version)
	}
	if err := family(&from, &to, q.version); err != nil {
		return nil, err
	}
	if from.node == "" && to.node == "" {
		return nil, fmt.Errorf("neither %v nor %v is an address of a pod or a node: no policy is asked about them", from.addr, to.addr)
	}
	packet, err := q.packet(from, to)
	if err != nil {
		return nil, err
	}
	a := &answer{from: from, to: to, packet: packet}
	w := walker{facts: f, packet: packet, models: map[string]policy.Model{}}
	if itself(from, to) {
		a.notes = []string{"a pod's packets to itself do not leave it, and are not judged"}
	} else {
		a.asked, a.limits = w.walk(from, to), w.limits(from, to)
		a.notes = append(w.problems(a.asked), notes(from, to, a.asked)...)
	}
	a.verdict = verdict(a.asked)
	return a, q.decided(a)
}

// packet is the packet that is asked about.
func (q question) packet(from, to party) (policy.Packet, error) {
	p := policy.Packet{Source: from.addr, Destination: to.addr, Protocol: api.ProtocolNamed(q.protocol).IANA()}
	if p.Protocol == api.ProtoICMP && to.addr.Is6() {
		p.Protocol = api.ProtoICMPv6
	}
	switch {
	case p.Protocol == 0:
		return p, fmt.Errorf("--protocol %s is not known: want TCP, UDP, SCTP, ICMP, ICMPv6, UDPLite or a number up to 255", q.protocol)
	case p.Protocol == api.ProtoICMPv6 && to.addr.Is4():
		return p, fmt.Errorf("--protocol %s: %v and %v are addresses of IPv4", q.protocol, from.addr, to.addr)
	case !hasPorts(p.Protocol) && (q.portGiven || q.sourcePort != 0):
		return p, fmt.Errorf("--port: %s has no ports", protocolName(p.Protocol))
	case isICMP(p.Protocol):
		p.ICMPType, p.ICMPCode = q.icmpType, q.icmpCode
		if !q.icmpGiven {
			p.ICMPType = map[uint8]uint8{api.ProtoICMP: 8, api.ProtoICMPv6: 128}[p.Protocol] // echo request: RFC 792, RFC 4443
		}
		return p, nil
	case q.icmpGiven || q.icmpCode != 0:
		return p, fmt.Errorf("--icmp-type: add --protocol=icmp; this is %s", q.protocol)
	}
	p.SourcePort, p.DestinationPort = q.sourcePort, q.port
	return p, nil
}

// decided refuses an answer that would be another one with a port that was not given.
func (q question) decided(a *answer) error {
	for _, s := range a.asked {
		for _, step := range s.side.Steps {
			if step.Rule == nil {
				continue
			}
			missing := ""
			switch r := step.Rule; {
			case !hasPorts(a.packet.Protocol):
			case q.sourcePort == 0 && portMatters(step, "source", &r.Source):
				missing = "--source-port"
			case !q.portGiven && portMatters(step, "destination", &r.Destination):
				missing = "--port"
			}
			if missing != "" {
				return fmt.Errorf("%v %s rule %d depends on the port: give %s", step.Policy, direction(s.side.List), step.Rule.Index, missing)
			}
		}
	}
	return nil
}

// portMatters tells whether what became of a step at one end of the way hangs on the port there.
func portMatters(s policy.Step, end string, m *policy.Match) bool {
	if len(m.Ports)+len(m.PortSets)+len(m.NotPorts)+len(m.NotPortSets) == 0 {
		return false
	}
	return s.Matched() || s.Unmet == end+" ports" || s.Unmet == end+" notPorts" || end == "source" && strings.HasPrefix(s.Unmet, "destination")
}

func direction(l *policy.List) string { return strings.ToLower(string(l.Direction)) }

// walker leads a packet by the endpoints on its way.
type walker struct {
	facts  *facts
	packet policy.Packet
	models map[string]policy.Model // of the nodes on the way
}

func (w *walker) model(node string) policy.Model {
	m, ok := w.models[node]
	if !ok {
		e := policy.New(node)
		e.Apply(w.facts.all)
		m = e.Model()
		w.models[node] = m
	}
	return m
}

// walk asks, in order, the pod that sends, the hosts' endpoints by which the packet may leave its node and enter the other, and the pod
// that receives. All are asked, also behind one that denies: who opens one side wants to know what the other would say.
func (w *walker) walk(from, to party) (out []asked) {
	local := from.node == to.node
	way := policy.Forwarded
	if local && to.workload == nil {
		way = policy.Received
	}
	if from.workload != nil {
		out = append(out, w.ask(from.node, policy.Flow{Way: way, In: w.endpoint(from)})...)
	}
	if !local && from.node != "" {
		out = append(out, w.hosts(from.node, func(e *policy.Endpoint) policy.Flow {
			return policy.Flow{Way: choose(from.workload != nil, policy.Forwarded, policy.Sent), Out: e}
		})...)
	}
	if !local && to.node != "" {
		out = append(out, w.hosts(to.node, func(e *policy.Endpoint) policy.Flow {
			return policy.Flow{Way: choose(to.workload != nil, policy.Forwarded, policy.Received), In: e}
		})...)
	}
	if to.workload != nil {
		out = append(out, w.ask(to.node, policy.Flow{Way: choose(local && from.workload == nil, policy.Sent, policy.Forwarded), Out: w.endpoint(to)})...)
	}
	return out
}

func choose[T any](cond bool, a, b T) T {
	if cond {
		return a
	}
	return b
}

func (w *walker) endpoint(p party) *policy.Endpoint {
	return w.model(p.node).Endpoints[workloadKey(p.workload)]
}

func (w *walker) ask(node string, f policy.Flow) (out []asked) {
	f.Packet = w.packet
	m := w.model(node)
	for _, side := range m.Walk(f).Sides {
		out = append(out, asked{node: node, model: m, side: side})
	}
	return out
}

// hosts asks the endpoints of a node's devices. Which device a packet takes is a matter of routes and tunnels, and is not known here. So each endpoint that
// has something to say is asked, and it is certain only if no other device is left.
func (w *walker) hosts(node string, flow func(*policy.Endpoint) policy.Flow) (out []asked) {
	m := w.model(node)
	var hosts []*policy.Endpoint
	for _, e := range m.Endpoints {
		if e.Key.Kind == policy.Host {
			hosts = append(hosts, e)
		}
	}
	slices.SortFunc(hosts, func(a, b *policy.Endpoint) int { return cmp.Compare(a.Key.Name, b.Key.Name) })
	for _, e := range hosts {
		sides := w.ask(node, flow(e))
		for i := range sides {
			sides[i].maybe = len(hosts) > 1 || e.Interface != "*"
		}
		out = append(out, sides...)
	}
	return out
}

// verdict sums up: Depends where only an endpoint denies that the packet may pass by.
func verdict(all []asked) string {
	out := string(api.Allow)
	for _, s := range all {
		switch {
		case s.side.Verdict != api.Deny:
		case !s.maybe:
			return string(api.Deny)
		default:
			out = "Depends"
		}
	}
	return out
}

// problems are those of the nodes on the way, but for profiles that were not asked.
func (w *walker) problems(all []asked) (out []string) {
	profiles := map[string]bool{}
	for _, s := range all {
		for _, id := range s.side.List.Profiles {
			profiles[s.model.Policies[id].String()] = true
		}
	}
	for _, m := range w.models {
		for _, p := range m.Problems {
			if !strings.HasPrefix(p.Object, "Profile(") || profiles[p.Object] {
				out = append(out, p.String())
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func itself(from, to party) bool {
	return from.workload != nil && to.workload != nil && workloadKey(from.workload) == workloadKey(to.workload)
}

// notes are what policies do not say.
func notes(from, to party, all []asked) (out []string) {
	if from.workload != nil && to.workload == nil && from.node == to.node {
		out = append(out, "what pods send to their own host and policy lets through, defaultEndpointToHostAction decides")
	}
	if from.workload == nil && to.workload != nil && from.node == to.node {
		out = append(out, "what a host sends to its own pods is always let through")
	}
	if to.workload == nil && to.node == "" {
		out = append(out, fmt.Sprintf("%v is neither a pod's address nor a node's; if it is a service's, ask for one of its pods", to.addr))
	}
	if slices.ContainsFunc(all, func(s asked) bool { return s.side.Endpoint.Key.Kind == policy.Host && s.side.Use != policy.UseForward }) {
		out = append(out, "failsafeInboundHostPorts and failsafeOutboundHostPorts of hosts' endpoints stay open whatever policies say")
	}
	if slices.ContainsFunc(all, func(s asked) bool { return s.maybe }) {
		out = append(out, "which of a host's endpoints a packet passes depends on routes and tunnels; each that has a say is shown")
	}
	return out
}
