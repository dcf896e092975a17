package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
)

// image is one of a single layer, made of files of this machine.
type image struct {
	names      []string
	entrypoint []string
	command    []string
	files      []file
}

// file is an entry of an image: what is at from, or a link, or else a folder.
type file struct {
	at   string // in the image, absolute
	from string // on this machine
	link string
	text string // content, where there is no from
	mode int64  // of a folder; 0: 0755
}

// ownImage is agnhost under a name that our own tests need not look up, dnsImage what dns.yaml asks for.
const (
	ownImage = "test.muslin/agnhost:1"
	dnsImage = "test.muslin/dns:1"
)

// packImages makes the images that Kubernetes asks for, under the names that it asks by.
func (p programs) packImages(ctx context.Context, root, dir string) error {
	pause, dns := filepath.Join(dir, "pause"), filepath.Join(dir, "dns")
	if err := errors.Join(buildSmall(ctx, filepath.Join(root, "test/k8s/pause"), pause), buildSmall(ctx, filepath.Join(root, "test/k8s/dns"), dns)); err != nil {
		return err
	}
	source, err := kubernetesSource(ctx, root)
	if err != nil {
		return err
	}
	agnhost, err := os.ReadFile(filepath.Join(source, "test/images/agnhost/VERSION"))
	if err != nil {
		return fmt.Errorf("read version of agnhost: %w", err)
	}
	shell, err := shellFiles(ctx)
	if err != nil {
		return err
	}
	tools, err := toolFiles(ctx)
	if err != nil {
		return err
	}
	porter := filepath.Join(source, "test/images/agnhost/porter")
	tools = append(tools,
		file{at: "/agnhost", from: filepath.Join(p.Bin, "agnhost")}, file{at: "/agnhost-2", link: "agnhost"}, file{at: "/uploads"},
		file{at: "/localhost.crt", from: filepath.Join(porter, "localhost.crt")}, file{at: "/localhost.key", from: filepath.Join(porter, "localhost.key")})
	const tests = "registry.k8s.io/e2e-test-images/"
	images := map[string]image{
		"pause":   {names: []string{"registry.k8s.io/pause:3.10.1"}, entrypoint: []string{"/pause"}, files: []file{{at: "/pause", from: pause}}},
		"dns":     {names: []string{dnsImage}, entrypoint: []string{"/coredns"}, files: []file{{at: "/coredns", from: dns}}},
		"busybox": {names: []string{tests + "busybox:1.37.0-1"}, command: []string{"sh"}, files: append(shell, file{at: "/bin/sh", link: "busybox"})},
		"agnhost": {names: []string{tests + "agnhost:" + strings.TrimSpace(string(agnhost)), tests + "jessie-dnsutils:1.7", ownImage}, entrypoint: []string{"/agnhost"}, command: []string{"pause"},
			files: append(tools, shell...)},
	}
	for name, i := range images {
		if err := i.pack(filepath.Join(dir, name+".tar")); err != nil {
			return fmt.Errorf("pack image %s: %w", name, err)
		}
	}
	return nil
}

// buildSmall builds the program of a folder.
func buildSmall(ctx context.Context, folder, to string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", to, ".")
	cmd.Dir, cmd.Env = folder, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w: %s", folder, err, out)
	}
	return nil
}

// kubernetesSource is the folder of Kubernetes' module.
func kubernetesSource(ctx context.Context, root string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-modfile="+kubernetesMod, "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("find Kubernetes' source: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// shellFiles are busybox under the names of all that it does but sh and nc, and the users that the tests ask for.
func shellFiles(ctx context.Context) ([]file, error) {
	files, err := withLibraries(ctx, "busybox", "/bin/busybox")
	if err != nil {
		return nil, err
	}
	names, err := exec.CommandContext(ctx, "busybox", "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("list what busybox does: %w", err)
	}
	for _, name := range strings.Fields(string(names)) {
		if name != "busybox" && name != "sh" && name != "nc" {
			files = append(files, file{at: "/bin/" + name, link: "busybox"})
		}
	}
	return append(files,
		file{at: "/tmp", mode: 0o1777},
		file{at: "/etc/nsswitch.conf", text: "hosts: files dns\n"},
		file{at: "/etc/passwd", text: "root:x:0:0:root:/root:/bin/sh\nuser-defined-in-image:x:1000:1000::/:/bin/sh\n"},
		file{at: "/etc/group", text: "root:x:0:\nuser-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n"},
	), nil
}

// toolFiles are what the tests call inside agnhost and busybox has not or not so: an nc with -u, and a sh that prefers PATH to what is built into it.
func toolFiles(ctx context.Context) ([]file, error) {
	var files []file
	for program, at := range map[string]string{"curl": "/usr/bin/curl", "dig": "/usr/bin/dig", "getent": "/usr/bin/getent", "nc.openbsd": "/bin/nc", "dash": "/bin/sh", "bash": "/bin/bash"} {
		more, err := withLibraries(ctx, program, at)
		if err != nil {
			return nil, err
		}
		files = append(files, more...)
	}
	return files, nil
}

// withLibraries are a program of this machine and the shared libraries that it needs.
func withLibraries(ctx context.Context, program, at string) ([]file, error) {
	from, err := exec.LookPath(program)
	if err != nil {
		return nil, fmt.Errorf("%w: sudo make deps-k8s installs it", err)
	}
	files := []file{{at: at, from: from}}
	libraries, _ := exec.CommandContext(ctx, "ldd", from).Output() // it fails on a program that needs none
	for _, found := range regexp.MustCompile(`(?m)(?:=> |^\s+)(/\S+)`).FindAllStringSubmatch(string(libraries), -1) {
		files = append(files, file{at: found[1], from: found[1]})
	}
	return files, nil
}

// pack writes the image as an archive that `ctr images import` takes. The same image has the same bytes.
func (i image) pack(archive string) error {
	var content bytes.Buffer
	l := layer{out: tar.NewWriter(&content), has: make(map[string]bool)}
	for _, f := range i.files {
		if err := l.add(f); err != nil {
			return err
		}
	}
	if err := l.out.Close(); err != nil {
		return err
	}
	id := digest(content.Bytes())
	config, err := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux",
		"config": map[string]any{"Entrypoint": i.entrypoint, "Cmd": i.command, "Env": []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + id}},
	})
	if err != nil {
		return err
	}
	configName, layerName := digest(config)+".json", id+"/layer.tar"
	manifest, err := json.Marshal([]map[string]any{{"Config": configName, "RepoTags": i.names, "Layers": []string{layerName}}})
	if err != nil {
		return err
	}
	out, err := os.Create(archive)
	if err != nil {
		return err
	}
	defer out.Close()
	whole := layer{out: tar.NewWriter(out), has: make(map[string]bool)}
	for _, part := range []file{{at: configName, text: string(config)}, {at: layerName, text: content.String()}, {at: "manifest.json", text: string(manifest)}} {
		if err := whole.add(part); err != nil {
			return err
		}
	}
	return whole.out.Close()
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// layer is an archive in which every entry is there once, behind its folder.
type layer struct {
	out *tar.Writer
	has map[string]bool
}

func (l layer) add(f file) error {
	name := strings.Trim(path.Clean(f.at), "/")
	if name == "" || name == "." || l.has[name] {
		return nil
	}
	l.has[name] = true
	if err := l.add(file{at: path.Dir(name)}); err != nil {
		return err
	}
	switch {
	case f.link != "":
		return l.out.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: f.link, Mode: 0o777})
	case f.text != "":
		return l.put(name, 0o644, int64(len(f.text)), strings.NewReader(f.text))
	case f.from == "":
		return l.out.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: max(f.mode, 0o755)})
	}
	from, err := os.Open(f.from)
	if err != nil {
		return err
	}
	defer from.Close()
	info, err := from.Stat()
	if err != nil {
		return err
	}
	return l.put(name, int64(info.Mode().Perm()), info.Size(), from)
}

func (l layer) put(name string, mode, size int64, content io.Reader) error {
	if err := l.out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: size}); err != nil {
		return err
	}
	_, err := io.Copy(l.out, content)
	return err
}
