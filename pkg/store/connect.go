package store

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
)

// Client talks to one etcd cluster.
type Client struct {
	cfg     Config
	timeout time.Duration
	trouble trouble
	conns   conns

	link    atomic.Pointer[link] // nil until it was opened
	opening chan struct{}        // holds one token while somebody opens or closes
	closed  bool                 // guarded by opening
}

var errIsClosed = errors.New("the client is closed")

// New prepares a client. It does not wait for etcd: the first call does, within its deadline. Certificate files are read once, so that
// what is wrong with them is said at once; the error names the file.
func New(cfg Config) (*Client, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	c := &Client{cfg: cfg, timeout: cfg.Timeout, opening: make(chan struct{}, 1)}
	if c.timeout == 0 {
		c.timeout = DefaultTimeout
	}
	if cfg.DiscoverySRV != "" || isTLS(cfg.Endpoints[0]) {
		if _, err := cfg.TLS.load(); err != nil {
			return nil, err
		}
	}
	if cfg.DiscoverySRV != "" || cfg.login() {
		return c, nil // takes questions to DNS or etcd
	}
	conn, err := c.open(context.Background())
	if err != nil {
		return nil, err
	}
	c.link.Store(linkTo(conn))
	return c, nil
}

// etcd is the connection. Whoever asks first waits, as long as ctx allows, until endpoints are found and the user is logged in.
func (c *Client) etcd(ctx context.Context) (*link, error) {
	if l := c.link.Load(); l != nil {
		return l, nil
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case c.opening <- struct{}{}:
		defer func() { <-c.opening }()
	}
	if c.closed {
		return nil, errIsClosed
	}
	if l := c.link.Load(); l != nil {
		return l, nil
	}
	conn, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	l := linkTo(conn)
	c.link.Store(l)
	return l, nil
}

// Close ends all connections and watches. While the user is being logged in it waits for that, at most one timeout.
func (c *Client) Close() error {
	c.opening <- struct{}{}
	defer func() { <-c.opening }()
	c.closed = true
	if l := c.link.Load(); l != nil && l.conn != nil {
		return l.conn.Close()
	}
	return nil
}

// Connected reports whether a connection to etcd is up now. A client that was not used for half an hour, or never, has none: it is
// then told to connect, unless that takes a login, and a later call knows.
func (c *Client) Connected() bool {
	l := c.link.Load()
	if l == nil || l.conn == nil {
		return l != nil // services in this process need no connection
	}
	state := l.conn.ActiveConnection().GetState()
	if state == connectivity.Idle {
		l.conn.ActiveConnection().Connect()
	}
	return state == connectivity.Ready
}

// open makes the connection, whose life does not depend on ctx any more once it is there.
func (c *Client) open(ctx context.Context) (*clientv3.Client, error) {
	cfg := c.cfg
	if cfg.DiscoverySRV != "" {
		var err error
		if cfg.Endpoints, err = cfg.discover(ctx); err != nil {
			return nil, err
		}
	}
	wait := c.timeout
	if end, ok := ctx.Deadline(); ok {
		wait = max(min(wait, time.Until(end)), time.Nanosecond) // 0 would be for ever
	}
	secure := newTransport(cfg, &c.trouble)
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, end)
	ec := clientv3.Config{
		Context:              life,
		Endpoints:            cfg.Endpoints,
		DialTimeout:          wait, // of the login
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 5 * time.Second,
		Logger:               zap.NewNop(),
		DialOptions: []grpc.DialOption{
			grpc.WithConnectParams(reconnect()), grpc.WithStatsHandler(sendTracker{}),
			grpc.WithTransportCredentials(secure), grpc.WithContextDialer(c.dialer(secure.scheme)),
		},
	}
	if cfg.Trace != nil {
		ec.DialOptions = append(ec.DialOptions, traced(cfg.Trace))
	}
	if cfg.login() {
		ec.Username, ec.Password = cfg.Username, string(cfg.Password)
	}
	conn, err := clientv3.New(ec)
	if stop() && err == nil {
		return conn, nil
	}
	end()
	if err == nil { // ctx ended, and took the connection with it
		err = conn.Close()
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return nil, fmt.Errorf("connect to etcd: %w", err)
}

// Find returns etcd's endpoints: those that are set, or those that DNS names now.
func (c Config) Find(ctx context.Context) ([]string, error) {
	if c.DiscoverySRV == "" {
		return c.Endpoints, nil
	}
	return c.discover(ctx)
}

// discover finds the endpoints in DNS (RFC 2782), under the names that etcd documents.
func (c Config) discover(ctx context.Context) ([]string, error) {
	dns := c.resolver
	if dns == nil {
		dns = net.DefaultResolver
	}
	var errs []error
	for _, try := range []struct{ service, scheme string }{{"etcd-client-ssl", "https://"}, {"etcd-client", "http://"}} {
		if try.scheme == "http://" && c.TLS.given() {
			break
		}
		_, found, err := dns.LookupSRV(ctx, try.service, "tcp", c.DiscoverySRV)
		errs = append(errs, err)
		var out []string
		for _, record := range found {
			host := strings.TrimSuffix(record.Target, ".")
			out = append(out, try.scheme+net.JoinHostPort(host, strconv.Itoa(int(record.Port))))
		}
		if len(out) > 0 {
			return out, nil
		}
	}
	err := fmt.Errorf("find etcd's endpoints in DNS: no SRV records for etcd-client-ssl or etcd-client below %s: correct ETCD_DISCOVERY_SRV: %w",
		c.DiscoverySRV, errors.Join(errs...))
	return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// reconnect makes a client find a restarted etcd within two seconds rather than gRPC's two minutes.
func reconnect() grpc.ConnectParams {
	return grpc.ConnectParams{
		Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
		MinConnectTimeout: 3 * time.Second,
	}
}
