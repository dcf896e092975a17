// Package sim runs a cluster of thousands of nodes in one process, in an order that a seed decides.
//
// The goals, and how each is met:
//
//  1. What runs is the real thing: addresses are given and taken by internal/register on pkg/ipam, over pkg/store; snapshots are internal/feed's; the kernel is
//     what internal/plan computes and internal/reconcile writes; what is frozen, what lingers, what waits for policy and what the audit frees, internal/agent decides; a pool
//     is changed and a node deleted as muslinctl does it; what a host had that Kubernetes has lost, internal/controllers takes back.
//  2. What is simulated is held to the suite of what it stands for: etcd is internal/memetcd, of which each request and each message of a watch is
//     carried out only when it is drawn (wire.go); a host is an internal/memkernel; time is testing/synctest's.
//  3. A run is its seed. One goroutine, the world's, draws whatever happens next from one source of random numbers: that a request is carried out, or lost, or
//     its answer is, that a node is told of revisions, that a pod comes or goes, that something breaks. Then it waits until nobody can go on without it.
//  4. What must hold is looked at all along, after each commit and each round (books.go, rules.go), and more so whenever the world
//     comes to rest (rest.go).
//
// Why both synctest and a scheduler: commands of one node share a transaction, deadlines end requests and conflicts are tried again after a pause, which is
// code with goroutines and timers, and worth to be run as it is. A bubble of synctest gives it time that stands still while anybody can run. But it lets all
// run at once who can, and promises nothing of their order. So goroutines are held wherever it would matter which is first, until they are drawn or it is their
// turn: at etcd, where those of different nodes meet (wire.go), at a node's handler, also when they come back to it, and at an interface's attach lock (queue.go).
// The world sets a process going once until all stand still again (World.stir, World.still), and puts in order then what was asked of it; a run in which two causes
// meet, in which somebody acts out of turn, or in which two who ask for the same cannot be told apart, fails by itself. The pauses that the code itself draws from a
// source that nobody can seed are shorter than a tick of the world's clock, which only ever moves by whole ticks.
//
// A node's snapshots are made once for all nodes, as values (history), since two thousand feeds would each decode the cluster. A few nodes have the real Feed
// with its goroutines and its watches; that both come to the same is a part of what is looked at.
//
// Kubernetes is an API server of two kinds of objects (kube.go), which those of the controllers ask that take addresses back (manager.go): by caches that lag, stall,
// and begin with what is out of date. Another program deletes Nodes and takes blocks from nodes, as Calico does, and some pods have another IPAM's addresses: of
// what our transactions compare, some is for these alone.
//
// Policy is in force where a node has the real Feed (policy.go): the agent's guard, with internal/policy and internal/ruleset, writes by the real nft.Keeper what the kernel keeps. After each
// round no pod may have a route whose packets do not meet its policies; at rest the table is held against one that is computed from nothing, by the compiler's oracle.
//
// What is not here: the order of an agent's round is written again in agent.go, since the real loop waits for sockets, and so are a controller's queues; that an ADD waits for the route,
// WireGuard, BGP and what mirrors Kubernetes' objects are left out, and so is CNI's GC, which the runtime must not call beside other commands. Where there are more than 300 nodes, so are IPv6, tunnels and policy.
package sim
