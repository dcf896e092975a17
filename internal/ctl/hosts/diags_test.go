package hosts

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/muslin-cni/muslin/internal/authority"
	"github.com/muslin-cni/muslin/internal/ctl/cli"
)

// unzip returns the files of an archive by their names below its root.
func unzip(t *testing.T, path string) map[string]string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		_, name, _ := strings.Cut(h.Name, "/")
		out[name] = string(text)
	}
}

// pems are a real key and certificate.
func pems(t *testing.T) (key, cert string) {
	t.Helper()
	ca, err := authority.New("test")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.Client("client", authority.Forever())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := ca.Write(dir, pair); err != nil {
		t.Fatal(err)
	}
	texts := make([]string, 2)
	for i, name := range []string{authority.KeyFile, authority.CertFile} {
		raw, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		texts[i] = string(raw)
	}
	return texts[0], texts[1]
}

func TestDiagsHoldNoSecrets(t *testing.T) {
	key, cert := pems(t)
	inJSON := func(s string) string { return strings.ReplaceAll(s, "\n", `\n`) }
	const jwt = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl"
	end := key[len(key)/2:] // of a log that begins within a key
	root := host(t, map[string]string{
		"log/agent/current":     "level=INFO msg=started node=node-1\nenv ETCD_PASSWORD=hunter2 ETCD_USERNAME=root\n" + cert,
		"log/cni/cni.log":       "Authorization: Bearer opaque-secret-1\nGET https://root:hunter3@10.0.0.1:2379/health\nargs --password hunter4\ntoken " + jwt + "\n",
		"log/cut.log":           end + "after the key\n",
		"log/config.yaml":       "etcdPassword: |\n  hunter5\nafter: kept\nclient-key-data: " + base64.StdEncoding.EncodeToString([]byte(key)) + "\nca: " + base64.StdEncoding.EncodeToString([]byte(cert)) + "\n",
		"log/bundle.pem":        key,
		"log/old.log.gz":        "hunter6",
		"net.d/10-calico.conf":  `{"name":"k8s-pod-network","etcd_endpoints":"https://10.0.0.1:2379","etcd_key":"` + inJSON(key) + `","etcd_password":"hunter\"7","policy":{"k8s_auth_token":"opaque-secret-2"}}`,
		"net.d/calico-kubeconf": "nothing",
		"net.d/calico-tls/a":    "hunter8",
		"outside/shadow":        "hunter9",
	})
	if err := os.Symlink(filepath.Join(root, "outside/shadow"), filepath.Join(root, "log/link.log")); err != nil {
		t.Fatal(err)
	}
	d := diags{
		env: cli.Env{Now: func() time.Time { return time.Unix(1767225600, 0) }}, dir: t.TempDir(), redactor: newRedactor(),
		folders: []string{filepath.Join(root, "log"), filepath.Join(root, "net.d"), filepath.Join(root, "nofolder")}, files: []string{filepath.Join(root, "nofile")},
		commands: [][]string{{"ip", "route"}, {"nothing"}},
		run: func(_ context.Context, argv []string) ([]byte, error) {
			if argv[0] == "nothing" {
				return []byte("secret: hunter10"), errors.New("no such program")
			}
			return []byte("default via 10.0.0.1\n" + key), nil
		},
	}
	path, err := d.collect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("archive %s is %v, %v: want it readable by its owner only", path, info.Mode(), err)
	}
	got := unzip(t, path)
	var all strings.Builder
	for name, text := range got {
		all.WriteString(name + "\n" + text + "\n")
	}
	for _, secret := range []string{"hunter", "opaque-secret", jwt, "PRIVATE KEY", "BEGIN CERT", strings.Split(key, "\n")[2], strings.Split(cert, "\n")[2],
		base64.StdEncoding.EncodeToString([]byte(key))[40:80], base64.StdEncoding.EncodeToString([]byte(cert))[40:80]} {
		if strings.Contains(all.String(), secret) {
			t.Errorf("the archive holds %q:\n%s", secret, &all)
		}
	}
	for name, want := range map[string]string{
		"commands/ip_route": "default via 10.0.0.1\n", "files" + root + "/log/agent/current": "msg=started node=node-1", "files" + root + "/log/cut.log": "after the key",
		"files" + root + "/log/config.yaml": "after: kept", "files" + root + "/net.d/10-calico.conf": `"etcd_endpoints":"https://10.0.0.1:2379"`, "missing.txt": "nothing: no such program",
	} {
		if !strings.Contains(got[name], want) {
			t.Errorf("%s is %q, want %q in it", name, got[name], want)
		}
	}
}

func TestDiagsDoNotReplaceAnArchive(t *testing.T) {
	d := diags{env: cli.Env{Now: func() time.Time { return time.Unix(0, 0) }}, dir: t.TempDir(), redactor: newRedactor()}
	if _, err := d.collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if path, err := d.collect(t.Context()); err == nil {
		t.Errorf("a second archive of the same moment is %s, want an error", path)
	}
}

func FuzzRedact(f *testing.F) {
	f.Add("password: ", "hunter2")
	f.Add("Bearer ", "abc.def")
	f.Add("-----END ", "x")
	r := newRedactor()
	f.Fuzz(func(t *testing.T, before, after string) {
		got := string(r.redact([]byte(before + "\nETCD_PASSWORD=hunter2\n" + after)))
		if strings.Contains(got, "ETCD_PASSWORD=hunter2") {
			t.Errorf("not hidden between %q and %q: %q", before, after, got)
		}
	})
}
