// Package policy resolves policies and selectors into rules and sets, incrementally.
//
// The goals, and how each is met:
//
//  1. One value says what a node has to enforce: Model. It is all that a layout of the kernel's tables, `policy explain` and an evaluator
//     need; model.go is the contract and can be read alone.
//  2. A change costs work in proportion to what it affects. Engine keeps the model and changes it by deltas: labels find the few selectors
//     that may match them by what those selectors demand (selector.Restriction), and only policies that select an endpoint of this
//     node are compiled, so that only sets of theirs have members.
//  3. The same inputs give the same bytes, whatever the order and batching in which they came. Names of lists, policies, rules and sets
//     are hashes of their content. Compute says the same by one plain pass over all inputs; a property test holds both equal.
//  4. Bad input never stops good input, and never opens what good input closes: see Problem.
//
// Where Calico documents a behaviour, that behaviour is meant. The decisions that its documents leave open stand where they are made.
package policy
