package nft

import (
	"encoding/binary"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/nftable"
)

// elemsLimit is how many bytes of elements one message carries. The list of a message's elements is one attribute, whose length has 16
// bits: what is beyond it the kernel would lose without a word.
const elemsLimit = 48 << 10

// batch is a transaction under construction: between its begin and its end, messages that take effect together or not at all.
type batch struct {
	buffer
	table string
	first uint32 // sequence number of the begin
	last  int    // where the last message but the end starts; it asks for the acknowledgement
	spans []span
}

// span says what the messages from a sequence number on were about, up to the next span.
type span struct {
	seq        uint32
	verb, what string
}

// newBatch begins a batch. If gen is not 0, the kernel refuses it with ERESTART once its rules are of another generation.
func newBatch(table string, seq, gen uint32) *batch {
	b := &batch{table: table}
	b.seq, b.first = seq, seq+1
	b.raw(unix.NFNL_MSG_BATCH_BEGIN, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, func() {
		if gen != 0 {
			b.attr32(unix.NFNL_BATCH_GENID, gen)
		}
	})
	return b
}

// about says what the messages that follow do, for errors.
func (b *batch) about(verb, what string) { b.spans = append(b.spans, span{b.seq + 1, verb, what}) }

func (b *batch) add(typ, flags uint16, body func()) {
	b.last = len(b.b)
	b.message(typ, flags, body)
}

// finish ends the batch. The acknowledgement is asked of the last message before the end: of the end itself not every kernel sends one.
func (b *batch) finish() {
	flags := b.b[b.last+6:]
	binary.NativeEndian.PutUint16(flags, binary.NativeEndian.Uint16(flags)|unix.NLM_F_ACK)
	b.raw(unix.NFNL_MSG_BATCH_END, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, func() {})
}

// failed returns what the message of a sequence number was about.
func (b *batch) failed(seq uint32) string {
	text := "commit"
	for _, s := range b.spans {
		if s.seq > seq {
			break
		}
		text = s.verb + " " + s.what
	}
	return text
}

// delta encodes a delta in an order in which nothing refers to what is not there: counters, sets and chains come before the rules
// that name them, and go after them. Elements of maps come between, since they name chains.
func (b *batch) delta(d nftable.Delta, flags uint32) error {
	b.b = slices.Grow(b.b, sizeOf(d))
	if d.Whole {
		b.whole(flags)
	}
	for _, name := range d.AddCounters {
		b.counter(unix.NFT_MSG_NEWOBJ, unix.NLM_F_CREATE, name)
	}
	for i, s := range d.AddSets {
		b.set(s, uint32(i+1))
	}
	for _, c := range d.AddChains {
		b.chain(c)
	}
	if err := b.rules(d); err != nil {
		return err
	}
	b.elems(d)
	b.removals(d)
	return b.err
}

// sizeOf returns about how many bytes a delta takes, rather too many: tens of megabytes are not to be copied again and again.
func sizeOf(d nftable.Delta) int {
	const object, rule, elem = 200, 1000, 100
	n := object * (len(d.AddCounters) + len(d.DelCounters) + len(d.AddSets) + len(d.DelSets) + 2*len(d.DelChains) + 2)
	for _, chains := range [][]*nftable.Chain{d.AddChains, d.SetChains} {
		for _, c := range chains {
			n += object + rule*len(c.Rules)
		}
	}
	for _, s := range d.AddSets {
		n += elem * len(s.Elems)
	}
	for _, e := range d.Elems {
		n += object + elem*(len(e.Add)+len(e.Del))
	}
	return n
}

// whole makes the table, after it has deleted the one that there may be: to add what is there is no error.
func (b *batch) whole(flags uint32) {
	b.about("replace table", b.table)
	table := func(typ, create uint16) {
		b.add(typ, create, func() {
			b.attrString(unix.NFTA_TABLE_NAME, b.table)
			if create != 0 {
				b.attr32(unix.NFTA_TABLE_FLAGS, flags)
			}
		})
	}
	table(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE)
	table(unix.NFT_MSG_DELTABLE, 0)
	table(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE)
}

func (b *batch) counter(typ, flags uint16, name string) {
	b.about("write counter", name)
	b.add(typ, flags, func() {
		b.attrString(unix.NFTA_OBJ_TABLE, b.table)
		b.attrString(unix.NFTA_OBJ_NAME, name)
		b.attr32(unix.NFTA_OBJ_TYPE, objCounter)
		b.nest(unix.NFTA_OBJ_DATA, func() {})
	})
}

func (b *batch) set(s *nftable.Set, id uint32) {
	b.about("add set", s.Name)
	b.add(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE, func() {
		b.attrString(unix.NFTA_SET_TABLE, b.table)
		b.attrString(unix.NFTA_SET_NAME, s.Name)
		b.attr32(unix.NFTA_SET_FLAGS, setFlags(s))
		b.attr32(unix.NFTA_SET_KEY_TYPE, keyTypes[s.Type])
		b.attr32(unix.NFTA_SET_KEY_LEN, uint32(s.Type.Width()))
		b.attr32(unix.NFTA_SET_ID, id)
		if s.Map {
			b.attr32(unix.NFTA_SET_DATA_TYPE, verdictType)
			b.attr32(unix.NFTA_SET_DATA_LEN, 0)
		}
		if s.Dynamic > 0 {
			b.nest(unix.NFTA_SET_DESC, func() { b.attr32(unix.NFTA_SET_DESC_SIZE, s.Dynamic) })
		}
		if s.Type == nftable.Ifaces { // or nft shows the names as ""
			b.attr(unix.NFTA_SET_USERDATA, userdata(userdataKeyOrder, native32(orderHost)))
		}
	})
}

func setFlags(s *nftable.Set) (flags uint32) {
	if s.Interval {
		flags |= unix.NFT_SET_INTERVAL
	}
	if s.Map {
		flags |= unix.NFT_SET_MAP
	}
	if s.Dynamic > 0 {
		flags |= unix.NFT_SET_EVAL
	}
	if s.Forgets {
		flags |= unix.NFT_SET_TIMEOUT
	}
	return flags
}

func userdata(typ byte, value []byte) []byte {
	return append([]byte{typ, byte(len(value))}, value...)
}

func (b *batch) chain(c *nftable.Chain) {
	b.about("add chain", c.Name)
	b.add(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, func() {
		b.attrString(unix.NFTA_CHAIN_TABLE, b.table)
		b.attrString(unix.NFTA_CHAIN_NAME, c.Name)
		if c.Base.Hook == "" {
			return
		}
		b.attrString(unix.NFTA_CHAIN_TYPE, "filter")
		b.attr32(unix.NFTA_CHAIN_POLICY, 1) // NF_ACCEPT
		b.nest(unix.NFTA_CHAIN_HOOK, func() {
			b.attr32(unix.NFTA_HOOK_HOOKNUM, hooks[c.Base.Hook])
			b.attr32(unix.NFTA_HOOK_PRIORITY, uint32(c.Base.Priority))
		})
	})
}

// rules empties chains that go or are rewritten, then fills those that are new or rewritten.
func (b *batch) rules(d nftable.Delta) error {
	for _, c := range d.SetChains {
		b.flush(c.Name)
	}
	for _, name := range d.DelChains {
		b.flush(name)
	}
	for _, chains := range [][]*nftable.Chain{d.AddChains, d.SetChains} {
		for _, c := range chains {
			if err := b.fill(c); err != nil {
				return fmt.Errorf("encode chain %s: %w", c.Name, err)
			}
		}
	}
	return nil
}

func (b *batch) flush(chain string) {
	b.about("flush chain", chain)
	b.add(unix.NFT_MSG_DELRULE, 0, func() {
		b.attrString(unix.NFTA_RULE_TABLE, b.table)
		b.attrString(unix.NFTA_RULE_CHAIN, chain)
	})
}

func (b *batch) fill(c *nftable.Chain) error {
	b.about("fill chain", c.Name)
	var err error
	for i, r := range c.Rules {
		b.add(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, func() {
			b.attrString(unix.NFTA_RULE_TABLE, b.table)
			b.attrString(unix.NFTA_RULE_CHAIN, c.Name)
			b.nest(unix.NFTA_RULE_EXPRESSIONS, func() { err = b.rule(r) })
			b.attr(unix.NFTA_RULE_USERDATA, userdata(userdataComment, append([]byte(r.CommentOf(c.Marks()[i])), 0)))
		})
		if err != nil {
			return fmt.Errorf("rule %d: %w", i+1, err)
		}
	}
	return b.err
}

// elems takes elements away before it adds others: a map has one element of a key, and ranges do not overlap.
func (b *batch) elems(d nftable.Delta) {
	for _, e := range d.Elems {
		b.about("take elements from set", e.Set.Name)
		b.setElems(unix.NFT_MSG_DELSETELEM, 0, e.Set, e.Del)
	}
	for _, s := range d.AddSets {
		b.about("fill set", s.Name)
		b.setElems(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, s, s.Sorted())
	}
	for _, e := range d.Elems {
		b.about("add elements to set", e.Set.Name)
		b.setElems(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, e.Set, e.Add)
	}
}

// setElems encodes elements in as many messages as they need.
func (b *batch) setElems(typ, flags uint16, s *nftable.Set, elems []nftable.Elem) {
	for len(elems) > 0 {
		b.add(typ, flags, func() {
			b.attrString(unix.NFTA_SET_ELEM_LIST_TABLE, b.table)
			b.attrString(unix.NFTA_SET_ELEM_LIST_SET, s.Name)
			b.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func() {
				for start := len(b.b); len(elems) > 0 && len(b.b)-start < elemsLimit; elems = elems[1:] {
					b.elem(s, elems[0])
				}
			})
		})
	}
}

func (b *batch) elem(s *nftable.Set, e nftable.Elem) {
	key := func(k string, flags uint32) {
		b.nest(unix.NFTA_LIST_ELEM, func() {
			b.nest(unix.NFTA_SET_ELEM_KEY, func() { b.attr(unix.NFTA_DATA_VALUE, []byte(k)) })
			if flags != 0 {
				b.attr32(unix.NFTA_SET_ELEM_FLAGS, flags)
			}
			if s.Map {
				b.nest(unix.NFTA_SET_ELEM_DATA, func() { b.verdict(nftable.Verdict{Kind: nftable.Goto, Chain: e.To}) })
			}
		})
	}
	key(string(e.Key), 0)
	if !s.Interval {
		return
	}
	// The kernel's ranges end before a key. One up to the very last key has no end.
	if end := nftable.Next(nftable.Key(e.To)); end != "" {
		key(string(end), unix.NFT_SET_ELEM_INTERVAL_END)
	}
}

// removals takes away what nothing refers to any more: rules that named sets are gone by now, and with maps their elements go, which name chains.
func (b *batch) removals(d nftable.Delta) {
	for _, name := range d.DelSets {
		b.about("delete set", name)
		b.add(unix.NFT_MSG_DELSET, 0, func() {
			b.attrString(unix.NFTA_SET_TABLE, b.table)
			b.attrString(unix.NFTA_SET_NAME, name)
		})
	}
	for _, name := range d.DelChains {
		b.about("delete chain", name)
		b.add(unix.NFT_MSG_DELCHAIN, 0, func() {
			b.attrString(unix.NFTA_CHAIN_TABLE, b.table)
			b.attrString(unix.NFTA_CHAIN_NAME, name)
		})
	}
	for _, name := range d.DelCounters {
		b.counter(unix.NFT_MSG_DELOBJ, 0, name)
	}
}

// keyTypes holds nft's numbers of the types of keys (enum datatypes of its source; six bits for each part of a concatenation).
var keyTypes = map[nftable.Type]uint32{
	nftable.Addr4:      7,
	nftable.Addr6:      8,
	nftable.Ports:      13,
	nftable.Ifaces:     41,
	nftable.IfaceAddr4: 41<<6 | 7,
	nftable.IfaceAddr6: 41<<6 | 8,
	nftable.AddrPort4:  7<<12 | 12<<6 | 13,
	nftable.AddrPort6:  8<<12 | 12<<6 | 13,
	nftable.ProtoPorts: 12<<6 | 13,
	nftable.IfaceParts: 41<<6 | 19,
}

// hooks holds the kernel's numbers of hooks, enum nf_inet_hooks of linux/netfilter.h.
var hooks = map[nftable.Hook]uint32{
	nftable.Prerouting: 0,
	nftable.Input:      1,
	nftable.Forward:    2,
	nftable.Output:     3,
}
