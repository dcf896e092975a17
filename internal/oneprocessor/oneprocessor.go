// Package oneprocessor has the runtime use one processor, from before other packages are initialized. It is for a program that lives for some milliseconds and
// waits most of them for the kernel or for somebody else: another processor's thread, caches and way back cost more than there is to do for it.
//
// Packages are initialized in the order of their paths, each after what it imports. This one imports nothing but the runtime, so it comes before nearly all others.
package oneprocessor

import "runtime"

func init() { runtime.GOMAXPROCS(1) } //nolint:gochecknoinits // this is what the package is for
