package store

import (
	"context"
	"fmt"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
)

// Request is one request to etcd that was answered or given up. Of a watch, the asking for it is one, and so is each wait for its next
// message.
type Request struct {
	What string // the operations with their keys, and no values
	Took time.Duration
	Err  error // nil: answered
}

// traced tells every request of a connection.
func traced(tell func(Request)) grpc.DialOption {
	return grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		began := time.Now()
		err := call(ctx, method, req, reply, conn, opts...)
		tell(Request{What: what(method, req), Took: time.Since(began), Err: err})
		return err
	})
}

// tell tells a request that began then, to whoever wants to know.
func (c *Client) tell(what string, began time.Time, err error) {
	if c.cfg.Trace != nil {
		c.cfg.Trace(Request{What: what, Took: time.Since(began), Err: err})
	}
}

// what describes a request.
func what(method string, req any) string {
	switch r := req.(type) {
	case *pb.RangeRequest:
		return fmt.Sprintf("get %s", keys(r.GetKey(), r.GetRangeEnd()))
	case *pb.TxnRequest:
		var ops []string
		for _, c := range r.GetCompare() {
			ops = append(ops, fmt.Sprintf("if %s at %d", c.GetKey(), c.GetModRevision()))
		}
		for _, op := range r.GetSuccess() {
			ops = append(ops, operation(op))
		}
		return strings.Join(ops, ", ")
	}
	return method[strings.LastIndex(method, "/")+1:]
}

func operation(op *pb.RequestOp) string {
	switch {
	case op.GetRequestRange() != nil:
		return "get " + keys(op.GetRequestRange().GetKey(), op.GetRequestRange().GetRangeEnd())
	case op.GetRequestPut() != nil:
		return fmt.Sprintf("put %s (%d bytes)", op.GetRequestPut().GetKey(), len(op.GetRequestPut().GetValue()))
	case op.GetRequestDeleteRange() != nil:
		return "delete " + keys(op.GetRequestDeleteRange().GetKey(), op.GetRequestDeleteRange().GetRangeEnd())
	}
	return "transaction"
}

func keys(from, end []byte) string {
	if len(end) == 0 {
		return string(from)
	}
	return string(from) + "…"
}
