// Package xtables reads and writes the iptables rules and ipsets of one network namespace.
//
// Both are tables with List and Apply, see internal/kernel. The kernel gives a rule back in other words than it was given, so
// every rule of ours carries a comment with a hash of its text, its chain and all rules before it. Rules are compared by these
// hashes, and therefore a list of chains returns only them, see Marks.
package xtables
