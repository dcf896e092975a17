package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// sample is an image of one program, this test's own, and one package.
func sample(t *testing.T) (spec, string) {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, bytes.Repeat([]byte("program"), 10_000), 0o700); err != nil {
		t.Fatal(err)
	}
	tree := filepath.Join(dir, "tree")
	for name, text := range map[string]string{
		"usr/sbin/tool": "tool", "usr/share/doc/tool/copyright": "licence", "usr/share/doc/tool/changelog": "x", "usr/share/man/man8/tool.8": "x", "lib/libtool.so.1": "so",
	} {
		path := filepath.Join(tree, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o750), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("tool", filepath.Join(tree, "usr/sbin/other")); err != nil {
		t.Fatal(err)
	}
	return spec{
		name: "example.org/muslin-node", tag: "v1", entrypoint: []string{"/usr/bin/program"},
		files:    []file{{from: program, path: "/usr/bin/program", mode: 0o755}, {path: "tmp", mode: 0o1777}, {path: "usr/sbin/other", link: "program"}},
		packages: []debian{{name: "tool", version: "1:2-3", arch: "amd64", sum: "abc", tree: tree}},
	}, tree
}

// entries reads a tar file.
func entries(t *testing.T, from io.Reader) map[string]string {
	t.Helper()
	out := map[string]string{}
	for r := tar.NewReader(from); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || !h.ModTime.Equal(epoch()) {
			t.Errorf("%s is of %d:%d, %v", h.Name, h.Uid, h.Gid, h.ModTime)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		out[h.Name] = h.Linkname + string(b)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSameInputsGiveTheSameImage(t *testing.T) {
	s, tree := sample(t)
	first, second := t.TempDir(), t.TempDir()
	digest, err := s.write(first)
	if err != nil {
		t.Fatal(err)
	}
	later := time.Now().Add(time.Hour)
	if err := os.Chtimes(filepath.Join(tree, "usr/sbin/tool"), later, later); err != nil {
		t.Fatal(err)
	}
	slices.Reverse(s.files[:2])
	again, err := s.write(second)
	if err != nil || again != digest {
		t.Errorf("first %s, then %s, %v", digest, again, err)
	}
	for _, name := range []string{"muslin-node.tar", "muslin-node.spdx.json"} {
		if !bytes.Equal(read(t, filepath.Join(first, name)), read(t, filepath.Join(second, name))) {
			t.Errorf("%s differs", name)
		}
	}
	if err := os.WriteFile(filepath.Join(tree, "usr/sbin/tool"), []byte("changed"), 0o644); err != nil {
		t.Fatal(err)
	}
	if other, err := s.write(second); err != nil || other == digest {
		t.Errorf("with another content: %s, %v", other, err)
	}
}

// What containerd and Docker go by: names, digests, and a layer that holds what it should.
func TestArchiveIsAnImageLayoutThatLeadsToTheFiles(t *testing.T) {
	s, _ := sample(t)
	out := t.TempDir()
	digest, err := s.write(out)
	if err != nil {
		t.Fatal(err)
	}
	all := entries(t, bytes.NewReader(read(t, filepath.Join(out, "muslin-node.tar"))))
	at := func(digest string) string { return all["blobs/sha256/"+strings.TrimPrefix(digest, "sha256:")] }
	type descriptor struct {
		Digest      string
		Annotations map[string]string
	}
	var index struct{ Manifests []descriptor }
	var manifest struct {
		Config descriptor
		Layers []descriptor
	}
	var config struct {
		Config struct{ Entrypoint []string }
		Rootfs struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	if err := json.Unmarshal([]byte(all["index.json"]), &index); err != nil || len(index.Manifests) != 1 || index.Manifests[0].Digest != digest {
		t.Fatalf("index %s, %v", all["index.json"], err)
	}
	if name := index.Manifests[0].Annotations["io.containerd.image.name"]; name != "example.org/muslin-node:v1" {
		t.Errorf("name %s", name)
	}
	if err := errors.Join(json.Unmarshal([]byte(at(digest)), &manifest), json.Unmarshal([]byte(at(manifest.Config.Digest)), &config)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"/usr/bin/program"}, config.Config.Entrypoint); diff != "" {
		t.Error(diff)
	}
	unpacked, err := gzip.NewReader(strings.NewReader(at(manifest.Layers[0].Digest)))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(unpacked)
	if err != nil || (blob{content: raw}).digest() != config.Rootfs.DiffIDs[0] {
		t.Errorf("the layer is not what the configuration says: %v", err)
	}
	files := entries(t, bytes.NewReader(raw))
	if files["usr/sbin/tool"] != "tool" || files["usr/sbin/other"] != "program" || files["usr/share/doc/tool/copyright"] != "licence" {
		t.Error("files of the package, a link before the package's, or its licence are missing")
	}
	for _, name := range []string{"usr/share/doc/tool/changelog", "usr/share/man/man8/tool.8"} {
		if _, there := files[name]; there {
			t.Errorf("%s is there", name)
		}
	}
	for _, dir := range []string{"tmp/", "usr/", "usr/bin/", "lib/"} {
		if _, there := files[dir]; !there {
			t.Errorf("the folder %s is missing", dir)
		}
	}
}

func TestDocumentNamesPackagesAndModules(t *testing.T) {
	s, _ := sample(t)
	out := t.TempDir()
	s.files[0].from = filepath.Join(out, "muslin")
	build := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", s.files[0].from, "../../cmd/muslin")
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	if _, err := s.write(out); err != nil {
		t.Fatal(err)
	}
	text := string(read(t, filepath.Join(out, "muslin-node.spdx.json")))
	for _, want := range []string{"pkg:deb/debian/tool@1%3A2-3?arch=amd64", "pkg:golang/github.com/containernetworking/cni@v", "pkg:golang/std@1.", `"spdxVersion": "SPDX-2.3"`} {
		if !strings.Contains(text, want) {
			t.Errorf("there is no %s", want)
		}
	}
}

func TestNamesWithoutARegistryAreSpelledAsTheKubeletSpellsThem(t *testing.T) {
	for name, want := range map[string]string{
		"muslin-node": "docker.io/library/muslin-node", "team/muslin-node": "docker.io/team/muslin-node", "localhost/muslin-node": "localhost/muslin-node",
		"example.org/x/muslin-node": "example.org/x/muslin-node", "host:5000/muslin-node": "host:5000/muslin-node",
	} {
		if got := normal(name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
}
