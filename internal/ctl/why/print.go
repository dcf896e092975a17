package why

import (
	"fmt"
	"io"
	"net/netip"
	"strings"
	"text/tabwriter"

	"github.com/muslin-cni/muslin/internal/ctl/cli"
	"github.com/muslin-cni/muslin/internal/policy"
	"github.com/muslin-cni/muslin/pkg/api"
)

// explained is an answer in JSON.
type explained struct {
	From    partyJSON  `json:"from"`
	To      partyJSON  `json:"to"`
	Packet  packetJSON `json:"packet"`
	Verdict string     `json:"verdict"` // Allow, Deny; Depends where it is a matter of routes
	Sides   []sideJSON `json:"sides"`
	Limits  []string   `json:"limits,omitempty"` // of the pods, whatever policies say
	Notes   []string   `json:"notes,omitempty"`
}

type partyJSON struct {
	Pod      string     `json:"pod,omitempty"`
	Endpoint string     `json:"endpoint,omitempty"`
	Node     string     `json:"node,omitempty"`
	Address  netip.Addr `json:"address"`
}

type packetJSON struct {
	Protocol   string `json:"protocol"`
	SourcePort uint16 `json:"sourcePort,omitempty"`
	Port       uint16 `json:"port,omitempty"`
	ICMPType   *uint8 `json:"icmpType,omitempty"`
	ICMPCode   *uint8 `json:"icmpCode,omitempty"`
}

type sideJSON struct {
	Node      string     `json:"node"`
	Endpoint  string     `json:"endpoint"`
	Interface string     `json:"interface"`
	Direction string     `json:"direction"`
	Use       string     `json:"use"`
	Maybe     bool       `json:"maybe,omitempty"` // only if the packet takes this endpoint's device
	Verdict   string     `json:"verdict"`         // Allow, Deny; Pass where the list leaves it undecided
	By        string     `json:"by,omitempty"`
	Steps     []stepJSON `json:"steps"`
}

type stepJSON struct {
	Tier    string `json:"tier,omitempty"`
	Policy  string `json:"policy,omitempty"`
	Staged  bool   `json:"staged,omitempty"`
	Rule    *int   `json:"rule,omitempty"`
	End     string `json:"end,omitempty"` // tier or list, where no rule has decided
	Action  string `json:"action,omitempty"`
	Matched bool   `json:"matched"`
	Unmet   string `json:"unmet,omitempty"` // the field that the packet does not satisfy
	Wanted  string `json:"wanted,omitempty"`
	ID      string `json:"id,omitempty"`
}

// view is the answer as it is printed.
func (a *answer) view() explained {
	out := explained{From: a.from.view(), To: a.to.view(), Packet: viewPacket(a.packet), Verdict: a.verdict, Sides: []sideJSON{}, Limits: a.limits, Notes: a.notes}
	for _, s := range a.asked {
		v := sideJSON{
			Node: s.node, Endpoint: s.side.Endpoint.Key.String(), Interface: s.side.Endpoint.Interface,
			Direction: direction(s.side.List), Use: string(s.side.Use), Maybe: s.maybe,
			Verdict: string(s.side.Verdict), By: string(s.side.By),
		}
		for _, step := range s.side.Steps {
			v.Steps = append(v.Steps, viewStep(s.model, step))
		}
		out.Sides = append(out.Sides, v)
	}
	return out
}

func (p party) view() partyJSON {
	out := partyJSON{Node: p.node, Address: p.addr}
	if p.workload != nil {
		out.Pod, out.Endpoint = podName(p.workload), workloadKey(p.workload).String()
	}
	return out
}

func viewPacket(p policy.Packet) packetJSON {
	out := packetJSON{Protocol: protocolName(p.Protocol), SourcePort: p.SourcePort, Port: p.DestinationPort}
	if isICMP(p.Protocol) {
		out.ICMPType, out.ICMPCode = &p.ICMPType, &p.ICMPCode
	}
	return out
}

// String is the packet's kind in a few words: TCP to port 80.
func (p packetJSON) String() string {
	out := p.Protocol
	if p.ICMPType != nil {
		return fmt.Sprintf("%s type %d code %d", out, *p.ICMPType, *p.ICMPCode)
	}
	if p.SourcePort != 0 {
		out += fmt.Sprintf(" from port %d", p.SourcePort)
	}
	if p.Port != 0 {
		out += fmt.Sprintf(" to port %d", p.Port)
	}
	return out
}

func viewStep(m policy.Model, s policy.Step) stepJSON {
	out := stepJSON{Tier: s.Tier, Action: string(s.Action), Matched: s.Matched(), Unmet: s.Unmet, ID: string(s.ID)}
	switch {
	case s.Policy == nil && s.Tier != "":
		out.End = "tier"
	case s.Policy == nil:
		out.End = "list"
	default:
		out.Policy, out.Staged = s.Policy.String(), s.Policy.Staged
	}
	if s.Rule != nil {
		out.Rule = &s.Rule.Index
		out.Wanted = wanted(m, s)
	}
	return out
}

// wanted is what the field holds that a packet does not satisfy.
func wanted(m policy.Model, s policy.Step) string {
	r := s.Rule
	switch s.Unmet {
	case "":
		return ""
	case "ipVersion":
		return fmt.Sprint(r.IPVersion)
	case "protocol":
		return protocolName(r.Protocol)
	case "notProtocol":
		return protocolName(r.NotProtocol)
	case "icmp":
		return icmpText(r.ICMP)
	case "notICMP":
		return icmpText(r.NotICMP)
	}
	end, field, _ := strings.Cut(s.Unmet, " ")
	match := &r.Source
	if end == "destination" {
		match = &r.Destination
	}
	return wantedAt(m, match, field)
}

func wantedAt(m policy.Model, match *policy.Match, field string) string {
	switch field {
	case "nets":
		return list(match.Nets)
	case "notNets":
		return list(match.NotNets)
	case "selector":
		return sets(m, match.Sets)
	case "notSelector":
		return sets(m, match.NotSets)
	case "ports":
		return ports(m, match.Ports, match.PortSets)
	case "notPorts":
		return ports(m, match.NotPorts, match.NotPortSets)
	}
	return ""
}

func list[T fmt.Stringer](all []T) string {
	var texts []string
	for _, v := range all {
		texts = append(texts, v.String())
	}
	return strings.Join(texts, ", ")
}

func sets(m policy.Model, ids []policy.SetID) string {
	var texts []string
	for _, id := range ids {
		texts = append(texts, m.Sets[id].Text)
	}
	return strings.Join(texts, " and ")
}

func ports(m policy.Model, ranges []policy.PortRange, named []policy.SetID) string {
	var texts []string
	for _, r := range ranges {
		text := fmt.Sprint(r.Min)
		if r.Max != r.Min {
			text += fmt.Sprintf("-%d", r.Max)
		}
		texts = append(texts, text)
	}
	for _, id := range named {
		texts = append(texts, m.Sets[id].Text)
	}
	return strings.Join(texts, ", ")
}

func icmpText(i *policy.ICMP) string {
	if i.Code < 0 {
		return fmt.Sprintf("type %d", i.Type)
	}
	return fmt.Sprintf("type %d code %d", i.Type, i.Code)
}

// print writes the answer as text or JSON.
func (a *answer) print(env cli.Env, format string) error {
	v := a.view()
	if format == "json" {
		return cli.PrintJSON(env.Out, v)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "From: %v\nTo:   %v\n      %v\n", a.from, a.to, v.Packet)
	for _, side := range v.Sides {
		side.write(&b)
	}
	fmt.Fprintf(&b, "\nVerdict: %s%s\n", v.Verdict, v.reason())
	for _, l := range v.Limits {
		fmt.Fprintf(&b, "Limit: %s.\n", l)
	}
	for _, n := range v.Notes {
		fmt.Fprintf(&b, "Note: %s.\n", strings.TrimSuffix(n, "."))
	}
	_, err := io.WriteString(env.Out, b.String())
	return err
}

// reason names the rules that deny.
func (v explained) reason() string {
	var who []string
	for _, side := range v.Sides {
		if side.Verdict != string(api.Deny) {
			continue
		}
		last := side.Steps[len(side.Steps)-1] // nothing is asked after it
		who = append(who, last.who()+" in "+side.Direction+" at "+side.Endpoint)
	}
	switch {
	case len(who) > 0:
		return ", by " + strings.Join(who, " and by ")
	case len(v.Sides) == 0:
		return ", for no policy is asked"
	}
	return ""
}

// who is the policy and rule, or the end, of a step.
func (s stepJSON) who() string {
	switch {
	case s.Rule != nil:
		return fmt.Sprintf("%s rule %d", s.Policy, *s.Rule)
	case s.Policy != "":
		return s.Policy
	case s.End == "tier":
		return "the end of tier " + s.Tier
	}
	return "no policy or profile"
}

func (v sideJSON) write(b *strings.Builder) {
	device, use := "", ""
	if v.Interface != "" {
		device = " (" + v.Interface + ")"
	}
	if v.Use != string(policy.UseOwn) {
		use = ", " + v.Use
	}
	if v.Maybe {
		use += ", if the packet takes this device"
	}
	fmt.Fprintf(b, "\n%s of %s%s on %s%s: %s\n", strings.ToUpper(v.Direction[:1])+v.Direction[1:], v.Endpoint, device, v.Node, use, undecided(v.Verdict))
	w := tabwriter.NewWriter(b, 0, 8, 2, ' ', 0)
	fmt.Fprint(w, "  TIER\tPOLICY\tRULE\tACTION\tID\tRESULT\n")
	for _, s := range v.Steps {
		rule, name := "-", s.Policy
		if s.Rule != nil {
			rule = fmt.Sprint(*s.Rule)
		}
		if s.Policy == "" {
			name = s.who()
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\t%s\t%s\t%s\n", dash(s.Tier), name, rule, dash(s.Action), dash(s.ID), s.result())
	}
	_ = w.Flush() // into memory
}

func undecided(verdict string) string {
	if verdict == string(api.Pass) {
		return "goes on"
	}
	return verdict
}

func dash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// result says what became of the packet at a step.
func (s stepJSON) result() string {
	switch {
	case s.Policy != "" && s.Rule == nil:
		return "has no rule in this direction"
	case s.Unmet != "" && s.Wanted != "":
		return "no match: " + s.Unmet + ": " + s.Wanted
	case s.Unmet != "":
		return "no match: " + s.Unmet
	case s.Staged:
		return "matches, and is only counted: staged"
	case s.Action == string(api.Log):
		return "matches, and goes on"
	case s.Action == string(api.Pass) && s.End == "tier":
		return "nothing has decided: next tier"
	case s.Action == string(api.Pass) && s.End != "":
		return "nothing has decided: goes on"
	case s.End != "":
		return "nothing has decided"
	case s.Action == string(api.Pass):
		return "matches: goes on with the next tier, or profile"
	}
	return "matches: decides"
}
