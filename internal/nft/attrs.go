package nft

import (
	"encoding/binary"
	"iter"
	"strings"

	"golang.org/x/sys/unix"
)

// attr is an attribute of a message that was received.
type attr struct {
	typ   uint16
	value []byte
}

// attrs yields the attributes in b. It ends at what is not one.
func attrs(b []byte) iter.Seq[attr] {
	return func(yield func(attr) bool) {
		for len(b) >= unix.SizeofNlAttr {
			size := int(binary.NativeEndian.Uint16(b))
			if size < unix.SizeofNlAttr || size > len(b) {
				return
			}
			a := attr{binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER), b[unix.SizeofNlAttr:size]}
			if !yield(a) {
				return
			}
			b = b[min(align(size), len(b)):]
		}
	}
}

// find returns the value of the first attribute of a type, nil if there is none.
func find(b []byte, typ uint16) []byte {
	for a := range attrs(b) {
		if a.typ == typ {
			return a.value
		}
	}
	return nil
}

// string returns a value as a string, without the NUL behind it.
func (a attr) string() string { return text(a.value) }

func text(b []byte) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	return s
}

// u32 returns a big-endian number, 0 if it is none.
func (a attr) u32() uint32 {
	if len(a.value) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(a.value)
}

func (a attr) u64() uint64 {
	if len(a.value) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(a.value)
}

func align(n int) int { return (n + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }
