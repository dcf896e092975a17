package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
)

// spec says what an image holds.
type spec struct {
	name, tag  string
	entrypoint []string
	user       string // "": root
	files      []file
	packages   []debian
}

// object is a JSON object; encoding sorts its keys, so that the same content has the same bytes.
type object = map[string]any

// blob is a piece of an image, known by its digest (OCI image specification 1.1, "Content Descriptors").
type blob struct {
	media   string
	content []byte
}

func (b blob) digest() string {
	sum := sha256.Sum256(b.content)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func (b blob) descriptor() object {
	return object{"mediaType": b.media, "digest": b.digest(), "size": len(b.content)}
}

func (b blob) path() string { return "blobs/sha256/" + b.digest()[len("sha256:"):] }

func jsonBlob(media string, o object) (blob, error) {
	b, err := json.Marshal(o)
	return blob{media, b}, err
}

// write makes the image's tar file and its SPDX document in a folder, and returns the digest of its manifest, by which it is known.
//
// The tar file is an image layout (OCI image specification 1.1) that also has the index that Docker looks for.
func (s spec) write(out string) (digest string, err error) {
	files := s.files
	for _, p := range s.packages {
		more, err := p.files()
		if err != nil {
			return "", err
		}
		files = append(files, more...)
	}
	raw, err := layer(files)
	if err != nil {
		return "", err
	}
	packed, err := compressed(raw)
	if err != nil {
		return "", err
	}
	content := blob{"application/vnd.oci.image.layer.v1.tar+gzip", packed}
	config, err := s.config(blob{content: raw}.digest())
	if err != nil {
		return "", err
	}
	manifest, err := jsonBlob("application/vnd.oci.image.manifest.v1+json", object{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config.descriptor(), "layers": []object{content.descriptor()},
	})
	if err != nil {
		return "", err
	}
	base := filepath.Join(out, path.Base(s.name))
	if err := s.archive(base+".tar", manifest, config, content); err != nil {
		return "", err
	}
	document, err := s.spdx(files, manifest.digest())
	if err != nil {
		return "", err
	}
	return manifest.digest(), os.WriteFile(base+".spdx.json", document, 0o644)
}

func (s spec) config(diff string) (blob, error) {
	return jsonBlob("application/vnd.oci.image.config.v1+json", object{
		"architecture": runtime.GOARCH, "os": "linux", "created": epoch(),
		"config": object{
			"Entrypoint": s.entrypoint, "User": s.user, "Env": []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"},
			"Labels": object{"org.opencontainers.image.source": "https://github.com/muslin-cni/muslin", "org.opencontainers.image.version": s.tag, "org.opencontainers.image.licenses": "Apache-2.0"},
		},
		"rootfs": object{"type": "layers", "diff_ids": []string{diff}},
	})
}

// archive writes the tar file.
func (s spec) archive(to string, manifest, config, content blob) error {
	named := manifest.descriptor()
	named["annotations"] = object{"io.containerd.image.name": s.full(), "org.opencontainers.image.ref.name": s.tag}
	index, err := json.Marshal(object{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []object{named}})
	if err != nil {
		return err
	}
	docker, err := json.Marshal([]object{{"Config": config.path(), "RepoTags": []string{s.name + ":" + s.tag}, "Layers": []string{content.path()}}})
	if err != nil {
		return err
	}
	whole, err := layer([]file{
		{path: "oci-layout", text: []byte(`{"imageLayoutVersion":"1.0.0"}`), mode: 0o644}, {path: "index.json", text: index, mode: 0o644}, {path: "manifest.json", text: docker, mode: 0o644},
		{path: manifest.path(), text: manifest.content, mode: 0o644}, {path: config.path(), text: config.content, mode: 0o644}, {path: content.path(), text: content.content, mode: 0o644},
	})
	if err != nil {
		return err
	}
	return os.WriteFile(to, whole, 0o644)
}

// full is the image's name as containerd spells it: one without a registry is taken for Docker's own.
func (s spec) full() string {
	return fmt.Sprintf("%s:%s", normal(s.name), s.tag)
}

// normal is an image's name as containerd and the kubelet spell it. What stands before the first slash is a registry only if it has a dot or a
// colon, or is localhost; else Docker's is meant, and of that the library where there is no slash at all.
func normal(name string) string {
	const usual = "docker.io/" // a part of the name; nobody is asked
	first, _, slash := strings.Cut(name, "/")
	switch {
	case !slash:
		return usual + "library/" + name
	case strings.ContainsAny(first, ".:") || first == "localhost":
		return name
	default:
		return usual + name
	}
}
