package migrate

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
	"sigs.k8s.io/yaml"

	"github.com/muslin-cni/muslin/internal/ctl/cli"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

func TestAnyValueComesBackAsItWas(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		keys := rapid.SliceOfDistinct(rapid.SampledFrom([]string{
			api.ResourcesRoot + "nodes/a", cli.ClusterKey(), api.ResourcesRoot + "tiers/=== --- #", api.IPAMConfigKey, api.HandleKey("base64 x"), api.IdentityKey("n"),
		}), func(k string) string { return k }).Draw(t, "keys")
		want := map[string]string{}
		var kvs []store.KV
		for _, k := range keys {
			v := rapid.OneOf(rapid.SliceOf(rapid.Byte()), rapid.Just([]byte(`{"a": "\u003c"}`)), rapid.Just([]byte("===")), rapid.Just([]byte(`""`))).Draw(t, "value")
			want[k] = string(v)
			kvs = append(kvs, store.KV{Key: k, Value: v})
		}
		var file bytes.Buffer
		if err := write(&file, kvs); err != nil {
			t.Fatal(err)
		}
		got, err := read(&file)
		if err != nil {
			t.Fatal(err)
		}
		have := map[string]string{}
		for _, kv := range got {
			have[kv.Key] = string(kv.Value)
		}
		if diff := cmp.Diff(want, have); diff != "" {
			t.Errorf("written and read (-want +got):\n%s", diff)
		}
	})
}

func TestReadRefusesWhatIsNoExport(t *testing.T) {
	for _, text := range []string{
		"", head, head + "\n", head + "\n{}\n", head + "\n# /other/key\n{}\n", head + "\n# " + api.IPAMConfigKey + "\n",
		head + "\n# " + api.IPAMConfigKey + "\nno JSON\n", head + "\n# base64 " + api.IPAMConfigKey + "\n\"%%%\"\n",
		head + "\n# end: 0 keys, sha256 00\n",
	} {
		if got, err := read(strings.NewReader(text)); err == nil {
			t.Errorf("read(%q) = %v, want an error", text, got)
		}
	}
}

func FuzzRead(f *testing.F) {
	var file bytes.Buffer
	if err := write(&file, []store.KV{{Key: api.IPAMConfigKey, Value: []byte("{}")}, {Key: api.HandleKey("h"), Value: []byte{0xff}}}); err != nil {
		f.Fatal(err)
	}
	f.Add(file.Bytes())
	f.Add([]byte(head + "\n===\n# end: 0 keys, sha256 "))
	f.Fuzz(func(t *testing.T, in []byte) {
		kvs, err := read(bytes.NewReader(in))
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := write(&out, kvs); err != nil {
			t.Fatal(err)
		}
		again, err := read(&out)
		if err != nil {
			t.Fatalf("cannot read what was written: %v", err)
		}
		if len(again) != len(kvs) {
			t.Errorf("%d keys, read again %d", len(kvs), len(again))
		}
	})
}

func TestResourcesOfAnExportAreYAMLDocuments(t *testing.T) {
	var file bytes.Buffer
	err := write(&file, []store.KV{
		{Key: api.ResourcesRoot + "tiers/a", Value: []byte(`{"kind":"Tier","metadata":{"name":"a"}}`)},
		{Key: api.ResourcesRoot + "tiers/b", Value: []byte(`{"kind":"Tier","metadata":{"name":"b\u0085"}}`)},
		{Key: api.IPAMConfigKey, Value: []byte(`{}`)},
	})
	if err != nil {
		t.Fatal(err)
	}
	resources, _, _ := strings.Cut(file.String(), "\n"+section+"\n")
	var got []string
	for _, doc := range strings.Split(resources, "\n"+between+"\n") {
		var tier api.Tier
		if err := yaml.Unmarshal([]byte(doc), &tier); err != nil {
			t.Fatalf("%v in:\n%s", err, doc)
		}
		got = append(got, tier.Metadata.Name)
	}
	if diff := cmp.Diff([]string{"a", "b\u0085"}, got); diff != "" {
		t.Errorf("names in the documents (-want +got):\n%s", diff)
	}
}
