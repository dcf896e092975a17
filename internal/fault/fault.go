// Package fault cuts programs off at named points, so that tests can ask what is left behind.
//
// Only a build with the tag "faults" does: in any other, At is an empty function, and neither the points' names nor the
// environment variable are in the program. With the tag, MUSLIN_FAULT lists what happens where, separated by commas:
//
//	plugin.add.registered=kill          the process gets SIGKILL
//	plugin.add.registered=error         At returns ErrInjected
//	plugin.add.registered=pause:/file   At makes /file.reached and returns once /file is there
//
// MUSLIN_FAULT=@/file takes the list from a file, anew at every point: for programs that run when the test begins.
package fault

// Variable is the environment variable that says what happens where.
const Variable = "MUSLIN_FAULT"

// Point is a place in a program.
type Point string

// The places. What a name says has been done when it is passed.
const (
	PluginAddLocked     Point = "plugin.add.locked"     // the attach lock is held
	PluginAddLinked     Point = "plugin.add.linked"     // the veth pair is made; the handler may or may not have answered
	PluginAddRegistered Point = "plugin.add.registered" // pair and etcd are done
	PluginAddConfigured Point = "plugin.add.configured" // the pod's side has its addresses
	PluginAddFinished   Point = "plugin.add.finished"   // the host's side is done, nothing is printed
	PluginAddPrinted    Point = "plugin.add.printed"    // the lock is held still
	PluginUndoUnlinked  Point = "plugin.undo.unlinked"  // a failed ADD has removed its pair, and etcd still holds the pod
	PluginDelLocked     Point = "plugin.del.locked"     // the attach lock is held
	PluginDelUnlinked   Point = "plugin.del.unlinked"   // the interface is gone, etcd still holds the pod
	PluginDelReleased   Point = "plugin.del.released"   // the lock is held still
	PluginGCUnlinked    Point = "plugin.gc.unlinked"    // the interfaces are gone, etcd still holds the attachments
	ModuleAddDone       Point = "module.add.done"       // nothing is printed
	ModuleAddPrinted    Point = "module.add.printed"    // the module has not ended
	ModuleDelDone       Point = "module.del.done"       // the module has not ended
	HandlerPlanned      Point = "handler.planned"       // before the commit
	HandlerCommitted    Point = "handler.committed"     // nobody knows yet
	AgentReplied        Point = "agent.replied"         // to an ADD's or CHECK's first line
	AgentAddLinked      Point = "agent.add.linked"      // the plugin has made the interface
	AgentAddProgrammed  Point = "agent.add.programmed"  // the routes are in the kernel; the plugin is not told
	AgentDelDone        Point = "agent.del.done"        // the plugin is not told
)

// Points lists every point, plugin first. Only tests call it.
func Points() []Point {
	return []Point{
		PluginAddLocked, PluginAddLinked, PluginAddRegistered, PluginAddConfigured, PluginAddFinished, PluginAddPrinted, PluginUndoUnlinked,
		PluginDelLocked, PluginDelUnlinked, PluginDelReleased, PluginGCUnlinked,
		ModuleAddDone, ModuleAddPrinted, ModuleDelDone,
		HandlerPlanned, HandlerCommitted,
		AgentReplied, AgentAddLinked, AgentAddProgrammed, AgentDelDone,
	}
}
