package api_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/pkg/api"
)

// sample is a stored value: as Calico stored it, or, in files whose names begin with own-, as we would where no value of Calico's is
// at hand.
type sample struct {
	Key   string
	Value json.RawMessage
}

func samples(t testing.TB, kind string) (out []sample) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", kind+".json"))
	if errors.Is(err, os.ErrNotExist) {
		raw, err = os.ReadFile(filepath.Join("testdata", "own-"+kind+".json"))
	}
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(bytes.NewReader(raw))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var s sample
		if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
			t.Fatal(err)
		}
		out = append(out, s)
	}
	if len(out) == 0 || lines.Err() != nil {
		t.Fatalf("%s: %d samples, %v", kind, len(out), lines.Err())
	}
	return out
}

// codec is Decode and Encode of one kind, without its type.
type codec struct {
	kind string
	// again decodes raw and encodes it over prior; key is where the value says that it belongs, "" if it does not say.
	again func(raw, prior []byte) (out []byte, key string, err error)
}

func codecOf[T api.Value](kind string, own func(*T) string) codec {
	return codec{kind: kind, again: func(raw, prior []byte) ([]byte, string, error) {
		v, err := api.Decode[T](raw)
		if err != nil {
			return nil, "", err
		}
		out, err := api.Encode(v, prior)
		return out, own(v), err
	}}
}

func codecs() []codec {
	return append(resourceCodecs(),
		codecOf("Block", func(v *api.Block) string { return api.BlockKey(v.CIDR) }),
		codecOf("Affinity", func(*api.Affinity) string { return "" }),
		codecOf("Handle", func(*api.Handle) string { return "" }),
		codecOf("IPAMConfig", func(*api.IPAMConfig) string { return api.IPAMConfigKey }),
	)
}

func resourceCodecs() (out []codec) {
	for _, k := range api.Kinds() {
		out = append(out, codec{kind: k.Name, again: func(raw, prior []byte) ([]byte, string, error) {
			o, err := k.Decode(raw)
			if err != nil {
				return nil, "", err
			}
			out, err := api.EncodeObject(o, prior)
			return out, api.KeyOf(o), err
		}})
	}
	return out
}

func TestStoredValuesEncodeBackByteForByte(t *testing.T) {
	for _, c := range codecs() {
		for _, s := range samples(t, c.kind) {
			got, key, err := c.again(s.Value, s.Value)
			if err != nil {
				t.Errorf("%s: %v", s.Key, err)
				continue
			}
			if diff := cmp.Diff(string(s.Value), string(got)); diff != "" {
				t.Errorf("%s (-stored +ours):\n%s", s.Key, diff)
			}
			if key != "" && key != s.Key {
				t.Errorf("the value of %s belongs under %s", s.Key, key)
			}
		}
	}
}

func TestNewValuesAreWrittenAsCalicoWritesThem(t *testing.T) {
	for _, c := range codecs() {
		for _, s := range samples(t, c.kind) {
			got, _, err := c.again(s.Value, nil)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(s.Value), string(got)); diff != "" {
				t.Errorf("%s (-stored +ours):\n%s", s.Key, diff)
			}
		}
	}
}

// sprinkle adds an unknown field in front, in the middle and at the end of every object of v that is one of the system's own (those
// with free keys, as labels, have no unknown fields), and returns how many.
func sprinkle(v any, n *int) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			if k != "labels" && k != "annotations" && k != "labelsToApply" && k != "block" && k != "secondary" && k != "sequenceNumberForAllocation" && k != "matchLabels" {
				v[k] = sprinkle(e, n)
			}
		}
		for _, k := range []string{"a novelty", "mNovelty", "zz"} {
			*n++
			v[k] = map[string]any{"number": *n, "list": []any{*n, nil, "<&>"}}
		}
	case []any:
		for i := range v {
			v[i] = sprinkle(v[i], n)
		}
	}
	return v
}

func TestUnknownFieldsSurviveAtEveryDepth(t *testing.T) {
	for _, c := range codecs() {
		for _, s := range samples(t, c.kind) {
			var v any
			if err := json.Unmarshal(s.Value, &v); err != nil {
				t.Fatal(err)
			}
			n := 0
			sprinkled, err := json.Marshal(sprinkle(v, &n))
			if err != nil {
				t.Fatal(err)
			}
			got, _, err := c.again(sprinkled, sprinkled)
			if err != nil {
				t.Fatal(err)
			}
			var want, have any
			if json.Unmarshal(sprinkled, &want) != nil || json.Unmarshal(got, &have) != nil {
				t.Fatalf("%s: not JSON: %s", s.Key, got)
			}
			if diff := cmp.Diff(want, have); diff != "" || n < 3 {
				t.Errorf("%s with %d unknown fields (-want +got):\n%s", s.Key, n, diff)
			}
		}
	}
}

func TestUnknownFieldsFollowTheElementsOfAList(t *testing.T) {
	const stored = `{"kind":"Node","apiVersion":"projectcalico.org/v3","metadata":{"name":"n"},"spec":{"addresses":[` +
		`{"address":"10.0.0.1","novel":1},{"address":"10.0.0.2","novel":2},{"address":"10.0.0.2","novel":3}]},"status":{}}`
	n, err := api.Decode[api.Node]([]byte(stored))
	if err != nil {
		t.Fatal(err)
	}
	was := n.Spec.Addresses
	n.Spec.Addresses = []api.NodeAddress{was[2], {Address: "10.0.0.9"}, was[0], was[1], was[1]}
	got, err := api.Encode(n, []byte(stored))
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"kind":"Node","apiVersion":"projectcalico.org/v3","metadata":{"name":"n"},"spec":{"addresses":[` +
		`{"address":"10.0.0.2","novel":2},{"address":"10.0.0.9"},{"address":"10.0.0.1","novel":1},` +
		`{"address":"10.0.0.2","novel":3},{"address":"10.0.0.2"}]},"status":{}}`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestFieldThatIsClearedDoesNotComeBack(t *testing.T) {
	// encoding/json reads a field whatever its case, so that a foreign spelling is not an unknown field.
	for _, spelling := range []string{"disabled", "Disabled", "DISABLED", "diſabled"} {
		stored := `{"kind":"IPPool","metadata":{"name":"p"},"spec":{"cidr":"10.0.0.0/16","` + spelling + `":true,"novel":1}}`
		p, err := api.Decode[api.IPPool]([]byte(stored))
		if err != nil {
			t.Fatal(err)
		}
		if !p.Spec.Disabled {
			t.Fatalf("%q was not read", spelling)
		}
		p.Spec.Disabled = false
		got, err := api.Encode(p, []byte(stored))
		if err != nil {
			t.Fatal(err)
		}
		again, err := api.Decode[api.IPPool](got)
		if err != nil || again.Spec.Disabled || !strings.Contains(string(got), `"novel":1`) {
			t.Errorf("%q: stored %s, %v", spelling, got, err)
		}
	}
}

func TestDecodeFillsWhatOlderWritersOmit(t *testing.T) {
	v4, err := api.Decode[api.IPPool]([]byte(`{"spec":{"cidr":"10.0.0.0/16"}}`))
	if err != nil {
		t.Fatal(err)
	}
	want := api.IPPoolSpec{
		CIDR: netip.MustParsePrefix("10.0.0.0/16"), VXLANMode: api.Never, IPIPMode: api.Never, BlockSize: 26, NodeSelector: "all()",
		AllowedUses: []api.Use{api.UseWorkload, api.UseTunnel}, AssignmentMode: api.AssignAutomatic,
	}
	if diff := cmp.Diff(want, v4.Spec, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	v6, err := api.Decode[api.IPPool]([]byte(`{"spec":{"cidr":"fd00::/48"}}`))
	if err != nil || v6.Spec.BlockSize != 122 {
		t.Errorf("IPv6 pool: block size %d, %v; want 122", v6.Spec.BlockSize, err)
	}
	a, err := api.Decode[api.Affinity](nil)
	if err != nil || !a.Confirmed() {
		t.Errorf("an empty affinity: %+v, %v; want a confirmed one", a, err)
	}
	c, err := api.Decode[api.IPAMConfig]([]byte(`{}`))
	if err != nil || c.AutoAllocateBlocks {
		t.Errorf("IPAM configuration without auto_allocate_blocks: %+v, %v; want false", c, err)
	}
}

func TestDecodeRefusesAnotherKind(t *testing.T) {
	for _, raw := range []string{`{"kind":"Node"}`, `{`, `7`, `[]`, `{"spec":{"cidr":"10.0.0.0"}}`} {
		if v, err := api.Decode[api.IPPool]([]byte(raw)); err == nil {
			t.Errorf("IPPool from %s: %+v, want an error", raw, v)
		}
	}
}

func TestEncodeNeverStoresTheResourceVersionNorChangesTheValue(t *testing.T) {
	var n api.Node
	n.Metadata.Name, n.Metadata.ResourceVersion = "n", "42"
	got, err := api.Encode(&n, nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"kind":"Node","apiVersion":"projectcalico.org/v3","metadata":{"name":"n"},"spec":{},"status":{}}`; string(got) != want {
		t.Errorf("encoded %s, want %s", got, want)
	}
	if n.Metadata.ResourceVersion != "42" || n.Kind != "" {
		t.Errorf("the value became %+v", n)
	}
}

// FuzzDecode feeds any bytes to every kind: what can be read can be written, over itself and anew, and reads back the same.
func FuzzDecode(f *testing.F) {
	for _, c := range codecs() {
		for _, s := range samples(f, c.kind) {
			f.Add([]byte(s.Value))
		}
	}
	f.Add([]byte(`{"spec":{"cidr":"::ffff:10.0.0.0/120","bgp":null},"metadata":null}`))
	f.Add([]byte(`{"machineID":"m","nodeUID":"u","more":[1]}`))
	identity := codecOf("NodeIdentity", func(*api.NodeIdentity) string { return "" })
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, c := range append(codecs(), identity) {
			over, _, err := c.again(raw, raw)
			if err != nil {
				continue
			}
			anew, _, err := c.again(raw, nil)
			if err != nil {
				t.Fatalf("%s: encoded over itself but not anew: %v", c.kind, err)
			}
			fromOver, _, err := c.again(over, nil)
			if err != nil {
				t.Fatalf("%s: %s was written as %s, which does not read back: %v", c.kind, raw, over, err)
			}
			if !bytes.Equal(fromOver, anew) {
				t.Fatalf("%s: %s was written as %s, which reads back as %s, not %s", c.kind, raw, over, fromOver, anew)
			}
			twice, _, err := c.again(over, over)
			if err != nil || !bytes.Equal(twice, over) {
				t.Fatalf("%s: %s is written as %s, %v", c.kind, over, twice, err)
			}
		}
	})
}
