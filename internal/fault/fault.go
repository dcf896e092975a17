// Package fault cuts programs off at named points, so that tests can ask what is left behind.
//
// Only a build with the tag "faults" does: in any other, At is an empty function, and neither the points' names nor the
// environment variable are in the program. With the tag, MUSLIN_FAULT lists what happens where, separated by commas:
//
//	plugin.add.registered=kill          the process gets SIGKILL
//	plugin.add.registered=error         At returns ErrInjected
//	apply.route.put=error:EBUSY         At returns that error of the kernel
//	plugin.add.registered=pause:/file   At makes /file.reached and goes on once /file is there
//
// What is listed for one point happens in turn: a pause may end in a kill.
//
// MUSLIN_FAULT=@/file takes the list from a file, anew at every point: for programs that run when the test begins.
package fault

// Variable is the environment variable that says what happens where.
const Variable = "MUSLIN_FAULT"

// Point is a place in a program. It is a number, so that a build without faults does not even hold its name.
type Point int

// The places. The comment says what has been done when one is passed.
const (
	Nowhere             Point = iota // no place: what is done there cannot be cut off
	PluginAddLocked                  // the attach lock is held
	PluginAddLinked                  // the veth pair is made; the handler may or may not have answered
	PluginAddRegistered              // pair and etcd are done
	PluginAddConfigured              // the pod's side has its addresses
	PluginAddFinished                // the host's side is done, nothing is printed
	PluginAddPrinted                 // the lock is held still
	PluginUndoUnlinked               // a failed ADD has removed its pair, and etcd still holds the pod
	PluginDelLocked                  // the attach lock is held
	PluginDelUnlinked                // the interface is gone, etcd still holds the pod
	PluginDelReleased                // the lock is held still
	PluginGCUnlinked                 // the interfaces are gone, etcd still holds the attachments
	ModuleAddDone                    // nothing is printed
	ModuleAddPrinted                 // the module has not ended
	ModuleDelDone                    // the module has not ended
	HandlerPlanned                   // before the commit
	HandlerCommitted                 // nobody knows yet
	AgentReplied                     // to an ADD's or CHECK's first line
	AgentAddLinked                   // the plugin has made the interface
	AgentAddProgrammed               // the routes are in the kernel; the plugin is not told
	AgentDelDone                     // the plugin is not told

	// Of a table, each passed only where something was changed. The order is that of the tables' dependency.
	ApplySysctlsPut
	ApplyLinksPut
	ApplyWireGuardPut // devices' keys, ports and marks, which go with the device
	ApplyPeersPut
	ApplyAddrsPut
	ApplyNeighsPut
	ApplyFDBPut
	ApplySetsPut
	ApplyChainsPut
	ApplyChains6Put
	ApplyRulesPut
	ApplyRoutesPut
	ApplyLinksRemoved
	ApplyPeersRemoved
	ApplyAddrsRemoved
	ApplyNeighsRemoved
	ApplyFDBRemoved
	ApplySetsRemoved
	ApplyChainsRemoved
	ApplyChains6Removed
	ApplyRulesRemoved
	ApplyRoutesRemoved

	ApplyPolicyBegun // there is policy to change, and nothing has been
	ApplyPolicyPut   // policy is in the kernel, and nothing else is

	ApplyBegun      // there is something to change, and nothing has been
	ApplyLinkTaken  // a device that is to be made anew is gone
	ApplyPeerPut    // one peer more is there, or is what it is to be
	ApplySetMade    // a new set is empty
	ApplyMemberPut  // one member more is in a set
	ApplyMemberGone // one member less is in a set
	ApplyRoutePut   // one route more is there
	ApplyChainMade  // a new chain is empty
	ApplyRuleAdded  // one rule more is in a chain
)

// Points lists every point, plugin first. Only tests call it.
func Points() []Point {
	var out []Point
	for i := range names() {
		if p := Point(i); p != Nowhere {
			out = append(out, p)
		}
	}
	return out
}

// Name is the point's name, as the variable has it: program, command, and what has been done. It is not a method: the linker keeps those
// of every type that is printed anywhere.
func Name(p Point) string { return names()[p] }

func names() []string {
	return []string{
		PluginAddLocked:     "plugin.add.locked",
		PluginAddLinked:     "plugin.add.linked",
		PluginAddRegistered: "plugin.add.registered",
		PluginAddConfigured: "plugin.add.configured",
		PluginAddFinished:   "plugin.add.finished",
		PluginAddPrinted:    "plugin.add.printed",
		PluginUndoUnlinked:  "plugin.undo.unlinked",
		PluginDelLocked:     "plugin.del.locked",
		PluginDelUnlinked:   "plugin.del.unlinked",
		PluginDelReleased:   "plugin.del.released",
		PluginGCUnlinked:    "plugin.gc.unlinked",
		ModuleAddDone:       "module.add.done",
		ModuleAddPrinted:    "module.add.printed",
		ModuleDelDone:       "module.del.done",
		HandlerPlanned:      "handler.planned",
		HandlerCommitted:    "handler.committed",
		AgentReplied:        "agent.replied",
		AgentAddLinked:      "agent.add.linked",
		AgentAddProgrammed:  "agent.add.programmed",
		AgentDelDone:        "agent.del.done",

		ApplySysctlsPut:     "apply.sysctls.put",
		ApplyLinksPut:       "apply.links.put",
		ApplyWireGuardPut:   "apply.wireguard.put",
		ApplyPeersPut:       "apply.wireguard.peers.put",
		ApplyAddrsPut:       "apply.addrs.put",
		ApplyNeighsPut:      "apply.neighs.put",
		ApplyFDBPut:         "apply.fdb.put",
		ApplySetsPut:        "apply.sets.put",
		ApplyChainsPut:      "apply.chains.put",
		ApplyChains6Put:     "apply.chains6.put",
		ApplyRulesPut:       "apply.rules.put",
		ApplyRoutesPut:      "apply.routes.put",
		ApplyLinksRemoved:   "apply.links.removed",
		ApplyPeersRemoved:   "apply.wireguard.peers.removed",
		ApplyAddrsRemoved:   "apply.addrs.removed",
		ApplyNeighsRemoved:  "apply.neighs.removed",
		ApplyFDBRemoved:     "apply.fdb.removed",
		ApplySetsRemoved:    "apply.sets.removed",
		ApplyChainsRemoved:  "apply.chains.removed",
		ApplyChains6Removed: "apply.chains6.removed",
		ApplyRulesRemoved:   "apply.rules.removed",
		ApplyRoutesRemoved:  "apply.routes.removed",

		ApplyPolicyBegun: "apply.policy.begun",
		ApplyPolicyPut:   "apply.policy.put",

		ApplyBegun:      "apply.begun",
		ApplyLinkTaken:  "apply.link.taken",
		ApplyPeerPut:    "apply.wireguard.peer.put",
		ApplySetMade:    "apply.set.made",
		ApplyMemberPut:  "apply.member.put",
		ApplyMemberGone: "apply.member.gone",
		ApplyRoutePut:   "apply.route.put",
		ApplyChainMade:  "apply.chain.made",
		ApplyRuleAdded:  "apply.rule.added",
	}
}
