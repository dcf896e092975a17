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

	"github.com/muslin-cni/muslin/internal/nettest"
)

// programs are what clusters are made of. A set of them is complete as soon as its folder exists, and never changes then.
type programs struct {
	Version string // of Kubernetes
	Dir     string
}

func (p programs) bin() string    { return filepath.Join(p.Dir, "bin") }
func (p programs) cni() string    { return filepath.Join(p.Dir, "cni") }
func (p programs) images() string { return filepath.Join(p.Dir, "images") }

// cacheDir is where everything lies that outlives a cluster.
func cacheDir() (string, error) {
	caches, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find a folder for clusters: %w", err)
	}
	return filepath.Join(caches, "muslin-k8s"), nil
}

// build returns the programs and images that this tree asks for. It takes ten minutes of two processors where Go's own cache has nothing of them, and half a
// minute where it has all. A folder's name covers what it was made from, so nothing is ever built over.
func build(ctx context.Context) (programs, error) {
	root, err := moduleRoot()
	if err != nil {
		return programs{}, err
	}
	cache, err := cacheDir()
	if err != nil {
		return programs{}, err
	}
	p, err := wanted(root, cache)
	if err != nil {
		return programs{}, err
	}
	unlock, err := lock(filepath.Join(cache, "lock"))
	if err != nil {
		return programs{}, err
	}
	defer unlock()
	if _, err := os.Stat(p.Dir); err == nil {
		return p, nil
	}
	fmt.Fprintf(os.Stderr, "building Kubernetes %s: up to ten minutes the first time\n", p.Version)
	unfinished := programs{Version: p.Version, Dir: p.Dir + ".unfinished"}
	if err := errors.Join(os.RemoveAll(unfinished.Dir), unfinished.fill(ctx, root)); err != nil {
		return programs{}, err
	}
	return p, os.Rename(unfinished.Dir, p.Dir)
}

// fill builds all into the empty folder.
func (p programs) fill(ctx context.Context, root string) error {
	for _, dir := range []string{p.bin(), p.cni(), p.images()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make folder for programs: %w", err)
		}
	}
	if err := p.compile(ctx, root, "build", "-o", p.bin(), "tool"); err != nil {
		return fmt.Errorf("build Kubernetes: %w", err)
	}
	pause := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", p.bin(), "./test/k8s/pause")
	pause.Dir, pause.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := pause.CombinedOutput(); err != nil {
		return fmt.Errorf("build pause: %w: %s", err, out)
	}
	if err := nettest.ReferencePlugins(p.cni()); err != nil {
		return err
	}
	return p.packImages(ctx, root)
}

// e2e returns the path of Kubernetes' own tests as a program, which takes some minutes more to build.
func (p programs) e2e(ctx context.Context) (string, error) {
	path := filepath.Join(p.bin(), "e2e.test")
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
	args = append([]string{"-n", "19", "go", verb, "-modfile=" + modfile(root), "-trimpath", "-buildvcs=false", "-ldflags", ldflags}, args...)
	cmd := exec.CommandContext(ctx, "nice", args...)
	cmd.Dir, cmd.Env, cmd.Stderr = root, append(os.Environ(), "CGO_ENABLED=0"), os.Stderr
	return cmd.Run()
}

func modfile(root string) string {
	return filepath.Join(root, "test", "k8s", "kubernetes", "go.mod")
}

// wanted says what to build: its name covers the modules' versions, Go's, and the files here that say how.
func wanted(root, cache string) (programs, error) {
	sum := sha256.New()
	fmt.Fprintln(sum, runtime.Version(), runtime.GOARCH)
	var modules []byte
	for _, file := range []string{modfile(root), "test/k8s/build.go", "test/k8s/image.go", "test/k8s/pause/main.go", "test/cniplugins/go.mod"} {
		if !filepath.IsAbs(file) {
			file = filepath.Join(root, file)
		}
		content, err := os.ReadFile(file)
		if err != nil {
			return programs{}, fmt.Errorf("read what to build: %w", err)
		}
		if file == modfile(root) {
			modules = content
		}
		sum.Write(content)
	}
	found := regexp.MustCompile(`(?m)^\s*(?:require )?k8s\.io/kubernetes (v\S+)$`).FindSubmatch(modules)
	if found == nil {
		return programs{}, fmt.Errorf("%s does not require k8s.io/kubernetes", modfile(root))
	}
	version := string(found[1])
	return programs{Version: version, Dir: filepath.Join(cache, version+"-"+hex.EncodeToString(sum.Sum(nil)[:6]))}, nil
}

// moduleRoot is this repository's folder.
func moduleRoot() (string, error) {
	gomod, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("find this module: %w", err)
	}
	root := filepath.Dir(strings.TrimSpace(string(gomod)))
	if _, err := os.Stat(modfile(root)); errors.Is(err, fs.ErrNotExist) {
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
