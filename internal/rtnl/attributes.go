package rtnl

import (
	"encoding/binary"
	"iter"
	"syscall"

	"golang.org/x/sys/unix"
)

// attributes are those of a message, or of an attribute that holds others (rtnetlink(7)). What is no attribute ends them with an error. A link has some fifty, and
// the kernel tells of it several times for each pod: nothing is kept of them.
func attributes(b []byte) iter.Seq2[syscall.NetlinkRouteAttr, error] {
	return func(yield func(syscall.NetlinkRouteAttr, error) bool) {
		for len(b) >= unix.SizeofRtAttr {
			a := syscall.NetlinkRouteAttr{Attr: syscall.RtAttr{Len: binary.NativeEndian.Uint16(b), Type: binary.NativeEndian.Uint16(b[2:])}}
			size := int(a.Attr.Len)
			if size < unix.SizeofRtAttr || size > len(b) {
				yield(syscall.NetlinkRouteAttr{}, unix.EINVAL)
				return
			}
			a.Value = b[unix.SizeofRtAttr:size]
			if !yield(a, nil) {
				return
			}
			b = b[min(len(b), aligned(size)):]
		}
	}
}
