// Package doctor says what is wrong on a node, in the order in which one would mend it.
//
// Examine computes findings from a View, which somebody else has gathered: it looks at nothing itself, so that each finding can be produced on values. A check
// whose facts are missing says so and stops no other. What follows from the error of an earlier check is marked with that check's name: mend that first.
package doctor

import (
	"fmt"
	"slices"
	"strings"
)

// Severity says how bad a finding is.
type Severity string

// The severities.
const (
	OK      Severity = "ok"
	Warning Severity = "warning" // it works, or may work
	Error   Severity = "error"   // pods of this node are without network, or soon will be
	Unknown Severity = "unknown" // it could not be found out
)

// Finding is what a check has found.
type Finding struct {
	Check    string   `json:"check"`
	Severity Severity `json:"severity"`
	Object   string   `json:"object,omitempty"`  // what is concerned: a file, a device, an endpoint, a block
	What     string   `json:"what,omitempty"`    // what is wrong
	Remedy   string   `json:"remedy,omitempty"`  // what to do about it
	Follows  string   `json:"follows,omitempty"` // the check whose error this comes of
}

// Check is a group of findings.
type Check struct {
	Name  string
	About string // what is looked at, for people
	judge func(View) []Finding
}

// Checks are all checks, in the order in which one would mend what they find: causes before consequences.
func Checks() []Check {
	return []Check{
		{"certificates", "the certificates and keys by which agent, plugin and this command reach etcd: unreadable, expired, not yet valid, of another key", certificates},
		{"etcd", "every endpoint answers, and a majority agrees; alarms such as NOSPACE, room, time to answer, clocks; the cluster's ClusterInformation is there and ready", etcd},
		{"identity", "the node's name, whose it is by machine id, its Node, and that its addresses are on this host", identity},
		{"disks", "room on the file systems that agent and plugin write to", disks},
		{"kernel", "features that pools and settings ask for, forwarding and the files that set it, reverse path filters, room for connections, one iptables backend", kernelHas},
		{"leftovers", "other networks on this host: CNI configurations before ours, Calico's agent, devices and chains of others, tunnels that nobody asks for", leftovers},
		{"interference", "NetworkManager and systemd-networkd that manage our devices or routes, firewalld, ufw, and rules that drop what is forwarded", interference},
		{"agent", "the agent runs, serves pods, and has no problems of its own", agent},
		{"cni", "the network configuration is ours and valid, where the runtime looks, and fits the agent, and its programs are there and of the agent's version", cni},
		{"mtu", "the MTU of pods and tunnels fits into that of the devices between nodes", mtu},
		{"peers", "the BGP sessions are established", peers},
		{"routes", "routes to the pods of this node and to the blocks of others are in the kernel, and nobody's rules or routes lead elsewhere", routes},
		{"blocks", "what etcd says of this node's addresses adds up, pools have room and do not hold networks of this host", blocks},
		{"expiry", "certificates that end soon, and keys that others can read", expiry},
	}
}

// Select returns the checks of these names, in their order; all if there are none. The error names what there is.
func Select(names []string) ([]Check, error) {
	all := Checks()
	var known []string
	for _, c := range all {
		known = append(known, c.Name)
	}
	for _, n := range names {
		if !slices.Contains(known, n) {
			return nil, fmt.Errorf("unknown check %q: want some of %s", n, strings.Join(known, ", "))
		}
	}
	return slices.DeleteFunc(all, func(c Check) bool { return len(names) > 0 && !slices.Contains(names, c.Name) }), nil
}

// Examine returns the findings of these checks, in their order; a check that finds nothing wrong has one that is OK.
func Examine(v View, checks []Check) []Finding {
	var out []Finding
	for _, c := range checks {
		found := c.judge(v)
		if len(found) == 0 {
			found = []Finding{{Severity: OK}}
		}
		for _, f := range found {
			f.Check = c.Name
			out = append(out, f)
		}
	}
	return out
}

// Worst is the worst severity among findings: Error, Warning, Unknown, OK, in this order.
func Worst(found []Finding) Severity {
	for _, s := range []Severity{Error, Warning, Unknown} {
		if slices.ContainsFunc(found, func(f Finding) bool { return f.Severity == s }) {
			return s
		}
	}
	return OK
}

// list is findings in the making. remedy may be "" where the text says it all.
type list []Finding

func (l *list) add(s Severity, object, remedy, format string, args ...any) {
	*l = append(*l, Finding{Severity: s, Object: object, What: fmt.Sprintf(format, args...), Remedy: remedy})
}

// blame marks the last finding as coming of the first of these checks that has found an error. They must come before its own.
func (l *list) blame(v View, checks ...string) {
	for _, c := range Checks() {
		if slices.Contains(checks, c.Name) && Worst(c.judge(v)) == Error {
			(*l)[len(*l)-1].Follows = c.Name
			return
		}
	}
}

// unknown says that a fact is missing. What is missing for want of etcd or of the agent says only whom it follows.
func (l *list) unknown(object string, err error) {
	f := Finding{Severity: Unknown, Object: object, What: "not known: " + err.Error()}
	if after, ok := follows(err); ok {
		f.What, f.Follows = "not known while "+after.why, after.check
	}
	*l = append(*l, f)
}
