package store

import (
	"context"
	"errors"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// Services is what a Client needs of etcd, as etcd's protocol defines it.
//
// An error of KV.Txn that matches ErrUnavailable says that the request was not sent. After any other that is not etcd's own answer
// (package rpctypes has those) the transaction may have been carried out.
type Services struct {
	KV    pb.KVClient
	Watch pb.WatchClient
}

// Over is a client of services that somebody else keeps: an etcd in this process, or a connection that is worse than it looks. Each call ends after the
// timeout; 0: DefaultTimeout.
func Over(s Services, timeout time.Duration) *Client {
	c := &Client{timeout: timeout, opening: make(chan struct{}, 1)}
	if c.timeout == 0 {
		c.timeout = DefaultTimeout
	}
	c.link.Store(&link{kv: clientv3.NewKVFromKVClient(telling{s.KV}, nil), watch: s.Watch})
	return c
}

// link is a way to etcd.
type link struct {
	kv    clientv3.KV
	watch pb.WatchClient
	conn  *clientv3.Client // that the two are of; nil: they are somebody else's
}

func linkTo(conn *clientv3.Client) *link {
	return &link{kv: conn.KV, watch: pb.NewWatchClient(conn.ActiveConnection()), conn: conn}
}

// telling says of transactions whether they were sent, as sendTracker does where there is a connection.
type telling struct{ pb.KVClient }

// Txn implements pb.KVClient.
func (t telling) Txn(ctx context.Context, r *pb.TxnRequest, opts ...grpc.CallOption) (*pb.TxnResponse, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	res, err := t.KVClient.Txn(ctx, r, opts...)
	if !errors.Is(err, ErrUnavailable) {
		markSent(ctx)
	}
	return res, err
}
