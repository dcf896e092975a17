package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// DefaultTimeout bounds every call to etcd.
const DefaultTimeout = 4 * time.Second

// Config says how to reach etcd: by Endpoints or by DiscoverySRV, not both. It may be printed and logged: what is secret in it is
// of type Secret.
type Config struct {
	// Endpoints are the members' URLs, all of them http or all https: https://10.0.0.1:2379
	Endpoints []string
	// DiscoverySRV is a DNS domain whose SRV records name the endpoints: _etcd-client-ssl._tcp (https), else, unless TLS is set,
	// _etcd-client._tcp (http).
	DiscoverySRV string
	// Username and Password are used only if both are set, as Calico does.
	Username string
	Password Secret
	// TLS is heeded only with https: etcd's own client does so, and hosts have files configured that they do not use.
	TLS     TLS
	Timeout time.Duration // of one call; 0: DefaultTimeout
	Trace   func(Request) `json:"-"` // told of each request, by whichever goroutine makes it; nil: nobody is

	resolver resolver // nil: the system's
}

// resolver is what of net.Resolver is needed.
type resolver interface {
	LookupSRV(ctx context.Context, service, proto, name string) (string, []*net.SRV, error)
}

// Secret is a text that prints, logs and marshals as "(hidden)". string(s) is the text.
type Secret string

const hidden = "(hidden)"

// Format hides the text from every verb of package fmt.
func (Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(hidden)) }

// LogValue hides the text from logs.
func (Secret) LogValue() slog.Value { return slog.StringValue(hidden) }

// MarshalText hides the text from JSON and YAML.
func (Secret) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// String is what a person wants to know of it: where etcd is, as whom, and with which files.
func (c Config) String() string {
	text := strings.Join(c.Endpoints, ",")
	if c.DiscoverySRV != "" {
		text = "SRV records of " + c.DiscoverySRV
	}
	if c.login() {
		text += ", user " + c.Username
	}
	if c.TLS.CertFile != "" || c.TLS.Cert != "" {
		text += ", certificate " + c.TLS.cert().from()
	}
	if c.TLS.CAFile != "" || c.TLS.CA != "" {
		text += ", CA " + c.TLS.ca().from()
	}
	return text
}

// LogValue is String.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }

// login reports whether there are a user and a password to send.
func (c Config) login() bool { return c.Username != "" && c.Password != "" }

// FromEnv reads the settings from an environment ("" is not set) under Calico's names: ETCD_ENDPOINTS, ETCD_DISCOVERY_SRV, ETCD_USERNAME,
// ETCD_PASSWORD, ETCD_KEY_FILE, ETCD_CERT_FILE, ETCD_CA_CERT_FILE, and the older ETCD_AUTHORITY (host:port) with ETCD_SCHEME. Each is first
// looked for with the prefix CALICO_. The error names the variable.
func FromEnv(env func(name string) string) (Config, error) {
	get := func(name string) string {
		if v := env("CALICO_" + name); v != "" {
			return v
		}
		return env(name)
	}
	if kind := get("DATASTORE_TYPE"); kind != "" && kind != "etcdv3" {
		return Config{}, fmt.Errorf("DATASTORE_TYPE is %q: etcd is the one datastore: set it to etcdv3, or not at all", kind)
	}
	c := Config{
		DiscoverySRV: get("ETCD_DISCOVERY_SRV"),
		Username:     get("ETCD_USERNAME"),
		Password:     Secret(get("ETCD_PASSWORD")),
		TLS:          TLS{KeyFile: get("ETCD_KEY_FILE"), CertFile: get("ETCD_CERT_FILE"), CAFile: get("ETCD_CA_CERT_FILE")},
	}
	list := get("ETCD_ENDPOINTS")
	if authority := get("ETCD_AUTHORITY"); list == "" && c.DiscoverySRV == "" && authority != "" {
		scheme := get("ETCD_SCHEME")
		if scheme == "" {
			scheme = "http"
		}
		list = scheme + "://" + authority
	}
	var err error
	if list != "" || c.DiscoverySRV == "" {
		c.Endpoints, err = ParseEndpoints(list)
	}
	return c, err
}

// ParseEndpoints splits a comma-separated list, as in ETCD_ENDPOINTS, and checks each URL.
func ParseEndpoints(list string) ([]string, error) {
	var out []string
	for _, e := range strings.Split(list, ",") {
		e = strings.TrimSpace(e)
		if e == "" {
			continue
		}
		if err := checkEndpoint(e); err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	if len(out) == 0 {
		return nil, errors.New("no etcd endpoints specified: set ETCD_ENDPOINTS or etcd_endpoints, for example http://10.0.0.1:2379")
	}
	return out, nil
}

func checkEndpoint(e string) error {
	u, err := url.Parse(e)
	if err == nil && u.User != nil {
		return fmt.Errorf("etcd endpoint of %s holds a user: leave it out and set ETCD_USERNAME and ETCD_PASSWORD", u.Host)
	}
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || !isPort(u.Port()) {
		return fmt.Errorf("etcd endpoint %q: want http://host:port or https://host:port", e)
	}
	return nil
}

// isPort reports whether the text is a TCP port.
func isPort(text string) bool {
	n, err := strconv.ParseUint(text, 10, 16)
	return err == nil && n > 0
}

// check says what contradicts itself in the settings, without looking at files.
func (c Config) check() error {
	switch {
	case len(c.Endpoints) > 0 && c.DiscoverySRV != "":
		return errors.New("etcd endpoints and a discovery domain exclude each other: set ETCD_ENDPOINTS or ETCD_DISCOVERY_SRV")
	case len(c.Endpoints) == 0 && c.DiscoverySRV == "":
		return errors.New("no etcd endpoints specified")
	}
	for _, e := range c.Endpoints {
		if isTLS(e) != isTLS(c.Endpoints[0]) {
			return fmt.Errorf("etcd endpoints %s and %s: want all of them to be http or all https", c.Endpoints[0], e)
		}
	}
	return c.TLS.check()
}

func isTLS(endpoint string) bool { return strings.HasPrefix(endpoint, "https://") }
