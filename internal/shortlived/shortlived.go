// Package shortlived has the runtime do with less, from before other packages are initialized. It is for a program that lives for some milliseconds and waits most of them for the kernel or
// for somebody else.
//
// Packages are initialized in the order of their paths, each after what it imports. This one imports nothing but the runtime, so it comes before nearly all others.
package shortlived

import "runtime"

func init() { //nolint:gochecknoinits // this is what the package is for
	runtime.GOMAXPROCS(1)      // another processor's thread, caches and way back cost more than there is to do for it
	runtime.MemProfileRate = 0 // the first sample of a profile that nobody asks for needs a table of a megabyte
	widen()
}

// stack is how much of the main goroutine's stack is asked for at once, in bytes: what an ADD uses, with some to spare.
const stack = 14 << 10

// widen grows the calling goroutine's stack. It begins small and is copied each time it is full, with every call that is on it then; here there are hardly any.
//
//go:noinline
func widen() byte {
	var room [stack]byte
	return room[runtime.NumCPU()%stack] // so that it is not optimized away
}
