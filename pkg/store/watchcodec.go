package store

import (
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// watchCodec reads the messages of one watch. Every agent is told of every address that any node gives out: what etcd says is read in one pass and into
// memory that is used again, so that a message lasts until the next one. Messages of another form are left to gRPC's own codec.
type watchCodec struct {
	encoding.CodecV2
	raw    []byte
	told   []happening
	events []*mvccpb.Event
	slots  []slot
}

// slot is the memory of an event.
type slot struct {
	event mvccpb.Event
	kv    mvccpb.KeyValue
}

// keptBytes and keptEvents bound what is used again: a watch that catches up is told of much at once.
const (
	keptBytes  = 64 << 10
	keptEvents = 256
)

func newWatchCodec() *watchCodec { return &watchCodec{CodecV2: encoding.GetCodecV2(proto.Name)} }

// Unmarshal implements encoding.CodecV2.
func (c *watchCodec) Unmarshal(data mem.BufferSlice, v any) error {
	res, ok := v.(*pb.WatchResponse)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	if cap(c.raw) > keptBytes || cap(c.told) > keptEvents {
		c.raw, c.told, c.events, c.slots = nil, nil, nil, nil
	}
	c.raw = slices.Grow(c.raw[:0], data.Len())[:data.Len()]
	data.CopyTo(c.raw)
	if c.read(c.raw, res) {
		return nil
	}
	return c.CodecV2.Unmarshal(data, v)
}

// read reads a message as etcd writes those that tell of events or progress, into an empty response which is of use as long as raw is, and until the next
// one is read. Where it returns false, the message is of another form, and the response is as it was.
func (c *watchCodec) read(raw []byte, to *pb.WatchResponse) bool {
	var header *pb.ResponseHeader
	var id uint64
	var created bool
	c.told = c.told[:0]
	ok := fieldsOf(raw, func(number protowire.Number, n uint64, text []byte) (ok bool) {
		switch {
		case number == 1 && text != nil && header == nil:
			header, ok = readHeader(text)
		case number == 2 && text == nil:
			id, ok = n, true
		case number == 3 && text == nil:
			created, ok = n != 0, true
		case number == 11 && text != nil:
			var h happening
			ok = h.read(text)
			c.told = append(c.told, h)
		}
		return ok
	})
	if !ok {
		return false
	}
	to.Header, to.WatchId, to.Created, to.Events = header, int64(id), created, c.fill()
	return true
}

// fill makes events of what was told.
func (c *watchCodec) fill() []*mvccpb.Event {
	if len(c.told) > len(c.slots) {
		c.slots, c.events = make([]slot, 2*len(c.told)), nil
		for i := range c.slots {
			c.events = append(c.events, &c.slots[i].event)
		}
	}
	for i, h := range c.told {
		e, kv := &c.slots[i].event, &c.slots[i].kv
		e.Type, e.Kv = mvccpb.Event_EventType(h.kind), nil
		if !h.has {
			continue
		}
		e.Kv = kv
		kv.Key, kv.Value = h.key, h.value
		kv.CreateRevision, kv.ModRevision, kv.Version, kv.Lease = int64(h.n[0]), int64(h.n[1]), int64(h.n[2]), int64(h.n[3])
	}
	return c.events[:len(c.told)]
}

// happening is an event, in little memory.
type happening struct {
	kind       uint64
	key, value []byte
	n          [4]uint64 // revision of creation and of change, version, lease
	has        bool      // a key and a value, or one of them
}

// read takes over an event. One that tells the value before is of another form.
func (t *happening) read(raw []byte) bool {
	return fieldsOf(raw, func(number protowire.Number, n uint64, text []byte) (ok bool) {
		switch {
		case number == 1 && text == nil:
			t.kind, ok = n, true
		case number == 2 && text != nil && !t.has:
			t.has = true
			ok = t.readKV(text)
		}
		return ok
	})
}

func (t *happening) readKV(raw []byte) bool {
	return fieldsOf(raw, func(number protowire.Number, n uint64, text []byte) bool {
		switch {
		case number == 1 && text != nil:
			t.key = text
		case number == 5 && text != nil:
			t.value = text
		case number >= 2 && number <= 4 && text == nil:
			t.n[number-2] = n
		case number == 6 && text == nil:
			t.n[3] = n
		default:
			return false
		}
		return true
	})
}

func readHeader(raw []byte) (*pb.ResponseHeader, bool) {
	h := &pb.ResponseHeader{}
	ok := fieldsOf(raw, func(number protowire.Number, n uint64, text []byte) bool {
		switch {
		case text != nil:
			return false
		case number == 1:
			h.ClusterId = n
		case number == 2:
			h.MemberId = n
		case number == 3:
			h.Revision = int64(n)
		case number == 4:
			h.RaftTerm = n
		default:
			return false
		}
		return true
	})
	return h, ok
}

// fieldsOf has each field of a message taken until one is refused: a number, or bytes, which are nil for a number. It returns whether all were taken
// and there was nothing else.
func fieldsOf(raw []byte, take func(number protowire.Number, n uint64, text []byte) bool) bool {
	for len(raw) > 0 {
		number, kind, size := protowire.ConsumeTag(raw)
		if size < 0 {
			return false
		}
		raw = raw[size:]
		var n uint64
		var text []byte
		switch kind {
		case protowire.VarintType:
			n, size = protowire.ConsumeVarint(raw)
		case protowire.BytesType:
			text, size = protowire.ConsumeBytes(raw)
		default:
			return false
		}
		if size < 0 || !take(number, n, slices.Clip(text)) {
			return false
		}
		raw = raw[size:]
	}
	return true
}
