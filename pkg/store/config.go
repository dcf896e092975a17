package store

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
)

// DefaultTimeout bounds every call to etcd.
const DefaultTimeout = 4 * time.Second

// Config says how to reach etcd.
type Config struct {
	Endpoints []string      // URLs: http://10.0.0.1:2379
	Timeout   time.Duration // of one call; 0: DefaultTimeout
}

// ParseEndpoints splits a comma-separated list, as in ETCD_ENDPOINTS, and checks each URL.
func ParseEndpoints(list string) ([]string, error) {
	var out []string
	for _, e := range strings.Split(list, ",") {
		e = strings.TrimSpace(e)
		if e == "" {
			continue
		}
		if u, err := url.Parse(e); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || !isPort(u.Port()) {
			return nil, fmt.Errorf("etcd endpoint %q: want http://host:port or https://host:port", e)
		}
		out = append(out, e)
	}
	if len(out) == 0 {
		return nil, errors.New("no etcd endpoints specified: set ETCD_ENDPOINTS or etcd_endpoints, for example http://10.0.0.1:2379")
	}
	return out, nil
}

// isPort reports whether the text is a TCP port, or empty for the default one.
func isPort(text string) bool {
	n, err := strconv.ParseUint(text, 10, 16)
	return text == "" || err == nil && n > 0
}

// New prepares a client. It does not wait for etcd: the first call does, within its deadline.
func New(cfg Config) (*Client, error) {
	if len(cfg.Endpoints) == 0 {
		return nil, errors.New("no etcd endpoints specified")
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	c, err := clientv3.New(clientv3.Config{
		Endpoints:            cfg.Endpoints,
		DialTimeout:          cfg.Timeout,
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 5 * time.Second,
		Logger:               zap.NewNop(),
		DialOptions:          []grpc.DialOption{grpc.WithConnectParams(reconnect()), grpc.WithStatsHandler(sendTracker{})},
	})
	if err != nil {
		return nil, fmt.Errorf("connect to etcd at %s: %w", strings.Join(cfg.Endpoints, ","), err)
	}
	return &Client{etcd: c, timeout: cfg.Timeout}, nil
}

// Connected reports whether a connection to etcd is up now. A client that was not used for half an hour, or never, has none: it is
// then told to connect, and a later call knows.
func (c *Client) Connected() bool {
	state := c.etcd.ActiveConnection().GetState()
	if state == connectivity.Idle {
		c.etcd.ActiveConnection().Connect()
	}
	return state == connectivity.Ready
}
