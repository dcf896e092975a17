package nft

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/nftable"
)

// FuzzDump reads bytes as the kernel's answers to every kind of dump, as an error, and as events: nothing of it may panic or hang, whatever
// they hold.
func FuzzDump(f *testing.F) {
	b := newBatch(table, 0, 7)
	if err := b.delta(nftable.Build(everything()), flagOwner|flagPersist); err != nil {
		f.Fatal(err)
	}
	b.finish()
	f.Add(b.b)
	f.Add(b.b[:len(b.b)/2])
	// Each message of the batch alone, since a fuzzer does little with a long one.
	_, _ = each(b.b, func(h header, body []byte) (bool, error) {
		one := buffer{}
		one.message(h.typ&0xff, h.flags, func() { one.b = append(one.b, body[min(nfgenLen, len(body)):]...) })
		f.Add(one.b)
		return false, nil
	})
	gen := buffer{}
	gen.message(unix.NFT_MSG_NEWGEN, 0, func() { gen.attr32(unix.NFTA_GEN_ID, 3) })
	f.Add(gen.b)
	f.Fuzz(func(t *testing.T, data []byte) {
		c := &Conn{s: &socket{port: 1}}
		m := Monitor{c: c, table: table}
		m.take(data)
		r := reader{nftable.Listing{
			Chains: map[string]nftable.Listed{}, Sets: map[string]*nftable.Set{}, Counters: map[string]nftable.Counted{},
		}}
		_, _ = each(data, func(h header, body []byte) (bool, error) {
			_ = errorOf(h, body)
			body = body[min(nfgenLen, len(body)):]
			for _, take := range []func([]byte) error{r.table, r.chain, r.rule, r.set, r.object} {
				_ = take(body)
			}
			elems := elemsOf(body)
			for _, s := range r.Sets {
				r.fill(s, elems)
				_ = s.Text()
			}
			for _, s := range []nftable.Type{nftable.Addr4, nftable.Addr6, nftable.Ports} {
				r.fill(&nftable.Set{Type: s, Interval: true}, elems)
			}
			return false, nil
		})
		want := everything()
		for _, c := range nftable.Diff(r.Listing, want).AddChains {
			if want.Chains[c.Name] != c {
				t.Fatalf("chain %s is not one of those wanted", c.Name)
			}
		}
	})
}
