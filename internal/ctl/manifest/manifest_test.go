package manifest_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

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
		"apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: a, bogus: 1}\nspec: {x: &y 1, cidr: *y}\n", "\xfe\xff\x00a",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		found, err := manifest.Decode("file", data)
		if err != nil && !strings.Contains(err.Error(), "file, ") && !strings.Contains(err.Error(), "file: it is UTF-16") {
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

func TestWhatCannotBeReadIsSaidInWords(t *testing.T) {
	const set = "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkSet\nmetadata: {name: a}\n"
	for _, c := range []struct{ what, text, want string }{
		{"two documents between carriage returns", strings.ReplaceAll(set+"---\n"+set, "\n", "\r"), "f, line 1: yaml: there is more than one value"},
		{"two documents between line separators", set + "\u2028---\u2028" + set, "f, line 1: yaml: there is more than one value"},
		{"UTF-16", "\xff\xfea\x00:\x00 \x00b\x00", "f: it is UTF-16: save it as UTF-8"},
		{"a list as key", "{[a]: b}", "f, line 1: a key is a list or an object, and must be a text"},
		{"no kind", "apiVersion: projectcalico.org/v3\n", "f, line 1: unknown resource type () and/or version (projectcalico.org/v3): it says no kind"},
		{"another version", strings.Replace(set, "v3", "v4", 1), "f, line 1: unknown resource type (GlobalNetworkSet) and/or version (projectcalico.org/v4): want apiVersion projectcalico.org/v3"},
		{"a list of something else", "kind: List\nitems: {a: b}\n", "f, line 2: read items: want a list and not an object"},
		{"much in one place", "kind: " + strings.Repeat("k", 1<<20), "f, line 1: unknown resource type (" + strings.Repeat("k", 200) + "…) and/or version ()"},
	} {
		found, err := manifest.Decode("f", []byte(c.text))
		if err == nil || err.Error() != c.want || len(found) > 0 {
			t.Errorf("%s: %d resources and %v; want %s", c.what, len(found), err, c.want)
		}
	}
	for _, text := range []string{"", "---\n", "---\n---\n...\n", "null", "kind: List\nitems:\n", "kind: GlobalNetworkSetList\n"} {
		if found, err := manifest.Decode("f", []byte(text)); err != nil || len(found) > 0 {
			t.Errorf("%q: %d resources and %v; want none", text, len(found), err)
		}
	}
	dashes := set + "# --- and ...\n"
	if found, err := manifest.Decode("f", []byte(dashes)); err != nil || len(found) != 1 {
		t.Errorf("%q: %d resources and %v", dashes, len(found), err)
	}
}

func TestFolderIsReadThroughLinksAndWithoutPipes(t *testing.T) {
	top := t.TempDir()
	folder := filepath.Join(top, "folder")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	const set = "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkSet\nmetadata: {name: a}\n"
	file := filepath.Join(top, "outside")
	if err := errors.Join(
		os.WriteFile(file, []byte(set), 0o600),
		os.Symlink(file, filepath.Join(folder, "linked.yaml")),
		os.Symlink(folder, filepath.Join(folder, "round.yaml")),
		os.Symlink(folder, filepath.Join(top, "link")),
		unix.Mkfifo(filepath.Join(folder, "pipe.yaml"), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{folder, filepath.Join(top, "link")} {
		if found, err := manifest.Read(manifest.Source{Path: path, Recursive: true}); err != nil || len(found) != 1 {
			t.Errorf("%s: %d resources and %v", path, len(found), err)
		}
	}
	if err := os.Symlink(filepath.Join(top, "absent"), filepath.Join(folder, "dangling.yaml")); err != nil {
		t.Fatal(err)
	}
	if _, err := manifest.Read(manifest.Source{Path: folder}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a link that leads nowhere: %v", err)
	}
}
