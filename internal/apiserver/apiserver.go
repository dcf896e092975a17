// Package apiserver reads single objects from the Kubernetes API server, and creates some.
//
// It is for the few questions that a node asks at its start, so it is HTTP and JSON and no more: no watches, no cache, no types of
// Kubernetes. Credentials are those of a kubeconfig file, or of the pod's service account.
package apiserver

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

var (
	// ErrNotConfigured says that nothing tells where the API server is.
	ErrNotConfigured = errors.New("no Kubernetes API server is known: set KUBECONFIG, or run in a pod with a service account")
	// ErrNotFound says that the API server has no such object.
	ErrNotFound = errors.New("not found")
)

// ServiceAccount is where the kubelet puts a pod's credentials: ca.crt, namespace and token.
const ServiceAccount = "/var/run/secrets/kubernetes.io/serviceaccount"

// largest bounds an answer; objects in etcd have at most 1.5 MB.
const largest = 4 << 20

// requestTimeout bounds a request whose context has no deadline.
const requestTimeout = 10 * time.Second

// Client asks one API server. It may be used concurrently.
type Client struct {
	server    *url.URL
	http      *http.Client
	token     string
	tokenFile string // read for every request, since tokens are renewed; before token
}

// credentials are how an API server is reached, whoever said so.
type credentials struct {
	server           string
	ca               []byte // PEM; nil: the system's
	insecure         bool   // do not look at the server's certificate
	serverName       string // that its certificate is for; "": that of server
	cert, key        []byte // PEM; nil: none
	token, tokenFile string
}

// New reads how to reach the API server: from a kubeconfig file, or, where path is "", from what the kubelet gives to pods. The error is
// ErrNotConfigured where there is neither.
func New(path string, env func(name string) string) (*Client, error) {
	return open(path, env, ServiceAccount)
}

// Settings say how to reach an API server: by a kubeconfig file, and by what stands before it where it is set. Names of files are relative to the
// kubeconfig's folder.
type Settings struct {
	Kubeconfig                string // "": none
	Server                    string // https://host:port
	Token                     string
	CertFile, KeyFile, CAFile string
}

// NewFrom makes a client by settings. The error is ErrNotConfigured where they say of no server.
func NewFrom(s Settings) (*Client, error) {
	var c credentials
	if s.Kubeconfig != "" {
		var err error
		if c, err = fromKubeconfig(s.Kubeconfig); err != nil {
			return nil, fmt.Errorf("read kubeconfig %s: %w", s.Kubeconfig, err)
		}
	}
	f := files{dir: filepath.Dir(s.Kubeconfig)}
	c.server = cmp.Or(s.Server, c.server)
	if s.Token != "" {
		c.token, c.tokenFile = s.Token, ""
	}
	if s.CAFile != "" {
		c.ca = f.read(nil, s.CAFile)
	}
	if s.CertFile != "" {
		c.cert, c.key = f.read(nil, s.CertFile), f.read(nil, s.KeyFile)
	}
	switch {
	case f.err != nil:
		return nil, fmt.Errorf("read how to reach the Kubernetes API server: %w", f.err)
	case c.server == "":
		return nil, ErrNotConfigured
	}
	return dial(c)
}

func open(path string, env func(string) string, account string) (*Client, error) {
	if path != "" {
		c, err := fromKubeconfig(path)
		if err != nil {
			return nil, fmt.Errorf("read KUBECONFIG %s: %w", path, err)
		}
		return dial(c)
	}
	host, port := env("KUBERNETES_SERVICE_HOST"), env("KUBERNETES_SERVICE_PORT")
	ca, err := os.ReadFile(filepath.Join(account, "ca.crt"))
	if host == "" || port == "" || errors.Is(err, os.ErrNotExist) {
		return nil, ErrNotConfigured
	}
	if err != nil {
		return nil, fmt.Errorf("read the service account's CA: %w", err)
	}
	return dial(credentials{server: "https://" + net.JoinHostPort(host, port), ca: ca, tokenFile: filepath.Join(account, "token")})
}

func dial(c credentials) (*Client, error) {
	server, err := url.Parse(c.server)
	if err != nil || server.Host == "" || server.Scheme != "https" && server.Scheme != "http" {
		return nil, fmt.Errorf("address of the API server %q: want https://host:port", c.server)
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: c.insecure, ServerName: c.serverName} //nolint:gosec // the kubeconfig says so
	if c.ca != nil {
		if conf.RootCAs, err = pool(c.ca); err != nil {
			return nil, err
		}
	}
	if c.cert != nil {
		pair, err := tls.X509KeyPair(c.cert, c.key)
		if err != nil {
			return nil, fmt.Errorf("read the client's certificate: %w", err)
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	transport := &http.Transport{TLSClientConfig: conf, Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true}
	return &Client{server: server, http: &http.Client{Transport: transport, Timeout: requestTimeout}, token: c.token, tokenFile: c.tokenFile}, nil
}

// Server is where the API server is, as its configuration says. It is not to be modified.
func (c *Client) Server() *url.URL { return c.server }

// Close ends connections that are idle.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Get reads the object at a path such as /api/v1/nodes/NAME, or /api/v1/nodes?labelSelector=KEY, into a JSON target. It waits for ctx, and for ten seconds at most. The error
// is ErrNotFound where there is no such object.
func (c *Client) Get(ctx context.Context, path string, into any) error {
	if err := c.call(ctx, http.MethodGet, path, http.NoBody, into); err != nil {
		return fmt.Errorf("get %s from the Kubernetes API server %s: %w", path, c.server.Host, err)
	}
	return nil
}

// Create posts an object to a path such as /api/v1/namespaces/NAMESPACE/serviceaccounts/NAME/token, and reads into a JSON target what the API server
// made of it. It waits for ctx, and for ten seconds at most.
func (c *Client) Create(ctx context.Context, path string, object, into any) error {
	body, err := json.Marshal(object)
	if err == nil {
		err = c.call(ctx, http.MethodPost, path, bytes.NewReader(body), into)
	}
	if err != nil {
		return fmt.Errorf("post to %s of the Kubernetes API server %s: %w", path, c.server.Host, err)
	}
	return nil
}

func (c *Client) call(ctx context.Context, method, path string, object io.Reader, into any) error {
	path, query, _ := strings.Cut(path, "?")
	at := c.server.JoinPath(path)
	at.RawQuery = query
	req, err := http.NewRequestWithContext(ctx, method, at.String(), object)
	if err != nil {
		return err
	}
	token, err := c.bearer()
	if err != nil {
		return err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	req.Header.Set("Accept", "application/json")
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }() // nothing was written
	body, err := io.ReadAll(io.LimitReader(resp.Body, largest))
	switch {
	case err != nil:
		return err
	case resp.StatusCode == http.StatusNotFound:
		return ErrNotFound
	case resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusCreated:
		return fmt.Errorf("%s: %s", resp.Status, said(body))
	}
	return json.Unmarshal(body, into)
}

func (c *Client) bearer() (string, error) {
	if c.tokenFile == "" {
		return c.token, nil
	}
	b, err := os.ReadFile(c.tokenFile)
	if err != nil {
		return "", fmt.Errorf("read the token: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// said is the message of a Status object, else the beginning of whatever came.
func said(body []byte) string {
	var status struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(body, &status) == nil && status.Message != "" {
		return status.Message
	}
	const enough = 200
	return strings.TrimSpace(string(body[:min(len(body), enough)]))
}
