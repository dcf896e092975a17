package hosts

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/muslin-cni/muslin/internal/doctor"
	"github.com/muslin-cni/muslin/pkg/store"
)

// configurations are the files of the runtime's folder; a folder that is not there holds none.
func (x examiner) configurations(context.Context) ([]doctor.ConfFile, error) {
	dir := x.at(x.confDir)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for network configurations: %w", err)
	}
	var out []doctor.ConfFile
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		out = append(out, doctor.ConfFile{Name: e.Name(), Text: text, Err: err})
	}
	return out, nil
}

// programs are those of the runtime's folders; the first of a name counts.
func (x examiner) programs(ctx context.Context) (map[string]doctor.Program, error) {
	out := map[string]doctor.Program{}
	for _, dir := range x.binDirs {
		entries, err := os.ReadDir(x.at(dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("look for CNI programs: %w", err)
		}
		for _, e := range entries {
			info, err := os.Stat(filepath.Join(x.at(dir), e.Name())) // a link to nothing is not there
			if _, known := out[e.Name()]; err == nil && !known && info.Mode().IsRegular() {
				out[e.Name()] = x.program(ctx, filepath.Join(dir, e.Name()), info.Mode()&0o111 != 0)
			}
		}
	}
	return out, nil
}

// program asks one of ours for its version.
func (x examiner) program(ctx context.Context, path string, runs bool) doctor.Program {
	p := doctor.Program{Runs: runs}
	if runs && slices.Contains([]string{"muslin", "muslin-ipam", "calico", "calico-ipam"}, filepath.Base(path)) {
		text, _ := x.output(ctx, path, "-v") // one that does not say it is as good as none: its first pod tells more
		p.Version = strings.TrimSpace(text)
	}
	return p
}

// podMTU is what the agent tells the plugin.
func (x examiner) podMTU(file string) func(context.Context) (int, error) {
	return func(context.Context) (int, error) {
		text, err := os.ReadFile(x.at(file))
		if errors.Is(err, fs.ErrNotExist) || file == "" {
			return 0, nil
		}
		if err != nil {
			return 0, fmt.Errorf("read the MTU of pods: %w", err)
		}
		n, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil {
			return 0, fmt.Errorf("read the MTU of pods in %s: %w", file, err)
		}
		return n, nil
	}
}

// networkManager reads its configuration (NetworkManager.conf(5)) and what it writes down of each device in /run.
func (x examiner) networkManager(context.Context) (doctor.NetworkManager, error) {
	nm := doctor.NetworkManager{Manages: map[int]bool{}}
	files := []string{x.at("/etc/NetworkManager/NetworkManager.conf")}
	var errs []error
	for _, dir := range []string{"/usr/lib/NetworkManager/conf.d", "/run/NetworkManager/conf.d", "/etc/NetworkManager/conf.d"} {
		found, err := filepath.Glob(filepath.Join(x.at(dir), "*.conf"))
		files, errs = append(files, found...), append(errs, err)
	}
	for _, file := range files {
		left, err := unmanaged(file)
		nm.Unmanaged, errs = append(nm.Unmanaged, left...), append(errs, err)
	}
	devices, err := filepath.Glob(filepath.Join(x.at("/run/NetworkManager/devices"), "*"))
	errs = append(errs, err)
	for _, file := range devices {
		index, err := strconv.Atoi(filepath.Base(file))
		if err != nil {
			continue // no device's
		}
		errs = append(errs, lines(file, func(line string) {
			if strings.TrimSpace(line) == "managed=true" {
				nm.Manages[index] = true
			}
		}))
	}
	return nm, errors.Join(errs...)
}

// unmanaged are the patterns of devices that a file of its configuration keeps it from, in either of the two ways that there are.
func unmanaged(file string) (out []string, err error) {
	var section []string // the devices that the section is about
	err = lines(file, func(line string) {
		key, value, _ := strings.Cut(strings.ReplaceAll(line, " ", ""), "=")
		switch {
		case strings.HasPrefix(key, "["):
			section = nil
		case key == "unmanaged-devices" || key == "unmanaged-devices+":
			out = append(out, interfaceNames(value)...)
		case key == "match-device":
			section = interfaceNames(value)
		case key == "managed" && (value == "0" || value == "false" || value == "no"):
			out = append(out, section...)
		}
	})
	return out, err
}

// interfaceNames are the patterns of names in a list of devices.
func interfaceNames(list string) (out []string) {
	for _, spec := range strings.FieldsFunc(list, func(r rune) bool { return r == ';' || r == ',' }) {
		switch name, ok := strings.CutPrefix(spec, "interface-name:"); {
		case ok:
			out = append(out, name)
		case spec == "*":
			out = append(out, spec)
		}
	}
	return out
}

func (x examiner) ufw(context.Context) (u doctor.UFW, err error) {
	setting := func(file, key string, is func(string)) error {
		return lines(x.at(file), func(line string) {
			if name, value, ok := strings.Cut(line, "="); ok && strings.TrimSpace(name) == key {
				is(strings.Trim(strings.TrimSpace(value), `"'`))
			}
		})
	}
	return u, errors.Join(
		setting("/etc/ufw/ufw.conf", "ENABLED", func(v string) { u.Enabled = strings.EqualFold(v, "yes") }),
		setting("/etc/default/ufw", "DEFAULT_FORWARD_POLICY", func(v string) { u.DropsForward = v == "DROP" || v == "REJECT" }),
	)
}

// certificates looks at the files by which agent, plugin and this command reach etcd. Of one that several use, all are named.
func (x examiner) certificates(s settings, conf []doctor.ConfFile) []doctor.Certificate {
	var out []doctor.Certificate
	add := func(owner string, t store.TLS) {
		for _, c := range examineTLS(owner, t) {
			known := false
			for i := range out {
				if out[i].Path == c.Path {
					known = true
					out[i].Owner += " and " + owner
				}
			}
			if !known {
				out = append(out, c)
			}
		}
	}
	if secure(s.etcd) {
		add(s.owner, s.etcd.TLS)
	}
	for _, f := range conf {
		for _, t := range pluginTLS(f.Text) {
			add("plugin", store.TLS{KeyFile: x.below(t.KeyFile), CertFile: x.below(t.CertFile), CAFile: x.below(t.CAFile)})
		}
	}
	if own, err := x.env.Etcd(); s.owner == "agent" && err == nil && secure(own) {
		add("muslinctl", own.TLS)
	}
	return out
}

// below is at for a path that may be "".
func (x examiner) below(path string) string {
	if path == "" {
		return ""
	}
	return x.at(path)
}

// secure tells whether certificates are used at all.
func secure(c store.Config) bool {
	return c.DiscoverySRV != "" || len(c.Endpoints) > 0 && strings.HasPrefix(c.Endpoints[0], "https://")
}

// pluginTLS are the files that our plugin's configuration names.
func pluginTLS(text []byte) (out []store.TLS) {
	type plugin struct {
		Type      string `json:"type"`
		Endpoints string `json:"etcd_endpoints"`
		Key       string `json:"etcd_key_file"`
		Cert      string `json:"etcd_cert_file"`
		CA        string `json:"etcd_ca_cert_file"`
	}
	var conf struct {
		Plugins []plugin `json:"plugins"`
		plugin
	}
	if json.Unmarshal(text, &conf) != nil {
		return nil // the check cni says so
	}
	for _, p := range append(conf.Plugins, conf.plugin) {
		if (p.Type == "muslin" || p.Type == "calico") && strings.HasPrefix(p.Endpoints, "https://") {
			out = append(out, store.TLS{KeyFile: p.Key, CertFile: p.Cert, CAFile: p.CA})
		}
	}
	return out
}

func examineTLS(owner string, t store.TLS) (out []doctor.Certificate) {
	ca, _ := examineFile(owner, "CA", t.CAFile)
	cert, certText := examineFile(owner, "certificate", t.CertFile)
	key, keyText := examineFile(owner, doctor.KeyKind, t.KeyFile)
	if cert.Err == nil && key.Err == nil && certText != nil && keyText != nil {
		_, key.Err = tls.X509KeyPair(certText, keyText)
	}
	for _, c := range []doctor.Certificate{ca, cert, key} {
		if c.Path != "" {
			out = append(out, c)
		}
	}
	return out
}

func examineFile(owner, kind, path string) (c doctor.Certificate, text []byte) {
	c = doctor.Certificate{Owner: owner, Kind: kind, Path: path}
	if path == "" {
		return c, nil
	}
	info, err := os.Stat(path)
	if err == nil {
		c.Mode = info.Mode()
		text, err = os.ReadFile(path)
	}
	if err != nil {
		c.Err = err
		return c, nil
	}
	if kind != doctor.KeyKind {
		c.Err = validity(text, &c, kind == "CA")
	}
	return c, text
}

// validity reads from when to when certificates are valid: the first in a client's file, which is its own; of several authorities the one that lasts longest, for
// the one that follows another is put beside it in time.
func validity(text []byte, c *doctor.Certificate, authorities bool) error {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return err
		}
		if cert.NotAfter.After(c.To) {
			c.From, c.To = cert.NotBefore, cert.NotAfter
		}
		if !authorities {
			break
		}
	}
	if c.To.IsZero() {
		return errors.New("it holds no certificate in PEM form")
	}
	return nil
}
