package install

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// tlsName is the folder for etcd's certificates, beside the network configuration.
const tlsName = "calico-tls"

// current is the link that all certificates are reached through, as in the volumes that the kubelet makes of a Secret: they change together.
const current = "..data"

// certificateFiles are etcd's certificates, under the names that they have in the Secret and on the host.
var certificateFiles = []string{"etcd-ca", "etcd-cert", "etcd-key"}

func (i *Installer) tlsDir() string { return filepath.Join(i.s.NetDir, tlsName) }

// certificatePath is where the host finds a certificate; "" if there is none of that name.
func (i *Installer) certificatePath(name string) string {
	if _, err := os.Stat(filepath.Join(i.tlsDir(), name)); err != nil {
		return ""
	}
	return filepath.Join(i.s.InnerNetDir, tlsName, name)
}

// certificates makes the host's certificates those of the Secret, and says whether it had to. None is taken away for want of a Secret's folder.
func (i *Installer) certificates() (changed bool, err error) {
	want, err := i.secret()
	if err != nil {
		return false, fmt.Errorf("read etcd's certificates: %w", err)
	}
	dir := i.tlsDir()
	if len(want) == 0 {
		return false, removeTree(dir)
	}
	version := ".." + fingerprint(want)
	if have, err := os.Readlink(filepath.Join(dir, current)); err == nil && have == version && i.linked(want) {
		return false, nil
	}
	if err := i.write(dir, version, want); err != nil {
		return false, fmt.Errorf("write etcd's certificates for the plugin: %w", err)
	}
	return true, nil
}

// secret is what the mounted Secret holds. A file without content, as in a Secret that was not filled in, counts as none.
func (i *Installer) secret() (map[string][]byte, error) {
	out := map[string][]byte{}
	for _, name := range certificateFiles {
		b, err := os.ReadFile(filepath.Join(i.s.Secrets, name))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		if len(strings.TrimSpace(string(b))) > 0 {
			out[name] = b
		}
	}
	return out, nil
}

func fingerprint(files map[string][]byte) string {
	sum := sha256.New()
	for _, name := range certificateFiles {
		fmt.Fprintf(sum, "%s %d\n%s", name, len(files[name]), files[name])
	}
	return hex.EncodeToString(sum.Sum(nil))[:16]
}

// linked tells whether every certificate can be read on the host.
func (i *Installer) linked(files map[string][]byte) bool {
	for name := range files {
		if _, err := os.Stat(filepath.Join(i.tlsDir(), name)); err != nil {
			return false
		}
	}
	return true
}

// write puts a version of the certificates beside the current one, makes it the current one, and takes all others away.
func (i *Installer) write(dir, version string, files map[string][]byte) error {
	if err := os.MkdirAll(filepath.Join(dir, version), 0o700); err != nil {
		return err
	}
	for name, content := range files {
		if _, err := writeFile(filepath.Join(dir, version, name), content, 0o600); err != nil {
			return err
		}
	}
	if err := link(version, filepath.Join(dir, current)); err != nil {
		return err
	}
	for name := range files {
		if err := link(filepath.Join(current, name), filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		_, wanted := files[e.Name()]
		if !wanted && !slices.Contains([]string{current, version}, e.Name()) {
			errs = append(errs, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// removeTree removes a folder of ours that may be gone already.
func removeTree(dir string) error {
	if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return os.RemoveAll(dir)
}
