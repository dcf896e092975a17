package shortlived

import (
	"runtime"
	"runtime/debug"
	"testing"
	"unsafe"
)

// TestWidenedStackIsNotCopiedAgain looks whether a variable on the stack stays where it is while calls use the room.
func TestWidenedStackIsNotCopiedAgain(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // a collection makes stacks smaller again
	moved := make(chan bool)
	begin := func(prepare func() byte) {
		var onStack byte
		prepare()
		before := address(&onStack)
		deep(stack / 2)
		moved <- address(&onStack) != before
	}
	go begin(func() byte { return 0 })
	if !<-moved {
		t.Error("the stack of a new goroutine has as much room already")
	}
	go begin(widen)
	if <-moved {
		t.Error("it was copied all the same")
	}
}

func TestProgramHasOneProcessor(t *testing.T) {
	if n := runtime.GOMAXPROCS(0); n != 1 {
		t.Errorf("it has %d", n)
	}
}

func address(b *byte) uintptr { return uintptr(unsafe.Pointer(b)) }

// deep uses so many bytes of the stack, or somewhat more.
//
//go:noinline
func deep(n int) byte {
	var frame [256]byte
	if n > len(frame) {
		frame[n%len(frame)] = deep(n - len(frame))
	}
	return frame[0]
}

func TestProgramSamplesNoAllocations(t *testing.T) {
	if runtime.MemProfileRate != 0 {
		t.Errorf("one in %d bytes", runtime.MemProfileRate)
	}
}
