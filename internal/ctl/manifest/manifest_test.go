package manifest_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/muslin-cni/muslin/internal/ctl/manifest"
	"github.com/muslin-cni/muslin/pkg/api"
)

func TestFieldsAreFoundWhereTheyStand(t *testing.T) {
	const text = `
---
# a comment
--- # and another
apiVersion: v1
kind: List
items:
- apiVersion: projectcalico.org/v3
  kind: GlobalNetworkSet
  metadata:
    name: a
    labels:
      example.com/a.b: c
  spec:
    nets:
    - 10.0.0.0/8
    - 10.1.0.0/16
`
	found, err := manifest.Decode("f.yaml", []byte(text))
	if err != nil || len(found) != 1 {
		t.Fatalf("%d resources, %v", len(found), err)
	}
	for path, line := range map[string]string{
		"metadata.name":                   "line 11",
		"metadata.labels.example.com/a.b": "line 13",
		"spec.nets[1]":                    "line 17",
		"spec.nets[7]":                    "line 15", // the nearest that is there
		"nothing":                         "line 8",
	} {
		err := found[0].Locate(&api.InvalidError{Fields: []api.FieldError{{Path: path, Reason: "r"}}})
		if want := "f.yaml, " + line + ": error with field " + path + " (r)"; err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
}

func TestYAMLErrorsNameTheFilesLine(t *testing.T) {
	for text, want := range map[string]string{
		"a: b\n---\nkind: [\n":           "line 3",
		"---\n\n---\na: 1\nb: 2\na: 3\n": "line 6", // twice the same key
		"a: b\n---\na:\n\tb: c\n":        "line 4",
	} {
		_, err := manifest.Decode("f", []byte(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want %s", text, err, want)
		}
	}
}

func TestNothingThatAFileSaysIsPassedOver(t *testing.T) {
	const a, b = `{"apiVersion":"projectcalico.org/v3","kind":"Tier","metadata":{"name":"a"}}`, `{"apiVersion":"projectcalico.org/v3","kind":"Tier","metadata":{"name":"b"}}`
	for text, want := range map[string]string{
		a + b:                    "a b",
		a + "\n" + b + "\n":      "a b",
		a + "\n---\n" + b:        "a b",
		a + "\n...\n" + b:        "a b",
		a + "\n...\n# no more\n": "a",
		"%YAML 1.2\n---\n" + a:   "a",
		"\ufeff" + a + "\r\n":    "a",
		a + "\n{kind: [":         "f, line 1",
		a + "\n\nkind: Tier\n":   "f, line 2",
		a + "\n" + `{"a":1,` + "\n" + `"b":[{"c":1},{"c":1}],"a":2}`: `f, document 2, line 3: key "a" already set in map`,
	} {
		found, err := manifest.Decode("f", []byte(text))
		var names []string
		for _, r := range found {
			names = append(names, r.Object.Meta().Name)
		}
		if err != nil {
			names = []string{err.Error()}
		}
		if got := strings.Join(names, " "); !strings.HasPrefix(got, want) {
			t.Errorf("%q: %s; want %s", text, got, want)
		}
	}
}

func TestWhatHasNoEndIsRefused(t *testing.T) {
	_, err := manifest.Read(manifest.Source{Path: "/dev/zero"})
	if err == nil || err.Error() != "read /dev/zero: it has more than 64 MiB: split it" {
		t.Errorf("got %v", err)
	}
	_, err = manifest.Decode("f", bytes.Repeat([]byte("a: b\n"), 4<<20))
	if err == nil || err.Error() != "f, line 1: the document has more than 16 MiB: split it" {
		t.Errorf("got %v", err)
	}
}

// FuzzDecode holds what people may write to: no panic, and either resources or an error that names the file.
func FuzzDecode(f *testing.F) {
	for _, seed := range []string{
		"apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: a}\nspec: {cidr: 10.0.0.0/16}\n",
		"a: [b\n---\n- x\n", `[{"kind":"List","items":[{"apiVersion":"projectcalico.org/v3","kind":"Tier","metadata":{"name":"t"},"spec":{"order":1e400}}]}]`,
		"apiVersion: v1\nkind: ipPool\nmetadata: {cidr: 10.0.0.0/8}\nspec: {nat-outgoing: true}\n", "---\n--- x\n", "\ufeff{}", "a: &a [*a]", "? [x]: y\n",
		"apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: a, bogus: 1}\nspec: {x: &y 1, cidr: *y}\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		found, err := manifest.Decode("file", data)
		if err != nil && !strings.Contains(err.Error(), "file, ") {
			t.Errorf("the error names no place: %v", err)
		}
		for _, r := range found {
			api.SetDefaults(r.Object)
			if err := api.Validate(r.Object); err != nil && r.Locate(err).Error() == "" {
				t.Error("an error without text")
			}
		}
	})
}
