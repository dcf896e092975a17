package api

import (
	"fmt"
	"reflect"
	"strings"
)

// Value is anything that is stored under a key of its own: an enveloped resource or one of the IPAM types.
type Value interface {
	BGPConfiguration | BGPFilter | BGPPeer | BlockAffinity | CalicoNodeStatus | ClusterInformation | FelixConfiguration |
		GlobalNetworkPolicy | GlobalNetworkSet | HostEndpoint | IPAMConfiguration | IPPool | IPReservation |
		KubeControllersConfiguration | LiveMigration | NetworkPolicy | NetworkSet | Node | Profile | StagedGlobalNetworkPolicy |
		StagedKubernetesNetworkPolicy | StagedNetworkPolicy | Tier | WorkloadEndpoint |
		Block | Affinity | Handle | IPAMConfig | NodeIdentity | NodePaths
}

// registered has a nil pointer to each kind of resource. A new kind is a file of its own, a line here and a word in Value.
func registered() []Object {
	return []Object{
		(*BGPConfiguration)(nil),
		(*BGPFilter)(nil),
		(*BGPPeer)(nil),
		(*BlockAffinity)(nil),
		(*CalicoNodeStatus)(nil),
		(*ClusterInformation)(nil),
		(*FelixConfiguration)(nil),
		(*GlobalNetworkPolicy)(nil),
		(*GlobalNetworkSet)(nil),
		(*HostEndpoint)(nil),
		(*IPAMConfiguration)(nil),
		(*IPPool)(nil),
		(*IPReservation)(nil),
		(*KubeControllersConfiguration)(nil),
		(*LiveMigration)(nil),
		(*NetworkPolicy)(nil),
		(*NetworkSet)(nil),
		(*Node)(nil),
		(*Profile)(nil),
		(*StagedGlobalNetworkPolicy)(nil),
		(*StagedKubernetesNetworkPolicy)(nil),
		(*StagedNetworkPolicy)(nil),
		(*Tier)(nil),
		(*WorkloadEndpoint)(nil),
	}
}

// Kinds lists all kinds of resources by name. The caller owns the slice.
func Kinds() []Kind {
	all := registered()
	out := make([]Kind, len(all))
	for i, o := range all {
		out[i] = o.KindOf()
	}
	return out
}

// Lookup finds a kind by its name, its plural or one of its aliases, in any case.
func Lookup(word string) (Kind, bool) {
	word = strings.ToLower(word)
	for _, k := range Kinds() {
		if contains(k.Words(), word, false) {
			return k, true
		}
	}
	return Kind{}, false
}

// Suggest returns the word for a kind that is nearest to a mistyped one, of the kinds that people work with; "" if none is near.
func Suggest(word string) string {
	var words []string
	for _, k := range Kinds() {
		if !k.Hidden {
			words = append(words, k.Name)
			words = append(words, k.Words()...)
		}
	}
	return nearest(word, words)
}

// Words lists what Lookup knows the kind by: the name in lower case, the plural, the aliases. The caller owns the slice.
func (k Kind) Words() []string {
	return append([]string{strings.ToLower(k.Name), k.Plural}, strings.Fields(k.Aliases)...)
}

// List is the kind of a list of such objects: IPPoolList.
func (k Kind) List() string { return k.Name + "List" }

// New returns an empty object of the kind, with kind and apiVersion set and no defaults. It is nil for a Kind that is not of this
// package.
func (k Kind) New() Object {
	for _, o := range registered() {
		if o.KindOf().Name == k.Name {
			fresh := reflect.New(reflect.TypeOf(o).Elem()).Interface().(Object)
			*fresh.typeMeta() = TypeMeta{Kind: k.Name, APIVersion: Version}
			return fresh
		}
	}
	return nil
}

// Decode is the package's Decode for a kind that is known only at run time.
func (k Kind) Decode(raw []byte) (Object, error) {
	o := k.New()
	if o == nil {
		return nil, fmt.Errorf("decode %s: no such kind", k.Name)
	}
	if err := decode(o, raw); err != nil {
		return nil, err
	}
	*o.typeMeta() = TypeMeta{Kind: k.Name, APIVersion: Version}
	return o, nil
}

// EncodeObject is Encode for an object whose kind is known only at run time. o is not changed.
func EncodeObject(o Object, prior []byte) ([]byte, error) { return encode(Clone(o), prior) }

// Clone returns a copy of o whose spec shares what o's spec points to, and whose metadata shares nothing with o's.
func Clone(o Object) Object {
	t := reflect.TypeOf(o).Elem()
	c := reflect.New(t)
	c.Elem().Set(reflect.ValueOf(o).Elem())
	out := c.Interface().(Object)
	out.Meta().own()
	return out
}

// nearest is the word that differs from s by the fewest letters, if by few enough for a typing error; "" if none does.
func nearest(s string, words []string) string {
	best, at := "", 1+max(1, len(s)/4)
	for _, w := range words {
		if d := distance(strings.ToLower(s), strings.ToLower(w)); d < at {
			best, at = w, d
		}
	}
	return best
}

// distance is how many letters must be inserted, deleted, replaced or swapped with their neighbour to make b of a.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return len(a) + len(b)
	}
	rows := make([][]int, len(a)+1) // rows[i][j]: from a[:i] to b[:j]
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
