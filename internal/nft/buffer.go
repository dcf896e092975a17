package nft

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"
)

// buffer is a run of netlink messages under construction. Their attributes are big-endian, as nfnetlink's are; headers are native.
type buffer struct {
	b   []byte
	seq uint32 // of the last message begun
	err error  // an attribute longer than its 16-bit length can say: the kernel would cut it silently
}

var errLong = errors.New("attribute is longer than 64 KiB")

const nfgenLen = 4 // struct nfgenmsg

// message adds a message to the subsystem nftables. What is done within body are its attributes.
func (b *buffer) message(typ, flags uint16, body func()) {
	b.raw(unix.NFNL_SUBSYS_NFTABLES<<8|typ, flags, unix.NFPROTO_INET, 0, body)
}

func (b *buffer) raw(typ, flags uint16, family uint8, res uint16, body func()) {
	b.seq++
	start := len(b.b)
	b.b = binary.NativeEndian.AppendUint32(b.b, 0)
	b.b = binary.NativeEndian.AppendUint16(b.b, typ)
	b.b = binary.NativeEndian.AppendUint16(b.b, flags|unix.NLM_F_REQUEST)
	b.b = binary.NativeEndian.AppendUint32(b.b, b.seq)
	b.b = binary.NativeEndian.AppendUint32(b.b, 0)
	b.b = append(b.b, family, unix.NFNETLINK_V0)
	b.b = binary.BigEndian.AppendUint16(b.b, res)
	body()
	binary.NativeEndian.PutUint32(b.b[start:], uint32(len(b.b)-start))
}

func (b *buffer) attr(typ uint16, value []byte) {
	b.header(typ, len(value))
	b.b = append(b.b, value...)
	b.pad()
}

func (b *buffer) attr16(typ, v uint16) {
	b.header(typ, 2)
	b.b = binary.BigEndian.AppendUint16(b.b, v)
	b.pad()
}

func (b *buffer) attr32(typ uint16, v uint32) {
	b.header(typ, 4)
	b.b = binary.BigEndian.AppendUint32(b.b, v)
}

func (b *buffer) attr64(typ uint16, v uint64) {
	b.header(typ, 8)
	b.b = binary.BigEndian.AppendUint64(b.b, v)
}

// attrString adds a string as the kernel reads them, with a NUL behind it.
func (b *buffer) attrString(typ uint16, s string) {
	b.header(typ, len(s)+1)
	b.b = append(b.b, s...)
	b.b = append(b.b, 0)
	b.pad()
}

// nest adds an attribute whose content is attributes.
func (b *buffer) nest(typ uint16, body func()) {
	start := len(b.b)
	b.header(typ|unix.NLA_F_NESTED, 0)
	body()
	size := len(b.b) - start
	if size > 0xffff {
		b.err = errLong
		return
	}
	binary.NativeEndian.PutUint16(b.b[start:], uint16(size))
}

func (b *buffer) header(typ uint16, size int) {
	if size > 0xffff-unix.SizeofNlAttr {
		b.err = errLong
	}
	b.b = binary.NativeEndian.AppendUint16(b.b, uint16(unix.SizeofNlAttr+size))
	b.b = binary.NativeEndian.AppendUint16(b.b, typ)
}

func (b *buffer) pad() {
	for len(b.b)%unix.NLA_ALIGNTO != 0 {
		b.b = append(b.b, 0)
	}
}
