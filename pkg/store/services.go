package store

import (
	"context"
	"errors"
	"math"
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
	kv := telling{s.KV}
	c.link.Store(&link{kv: clientv3.NewKVFromKVClient(kv, nil), raw: kv, watch: s.Watch})
	return c
}

// link is a way to etcd.
type link struct {
	kv    clientv3.KV
	raw   pb.KVClient // the same without etcd's client around it
	watch pb.WatchClient
	conn  *clientv3.Client // that these are of; nil: they are somebody else's
}

func linkTo(conn *clientv3.Client) *link {
	return &link{kv: conn.KV, raw: clientv3.RetryKVClient(conn), watch: pb.NewWatchClient(conn.ActiveConnection()), conn: conn}
}

// maxSent is what etcd's client sends at the most; etcd itself takes less.
const maxSent = 2 << 20

// commit carries a transaction out, as etcd's client would: it waits for a connection, and does not send what is too large.
func (l *link) commit(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	res, err := l.raw.Txn(ctx, r, grpc.WaitForReady(true), grpc.MaxCallSendMsgSize(maxSent), grpc.MaxCallRecvMsgSize(math.MaxInt32))
	return res, clientv3.ContextError(ctx, err)
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
