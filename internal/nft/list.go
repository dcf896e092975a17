package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/nftable"
)

// listAttempts is how often a listing is begun anew because somebody changed rules meanwhile.
const listAttempts = 20

// errChanged says that rules changed while they were listed.
var errChanged = errors.New("rules are being changed by others all the time")

// List reads a table back, and the generation of rules that it belongs to. Of chains it returns the marks of their rules; rules and
// elements that are not as we write them show as what differs. A table that is not there is an empty Listing.
func (c *Conn) List(ctx context.Context, table string) (nftable.Listing, uint32, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for range listAttempts {
		gen, err := c.generation(ctx)
		if err != nil {
			return nftable.Listing{}, 0, err
		}
		l, err := c.list(ctx, table)
		after, errGen := c.generation(ctx)
		switch {
		case errGen != nil:
			return nftable.Listing{}, 0, errGen
		case after == gen && err == nil:
			return l, gen, nil
		case after == gen && !errors.Is(err, unix.EINTR):
			return nftable.Listing{}, 0, fmt.Errorf("list table %s: %w", table, err)
		}
	}
	return nftable.Listing{}, 0, fmt.Errorf("list table %s: %w", table, errChanged)
}

// Generation returns the number of the generation of rules in force in the namespace. Every commit of anybody's makes another.
func (c *Conn) Generation(ctx context.Context) (uint32, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.generation(ctx)
}

func (c *Conn) generation(ctx context.Context) (gen uint32, err error) {
	err = c.ask(ctx, unix.NFT_MSG_GETGEN, 0, func(*buffer) {}, func(body []byte) error {
		gen = attr{value: find(body, unix.NFTA_GEN_ID)}.u32()
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("get nftables' generation: %w", err)
	}
	return gen, nil
}

// Counters reads the named counters of a table.
func (c *Conn) Counters(ctx context.Context, table string) (map[string]nftable.Counted, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := reader{Listing: nftable.Listing{Counters: map[string]nftable.Counted{}}}
	if err := c.dump(ctx, unix.NFT_MSG_GETOBJ, table, "", r.object); err != nil {
		return nil, fmt.Errorf("list counters of table %s: %w", table, err)
	}
	return r.Counters, nil
}

func (c *Conn) list(ctx context.Context, table string) (nftable.Listing, error) {
	r := reader{Listing: nftable.Listing{
		Chains: map[string]nftable.Listed{}, Sets: map[string]*nftable.Set{}, Counters: map[string]nftable.Counted{},
	}}
	err := c.ask(ctx, unix.NFT_MSG_GETTABLE, 0, func(b *buffer) { b.attrString(unix.NFTA_TABLE_NAME, table) }, r.table)
	if errors.Is(err, unix.ENOENT) {
		return nftable.Listing{}, nil
	}
	if err != nil {
		return nftable.Listing{}, err
	}
	for _, d := range []struct {
		typ  uint16
		take func([]byte) error
	}{
		{unix.NFT_MSG_GETCHAIN, r.chain}, {unix.NFT_MSG_GETRULE, r.rule},
		{unix.NFT_MSG_GETSET, r.set}, {unix.NFT_MSG_GETOBJ, r.object},
	} {
		if err := c.dump(ctx, d.typ, table, "", d.take); err != nil {
			return nftable.Listing{}, err
		}
	}
	for name, s := range r.Sets {
		if s.Dynamic > 0 {
			continue // what rules have put in is nobody's business
		}
		var elems []kernelElem
		err := c.dump(ctx, unix.NFT_MSG_GETSETELEM, table, name, func(body []byte) error {
			elems = append(elems, elemsOf(body)...)
			return nil
		})
		if err != nil {
			return nftable.Listing{}, err
		}
		r.fill(s, elems)
	}
	return r.Listing, nil
}

// dump asks for all objects of a kind in a table, or of all elements of a set in it. Of some kinds, such as chains, the kernel does not heed the table's name
// and tells those of every table of the family: firewalld's and others' too.
func (c *Conn) dump(ctx context.Context, typ uint16, table, set string, take func(body []byte) error) error {
	// The table's name is attribute 1 of every kind of object, and the set's name is attribute 2 of elements.
	return c.ask(ctx, typ, unix.NLM_F_DUMP, func(b *buffer) {
		b.attrString(unix.NFTA_TABLE_NAME, table)
		if set != "" {
			b.attrString(unix.NFTA_SET_ELEM_LIST_SET, set)
		}
	}, func(body []byte) error {
		if text(find(body, unix.NFTA_TABLE_NAME)) != table {
			return nil
		}
		return take(body)
	})
}

// ask sends a request and calls take with the attributes of each answer. A dump that was interrupted gives EINTR.
func (c *Conn) ask(ctx context.Context, typ, flags uint16, body func(*buffer), take func([]byte) error) error {
	b := buffer{seq: c.seq}
	b.message(typ, flags, func() { body(&b) })
	return c.exchange(ctx, &b, func(body []byte) error { return take(body[nfgenLen:]) })
}

// exchange sends the one request in b and calls take with each answer, its struct nfgenmsg included. An answer that is no dump's is the only one.
func (c *Conn) exchange(ctx context.Context, b *buffer, take func([]byte) error) error {
	c.seq = b.seq
	if err := c.s.send(b.b); err != nil {
		return fmt.Errorf("ask nftables: %w", err)
	}
	dump := binary.NativeEndian.Uint16(b.b[6:])&unix.NLM_F_DUMP != 0
	interrupted := false
	err := c.answers(ctx, func(h header, body []byte) (bool, error) {
		if h.seq != b.seq {
			return false, nil
		}
		interrupted = interrupted || h.flags&unix.NLM_F_DUMP_INTR != 0
		if h.typ == unix.NLMSG_DONE || h.typ == unix.NLMSG_ERROR {
			return true, errorOf(h, body)
		}
		if len(body) < nfgenLen {
			return true, errTruncated
		}
		return !dump, take(body)
	})
	if err == nil && interrupted {
		return unix.EINTR
	}
	return err
}

// reader builds a listing from what the kernel tells. What it cannot make sense of it notes as strange, and goes on.
type reader struct{ nftable.Listing }

func (r *reader) strange(what string) error {
	r.Strange = append(r.Strange, what)
	return nil
}

func (r *reader) table([]byte) error {
	r.Exists = true
	return nil
}

func (r *reader) chain(body []byte) error {
	var l nftable.Listed
	name := ""
	for a := range attrs(body) {
		switch a.typ {
		case unix.NFTA_CHAIN_NAME:
			name = a.string()
		case unix.NFTA_CHAIN_HOOK:
			l.Base = baseOf(a.value)
		}
	}
	l.Marks = r.Chains[name].Marks
	r.Chains[name] = l
	return nil
}

func baseOf(hook []byte) (base nftable.Base) {
	for a := range attrs(hook) {
		switch a.typ {
		case unix.NFTA_HOOK_HOOKNUM:
			base.Hook = "unknown"
			for name, n := range hooks {
				if n == a.u32() {
					base.Hook = name
				}
			}
		case unix.NFTA_HOOK_PRIORITY:
			base.Priority = int32(a.u32())
		}
	}
	return base
}

func (r *reader) rule(body []byte) error {
	chain, mark := "", ""
	for a := range attrs(body) {
		switch a.typ {
		case unix.NFTA_RULE_CHAIN:
			chain = a.string()
		case unix.NFTA_RULE_USERDATA:
			mark = nftable.MarkOf(comment(a.value))
		}
	}
	l := r.Chains[chain]
	l.Marks = append(l.Marks, mark)
	r.Chains[chain] = l
	return nil
}

// comment returns the comment in a rule's userdata, which is a list of type, length and value, a byte each for the first two.
func comment(b []byte) string {
	for len(b) >= 2 && len(b) >= 2+int(b[1]) {
		if b[0] == userdataComment {
			return text(b[2 : 2+int(b[1])])
		}
		b = b[2+int(b[1]):]
	}
	return ""
}

func (r *reader) set(body []byte) error {
	var s nftable.Set
	var flags, keyType, size uint32
	for a := range attrs(body) {
		switch a.typ {
		case unix.NFTA_SET_NAME:
			s.Name = a.string()
		case unix.NFTA_SET_FLAGS:
			flags = a.u32()
		case unix.NFTA_SET_KEY_TYPE:
			keyType = a.u32()
		case unix.NFTA_SET_DESC:
			size = attr{value: find(a.value, unix.NFTA_SET_DESC_SIZE)}.u32()
		}
	}
	const ours = unix.NFT_SET_INTERVAL | unix.NFT_SET_MAP | unix.NFT_SET_EVAL | unix.NFT_SET_TIMEOUT
	if flags&unix.NFT_SET_ANONYMOUS != 0 {
		return nil // hangs on a rule, which is not ours either and shows as such
	}
	typ, ok := typeOf(keyType)
	if !ok || flags&^ours != 0 {
		return r.strange("set " + s.Name)
	}
	s.Type, s.Interval, s.Map, s.Forgets = typ, flags&unix.NFT_SET_INTERVAL != 0, flags&unix.NFT_SET_MAP != 0, flags&unix.NFT_SET_TIMEOUT != 0
	if flags&unix.NFT_SET_EVAL != 0 {
		s.Dynamic, s.Elems = size, map[nftable.Elem]struct{}{}
	}
	r.Sets[s.Name] = &s
	return nil
}

func typeOf(key uint32) (nftable.Type, bool) {
	for typ, n := range keyTypes {
		if n == key {
			return typ, true
		}
	}
	return 0, false
}

func (r *reader) object(body []byte) error {
	var name string
	var typ uint32
	var n nftable.Counted
	for a := range attrs(body) {
		switch a.typ {
		case unix.NFTA_OBJ_NAME:
			name = a.string()
		case unix.NFTA_OBJ_TYPE:
			typ = a.u32()
		case unix.NFTA_OBJ_DATA:
			n = countedOf(a.value)
		}
	}
	if typ != objCounter {
		return r.strange("object " + name)
	}
	r.Counters[name] = n
	return nil
}

func countedOf(b []byte) (n nftable.Counted) {
	for a := range attrs(b) {
		switch a.typ {
		case unix.NFTA_COUNTER_BYTES:
			n.Bytes = a.u64()
		case unix.NFTA_COUNTER_PACKETS:
			n.Packets = a.u64()
		}
	}
	return n
}

// kernelElem is an element as the kernel tells it: of ranges, the beginning and the end are one each.
type kernelElem struct {
	key string
	end bool   // the range before ends here, this key not included
	to  string // where a map's element leads; what is no goto has a * behind it
}

// elemsOf decodes a message of elements.
func elemsOf(body []byte) (elems []kernelElem) {
	for list := range attrs(find(body, unix.NFTA_SET_ELEM_LIST_ELEMENTS)) {
		var e kernelElem
		for a := range attrs(list.value) {
			switch a.typ {
			case unix.NFTA_SET_ELEM_KEY:
				e.key = string(find(a.value, unix.NFTA_DATA_VALUE))
			case unix.NFTA_SET_ELEM_FLAGS:
				e.end = a.u32()&unix.NFT_SET_ELEM_INTERVAL_END != 0
			case unix.NFTA_SET_ELEM_DATA:
				e.to = targetOf(find(a.value, unix.NFTA_DATA_VERDICT))
			}
		}
		elems = append(elems, e)
	}
	return elems
}

func targetOf(verdict []byte) string {
	code, chain := uint32(0), text(find(verdict, unix.NFTA_VERDICT_CHAIN))
	if v := find(verdict, unix.NFTA_VERDICT_CODE); len(v) == 4 {
		code = binary.BigEndian.Uint32(v)
	}
	if int32(code) != unix.NFT_GOTO {
		return chain + "*"
	}
	return chain
}

// fill gives a set the elements that were read.
func (r *reader) fill(s *nftable.Set, elems []kernelElem) {
	s.Elems = make(map[nftable.Elem]struct{}, len(elems))
	if !s.Interval {
		for _, e := range elems {
			s.Elems[nftable.Elem{Key: nftable.Key(e.key), To: e.to}] = struct{}{}
		}
		return
	}
	for _, e := range ranges(elems, s.Type.Width()) {
		s.Elems[e] = struct{}{}
	}
}

// ranges joins beginnings and ends, which come in any order. A range without an end goes up to the last key of all.
func ranges(elems []kernelElem, width int) []nftable.Elem {
	slices.SortFunc(elems, func(a, b kernelElem) int {
		switch {
		case a.key < b.key || a.key == b.key && a.end && !b.end:
			return -1
		case a.key == b.key && a.end == b.end:
			return 0
		default:
			return 1
		}
	})
	var out []nftable.Elem
	open := false
	for _, e := range elems {
		switch {
		case e.end && open:
			out[len(out)-1].To = string(nftable.Prev(nftable.Key(e.key)))
			open = false
		case !e.end:
			out, open = append(out, nftable.Elem{Key: nftable.Key(e.key)}), true
		}
	}
	if open {
		out[len(out)-1].To = string(slices.Repeat([]byte{0xff}, width))
	}
	return out
}
