package store

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// Member is what stands behind one endpoint of etcd, as it says itself.
type Member struct {
	Endpoint string
	Err      error // nil, or why it does not answer, as the calls of a Client would say it; then only Clock may be known
	Took     time.Duration
	Version  string
	Leader   bool     // it knows a leader: without one nothing can be written or read
	Size     int64    // of its data on disk, in bytes
	Quota    int64    // that Size may not pass; 0: it does not say
	Wrong    []string // alarms and what else it says is wrong, in its own words
	// Clock is what its clock shows, at Asked by ours: its answers to HTTP bear the time, in whole seconds (RFC 9110, 6.6.1). Zero: it does not say.
	Clock, Asked time.Time
}

// Examine asks each endpoint of an etcd how it fares, all at once, by connections of their own that end with it. It changes nothing, and waits for
// what does not answer as long as ctx and cfg.Timeout allow. The error says that there is nothing to ask: settings that make no sense, or no endpoints in DNS.
func Examine(ctx context.Context, cfg Config) ([]Member, error) {
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.Timeout)
	defer cancel()
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if cfg.DiscoverySRV != "" {
		found, err := cfg.discover(ctx)
		if err != nil {
			return nil, err
		}
		cfg.Endpoints, cfg.DiscoverySRV = found, ""
	}
	out := make([]Member, len(cfg.Endpoints))
	var all sync.WaitGroup
	for i, endpoint := range cfg.Endpoints {
		one := cfg
		one.Endpoints = []string{endpoint}
		out[i].Endpoint = endpoint
		all.Go(func() {
			var clock sync.WaitGroup
			clock.Go(func() { out[i].Clock, out[i].Asked = one.clock(ctx) })
			one.status(ctx, &out[i])
			clock.Wait()
		})
	}
	all.Wait()
	return out, nil
}

// status fills in what the one endpoint says of itself.
func (c Config) status(ctx context.Context, m *Member) {
	client, err := New(c)
	if err != nil {
		m.Err = err
		return
	}
	defer func() { m.Err = errors.Join(m.Err, client.Close()) }()
	link, err := client.etcd(ctx)
	if err != nil {
		m.Err = client.readError(err)
		return
	}
	began := time.Now()
	reply, err := pb.NewMaintenanceClient(link.conn.ActiveConnection()).Status(ctx, &pb.StatusRequest{})
	if why := client.trouble.err(); err != nil && why != nil { // what gRPC says besides is the same in its own words
		m.Err = fmt.Errorf("%w: %w", ErrUnavailable, why)
		return
	}
	if err != nil {
		m.Err = client.readError(fmt.Errorf("ask for its status: %w", rpctypes.Error(err))) // a call past the client's own methods has gRPC's error
		return
	}
	m.Took = time.Since(began)
	m.Version, m.Leader, m.Wrong = reply.Version, reply.Leader != 0, reply.Errors
	m.Size, m.Quota = reply.DbSize, reply.DbSizeQuota
}

// clock asks the one endpoint for its time. An etcd that serves HTTP elsewhere does not say; nor does one that wants other certificates.
func (c Config) clock(ctx context.Context) (theirs, ours time.Time) {
	transport := &http.Transport{DisableKeepAlives: true}
	if isTLS(c.Endpoints[0]) {
		cfg, err := c.TLS.load()
		if err != nil {
			return theirs, ours
		}
		transport.TLSClientConfig = cfg
	}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.Endpoints[0]+"/version", nil)
	if err != nil {
		return theirs, ours
	}
	began := time.Now()
	reply, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return theirs, ours
	}
	_ = reply.Body.Close() // only the head counts
	theirs, err = http.ParseTime(reply.Header.Get("Date"))
	if err != nil {
		return time.Time{}, ours
	}
	return theirs, began.Add(time.Since(began) / 2)
}
