package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// programs are the folders of what clusters are made of. A folder is complete as soon as it exists, and never changes then.
type programs struct {
	Version string // of Kubernetes
	Bin     string // Kubernetes' programs
	Images  string // archives for containerd
}

// recipe is to be raised when code here builds something else from the same files.
const recipe = 1

// cacheDir is where everything lies that outlives a cluster.
func cacheDir() (string, error) {
	caches, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find a folder for clusters: %w", err)
	}
	return filepath.Join(caches, "muslin-k8s"), nil
}

// build returns the programs and images that this tree asks for. It takes ten minutes of two processors where Go's own cache has nothing of them, one where that
// has all, and no time where nothing has changed: a folder's name covers what it was made from.
func build(ctx context.Context) (programs, error) {
	root, err := moduleRoot()
	if err != nil {
		return programs{}, err
	}
	cache, err := cacheDir()
	if err != nil {
		return programs{}, err
	}
	unlock, err := lock(filepath.Join(cache, "lock"))
	if err != nil {
		return programs{}, err
	}
	defer unlock()
	var p programs
	if p.Version, err = kubernetesVersion(root); err != nil {
		return programs{}, err
	}
	if p.Bin, err = part(root, cache, "bin", []string{kubernetesMod}, func(dir string) error {
		fmt.Fprintf(os.Stderr, "building Kubernetes %s: up to ten minutes the first time\n", p.Version)
		return p.compile(ctx, root, "build", "-o", dir, "tool")
	}); err != nil {
		return programs{}, fmt.Errorf("build Kubernetes: %w", err)
	}
	p.Images, err = part(root, cache, "images", []string{kubernetesMod, "test/k8s/image.go", "test/k8s/pause/main.go", "test/k8s/dns/main.go", "test/k8s/dns/go.mod"}, func(dir string) error {
		return p.packImages(ctx, root, dir)
	})
	return p, err
}

// part returns the folder of that name that was made from the files, and has it made where there is none.
func part(root, cache, name string, from []string, fill func(dir string) error) (string, error) {
	sum := sha256.New()
	fmt.Fprintln(sum, recipe, runtime.Version(), runtime.GOARCH)
	for _, file := range from {
		content, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			return "", fmt.Errorf("read what to build: %w", err)
		}
		sum.Write(content)
	}
	dir := filepath.Join(cache, name+"-"+hex.EncodeToString(sum.Sum(nil)[:6]))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	unfinished := dir + ".unfinished"
	if err := errors.Join(os.RemoveAll(unfinished), os.MkdirAll(unfinished, 0o755)); err != nil {
		return "", fmt.Errorf("make folder: %w", err)
	}
	if err := fill(unfinished); err != nil {
		return "", err
	}
	return dir, os.Rename(unfinished, dir)
}

// e2e returns the path of Kubernetes' own tests as a program, which takes some minutes more to build.
func (p programs) e2e(ctx context.Context) (string, error) {
	path := filepath.Join(p.Bin, "e2e.test")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	if err := p.compile(ctx, root, "test", "-c", "-o", path+".unfinished", "k8s.io/kubernetes/test/e2e"); err != nil {
		return "", fmt.Errorf("build Kubernetes' tests: %w", err)
	}
	return path, os.Rename(path+".unfinished", path)
}

// compile runs go in the module of Kubernetes' programs. They learn their version as Kubernetes' own build tells it to them.
func (p programs) compile(ctx context.Context, root, verb string, args ...string) error {
	minor, _, _ := strings.Cut(strings.TrimPrefix(p.Version, "v1."), ".")
	const version = "k8s.io/component-base/version"
	ldflags := fmt.Sprintf("-s -w -X %[1]s.gitVersion=%[2]s -X %[1]s.gitMajor=1 -X %[1]s.gitMinor=%[3]s -X %[1]s.gitTreeState=clean -X k8s.io/client-go/pkg/version.gitVersion=%[2]s",
		version, p.Version, minor)
	args = append([]string{verb, "-modfile=" + kubernetesMod, "-trimpath", "-buildvcs=false", "-ldflags", ldflags}, args...)
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir, cmd.Env, cmd.Stderr = root, append(os.Environ(), "CGO_ENABLED=0"), os.Stderr
	return cmd.Run()
}

// kubernetesMod is the module of Kubernetes' programs, from this repository's folder.
const kubernetesMod = "test/k8s/kubernetes/go.mod"

// kubernetesVersion is the one that the module asks for.
func kubernetesVersion(root string) (string, error) {
	content, err := os.ReadFile(filepath.Join(root, kubernetesMod))
	if err != nil {
		return "", fmt.Errorf("read version of Kubernetes: %w", err)
	}
	found := regexp.MustCompile(`(?m)^\s*(?:require )?k8s\.io/kubernetes (v\S+)`).FindSubmatch(content)
	if found == nil {
		return "", fmt.Errorf("%s does not require k8s.io/kubernetes", kubernetesMod)
	}
	return string(found[1]), nil
}

// moduleRoot is this repository's folder.
func moduleRoot() (string, error) {
	gomod, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("find this module: %w", err)
	}
	root := filepath.Dir(strings.TrimSpace(string(gomod)))
	if _, err := os.Stat(filepath.Join(root, kubernetesMod)); errors.Is(err, fs.ErrNotExist) {
		return "", errors.New("run this from a folder of Muslin's source")
	}
	return root, nil
}

// lock waits until it alone holds the file, which it makes with its folder.
func lock(path string) (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make folder: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	return func() { _ = f.Close() }, nil
}
