package ruleset

import (
	"strings"

	"github.com/muslin-cni/muslin/internal/policy"
)

// LogGroup is the group of nflog to which agents have packets reported.
const LogGroup = 9

// Told is what the prefix of a reported packet, or the name of a counter, says: of which rule it is, or for which other reason packets are dropped.
type Told struct {
	Rule   policy.RuleID // "" if no rule's
	Reason string        // "" if a rule's
	Logged bool          // by a rule that only logs: the packet went on
}

// Prefix reads the prefix of a report; false if it is none of this table's.
func Prefix(prefix string) (Told, bool) {
	kind, name, _ := strings.Cut(prefix, ":")
	switch {
	case name == "":
		return Told{}, false
	case kind == "D", kind == "L":
		return Told{Rule: policy.RuleID(name), Logged: kind == "L"}, true
	}
	return Told{Reason: name}, kind == "S"
}

// Counter reads the name of a counter; false if it is none of this table's. Whether its rule drops, only the rule knows.
func Counter(name string) (Told, bool) {
	id, ok := strings.CutPrefix(name, "r-")
	if !ok || id == "" {
		return Told{}, false
	}
	if explain(id) != "" {
		return Told{Reason: id}, true
	}
	return Told{Rule: policy.RuleID(id)}, true
}

// Why says in words who dropped, or for which reason, if it was no rule.
func (t Told) Why() string {
	if text := explain(t.Reason); text != "" {
		return text
	}
	return t.Reason
}

// explain says a reason in words; "" if there is no such reason.
func explain(reason string) string {
	return map[string]string{
		reasonSpoof:     "the source is not the pod's own address",
		reasonUnknown:   "the interface is of a pod that is not known here yet or any more",
		reasonToHost:    "defaultEndpointToHostAction",
		reasonTunnel:    "pods send no packets of tunnels (allowVXLANPacketsFromWorkloads, allowIPIPPacketsFromWorkloads)",
		reasonPeer:      "a packet of a tunnel from an address that is no node's",
		reasonMidStream: "it is of a connection that is not tracked (any more), and begins none",
		reasonCrowd:     "the pod has as many connections as it may (qos.projectcalico.org/…MaxConnections, MUSLIN_POD_MAX_CONNECTIONS)",
		reasonRate:      "the pod sends or gets more than it may (qos.projectcalico.org/…PacketRate, …Bandwidth)",
		reasonLost:      "policy changed twice while the packet was under way",
	}[reason]
}
