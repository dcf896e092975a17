package reconcile

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/muslin-cni/muslin/internal/kernel"
)

// Repair is an object of ours that others had changed, taken away or added, and that was put right.
type Repair struct {
	Table  Name
	Object string // as the usual tools name it
	Found  string // what had become of it
	Done   string // added, replaced or removed
}

const (
	// toldRepairs bounds the repairs of a table that are described; the others are counted.
	toldRepairs = 10
	// suspectMemory is how long what was found is held against what is done: a device that was taken away may be back only after
	// several rounds, and what hung on it after that.
	suspectMemory = time.Minute
)

// suspect is an object that was found otherwise than it was left. Only what is done about it makes of it a repair: it may as well go because
// it is not wanted any more.
type suspect[K, V comparable] struct {
	key   K
	was   *V // as it was confirmed; nil: it was not known
	now   *V // as it was found; nil: it was gone
	since time.Time
}

// suspects of a table, by their keys' text: a device that was made anew has another index and the same name.
type suspects[K, V comparable] map[string]suspect[K, V]

// doubt notes that an object is not as it was confirmed to be.
func (x *table[K, V]) doubt(k K, was, now *V) {
	text := fmt.Sprint(k)
	if before, ok := x.suspects[text]; ok && before.was != nil {
		was = before.was // what others have done since is theirs too
	}
	if was != nil && now != nil && x.same()(k, *was, *now) {
		delete(x.suspects, text)
		return
	}
	x.suspects[text] = suspect[K, V]{key: k, was: was, now: now, since: time.Now()}
}

// compare notes how a list differs from what was confirmed.
func (x *table[K, V]) compare(have map[K]V) {
	for _, c := range kernel.DiffFunc(x.confirmed, have, x.same()) {
		x.doubt(c.Key, c.Old, c.New)
	}
}

// pardon forgets suspects: what became of them was nobody's doing.
func (x *table[K, V]) pardon(gone func(K, V) bool) {
	for text, s := range x.suspects {
		if s.was != nil && gone(s.key, *s.was) {
			delete(x.suspects, text)
		}
	}
}

// expire forgets the suspects about which nothing was to be done.
func (x *table[K, V]) expire() {
	for text, s := range x.suspects {
		if time.Since(s.since) > suspectMemory {
			delete(x.suspects, text)
		}
	}
}

// judge tells which of the changes that were made were repairs.
func (x *table[K, V]) judge(done []kernel.Change[K, V]) (out outcome) {
	out.changed = len(done)
	if len(x.suspects) == 0 {
		return out
	}
	for _, c := range done {
		text := fmt.Sprint(c.Key)
		s, ok := x.suspects[text]
		if !ok {
			continue
		}
		delete(x.suspects, text)
		if !x.restores(c, s) {
			continue
		}
		if out.repaired++; len(out.repairs) < toldRepairs {
			out.repairs = append(out.repairs, x.describe(c, s))
		}
	}
	return out
}

// restores tells whether a change makes an object what it was before others changed it.
func (x *table[K, V]) restores(c kernel.Change[K, V], s suspect[K, V]) bool {
	if c.New == nil || s.was == nil {
		return c.New == nil && s.was == nil
	}
	return x.same()(c.Key, *s.was, *c.New) || fmt.Sprint(*s.was) == fmt.Sprint(*c.New)
}

func (x *table[K, V]) describe(c kernel.Change[K, V], s suspect[K, V]) Repair {
	r := Repair{Table: x.name, Object: x.words.object(c.Key)}
	switch {
	case c.New == nil:
		r.Found, r.Done = "added by others: "+x.words.value(c.Key, *s.now), "removed"
	case s.now == nil:
		r.Found, r.Done = "gone", "added: "+x.words.value(c.Key, *c.New)
	case x.words.changed != nil:
		r.Found, r.Done = x.words.changed(c.Key, *c.New, *s.now)
	default:
		r.Found, r.Done = "changed to "+x.words.value(c.Key, *s.now), "replaced: "+x.words.value(c.Key, *c.New)
	}
	return r
}

// words say in a log what an object is.
type words[K, V comparable] struct {
	object  func(K) string
	value   func(K, V) string
	changed func(k K, want, now V) (found, done string) // nil: the value is short enough to be shown before and after
}

func text[K ~string](k K) string { return string(k) }

func sysctlWords() words[kernel.SysctlKey, string] {
	return words[kernel.SysctlKey, string]{
		object: func(k kernel.SysctlKey) string { return k.Path },
		value:  func(_ kernel.SysctlKey, v string) string { return v },
	}
}

func linkWords() words[string, kernel.Link] {
	return words[string, kernel.Link]{object: text[string], value: func(_ string, l kernel.Link) string {
		switch {
		case l == kernel.Link{}:
			return "a device of another kind or with other options"
		case l.MTU == 0:
			return "down"
		case l.Type == kernel.WireGuardLink:
			return fmt.Sprintf("mtu %d wireguard", l.MTU)
		}
		return fmt.Sprintf("mtu %d %v vxlan id %d local %v dev %v dstport %d", l.MTU, l.MAC, l.VNI, l.Local, l.Parent, l.Port)
	}}
}

func wireGuardWords() words[kernel.Dev, kernel.WireGuard] {
	return words[kernel.Dev, kernel.WireGuard]{
		object: func(d kernel.Dev) string { return d.Name },
		value:  kernel.WireGuardText,
	}
}

func peerWords() words[kernel.PeerKey, kernel.Peer] {
	return words[kernel.PeerKey, kernel.Peer]{
		object: func(k kernel.PeerKey) string { return "peer " + k.Key.String() + " of " + k.Dev.Name },
		value:  kernel.PeerText,
	}
}

func ruleWords() words[kernel.Rule, struct{}] {
	return words[kernel.Rule, struct{}]{object: kernel.Rule.String, value: func(r kernel.Rule, _ struct{}) string { return r.String() }}
}

func addrWords() words[kernel.AddrKey, struct{}] {
	return words[kernel.AddrKey, struct{}]{
		object: func(k kernel.AddrKey) string { return k.Addr.String() + " dev " + k.Link },
		value:  func(k kernel.AddrKey, _ struct{}) string { return k.Addr.String() },
	}
}

func neighWords() words[kernel.NeighKey, kernel.MAC] {
	return words[kernel.NeighKey, kernel.MAC]{
		object: func(k kernel.NeighKey) string { return k.Addr.String() + " dev " + k.Dev.Name },
		value:  func(_ kernel.NeighKey, m kernel.MAC) string { return "lladdr " + m.String() },
	}
}

func fdbWords() words[kernel.FDBKey, netip.Addr] {
	return words[kernel.FDBKey, netip.Addr]{
		object: func(k kernel.FDBKey) string { return k.MAC.String() + " dev " + k.Dev.Name },
		value:  func(_ kernel.FDBKey, a netip.Addr) string { return "dst " + a.String() },
	}
}

func routeWords() words[kernel.RouteKey, kernel.Route] {
	return words[kernel.RouteKey, kernel.Route]{object: func(k kernel.RouteKey) string { return k.Dst.String() }, value: kernel.RouteText}
}

func setWords() words[kernel.SetKey, kernel.Set] {
	members := func(s kernel.Set) []string {
		return strings.FieldsFunc(s.Members, func(r rune) bool { return r == ',' })
	}
	return words[kernel.SetKey, kernel.Set]{
		object: text[kernel.SetKey],
		value:  func(_ kernel.SetKey, s kernel.Set) string { return quantity(len(members(s)), "member") },
		changed: func(_ kernel.SetKey, want, now kernel.Set) (found, done string) {
			return versus("member", members(want), members(now)), "replaced"
		},
	}
}

// chainWords describe chains, which a list tells the marks of only.
func chainWords(marks func(kernel.ChainKey, kernel.Chain) []string) words[kernel.ChainKey, kernel.Chain] {
	return words[kernel.ChainKey, kernel.Chain]{
		object: func(k kernel.ChainKey) string { return k.Chain + " of table " + k.Table },
		value:  func(k kernel.ChainKey, c kernel.Chain) string { return quantity(len(marks(k, c)), "rule") },
		changed: func(k kernel.ChainKey, want, now kernel.Chain) (found, done string) {
			was, have := marks(k, want), marks(k, now)
			if others := othersAmong(have); others > 0 && !strings.HasPrefix(k.Chain, kernel.ChainPrefix) {
				ours := slices.DeleteFunc(slices.Clone(have), func(m string) bool { return !isOurs(m) })
				found := quantity(others, "rule") + " of others where ours belong"
				if !slices.Equal(was, ours) {
					found += "; of ours, " + versus("rule", was, ours)
				}
				return found, "ours put back in their place; the others stay"
			}
			return versus("rule", was, have), "replaced"
		},
	}
}

// isOurs tells a mark of ours from what a list has in place of a rule without one.
func isOurs(mark string) bool { return strings.HasPrefix(mark, kernel.CommentPrefix) }

// othersAmong counts the rules in a list that are others'.
func othersAmong(marks []string) (n int) {
	for _, m := range marks {
		if !isOurs(m) {
			n++
		}
	}
	return n
}

// versus says how two lists differ without repeating them.
func versus(what string, want, now []string) string {
	missing, more := lacking(now, want), lacking(want, now)
	switch {
	case missing == 0 && more == 0:
		return what + "s in another order"
	case missing == 0:
		return quantity(more, what) + " too many"
	case more == 0:
		return fmt.Sprintf("%d of %s missing", missing, quantity(len(want), what))
	}
	return fmt.Sprintf("%d of %s missing, and %d too many", missing, quantity(len(want), what), more)
}

// quantity is a number of things: 1 rule, 2 rules.
func quantity(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// lacking counts what of list is not in have.
func lacking(have, list []string) (n int) {
	sorted := slices.Sorted(slices.Values(have))
	for _, s := range list {
		if _, ok := slices.BinarySearch(sorted, s); !ok {
			n++
		}
	}
	return n
}
