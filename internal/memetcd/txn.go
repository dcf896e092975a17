package memetcd

import (
	"bytes"
	"cmp"
	"context"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"

	"github.com/muslin-cni/muslin/pkg/store"
)

// Txn implements pb.KVClient.
func (s *Server) Txn(ctx context.Context, r *pb.TxnRequest, _ ...grpc.CallOption) (*pb.TxnResponse, error) {
	return answer(ctx, s, func(x *work) (*pb.TxnResponse, error) {
		if err := checkTxn(r); err != nil {
			return nil, err
		}
		out := &pb.TxnResponse{Succeeded: x.holds(r.Compare)}
		ops := r.Failure
		if out.Succeeded {
			ops = r.Success
		}
		for _, op := range ops {
			if err := x.possible(op); err != nil {
				return nil, err
			}
		}
		for _, op := range ops {
			out.Responses = append(out.Responses, x.do(op))
		}
		out.Header = x.header()
		return out, nil
	})
}

// checkTxn refuses what etcd refuses whatever it holds.
func checkTxn(r *pb.TxnRequest) error {
	if max(len(r.Compare), len(r.Success), len(r.Failure)) > store.MaxKeys {
		return rpctypes.ErrGRPCTooManyOps
	}
	for _, c := range r.Compare {
		if err := wellKey(c.Key); err != nil {
			return err
		}
	}
	for _, op := range slices.Concat(r.Success, r.Failure) {
		if err := wellOp(op); err != nil {
			return err
		}
	}
	return cmp.Or(distinct(r.Success), distinct(r.Failure))
}

func wellOp(op *pb.RequestOp) error {
	switch r := op.Request.(type) {
	case *pb.RequestOp_RequestRange:
		return wellRange(r.RequestRange)
	case *pb.RequestOp_RequestPut:
		return wellPut(r.RequestPut)
	case *pb.RequestOp_RequestDeleteRange:
		return wellKey(r.RequestDeleteRange.Key)
	}
	return errUnsupported
}

// distinct refuses operations of which two write one key; that two delete it is allowed.
func distinct(ops []*pb.RequestOp) error {
	puts := map[string]bool{}
	for _, op := range ops {
		p := op.GetRequestPut()
		if p == nil {
			continue
		}
		if puts[string(p.Key)] {
			return rpctypes.ErrGRPCDuplicateKey
		}
		puts[string(p.Key)] = true
	}
	for _, op := range ops {
		d := op.GetRequestDeleteRange()
		if string(d.GetRangeEnd()) == "\x00" {
			continue // etcd does not see that such a range holds keys
		}
		for key := range puts {
			if d != nil && spanOf(d.Key, d.RangeEnd).holds(key) {
				return rpctypes.ErrGRPCDuplicateKey
			}
		}
	}
	return nil
}

// possible refuses an operation that what is there now does not allow.
func (x *work) possible(op *pb.RequestOp) error {
	switch r := op.Request.(type) {
	case *pb.RequestOp_RequestRange:
		return x.checkRange(r.RequestRange)
	case *pb.RequestOp_RequestPut:
		return x.checkPut(r.RequestPut)
	}
	return nil
}

func (x *work) do(op *pb.RequestOp) *pb.ResponseOp {
	switch r := op.Request.(type) {
	case *pb.RequestOp_RequestPut:
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponsePut{ResponsePut: x.put(r.RequestPut)}}
	case *pb.RequestOp_RequestDeleteRange:
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: x.remove(r.RequestDeleteRange)}}
	}
	return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseRange{ResponseRange: x.get(op.GetRequestRange())}} // checkOps let no others through
}

// holds reports whether every compare is true of what is there.
func (x *work) holds(all []*pb.Compare) bool {
	for _, c := range all {
		found := x.in(spanOf(c.Key, c.RangeEnd))
		if len(found) == 0 {
			if c.Target == pb.Compare_VALUE {
				return false // what does not exist has no value to compare
			}
			found = []*mvccpb.KeyValue{{}}
		}
		for _, kv := range found {
			if !agrees(c, kv) {
				return false
			}
		}
	}
	return true
}

func agrees(c *pb.Compare, kv *mvccpb.KeyValue) bool {
	var is int
	switch c.Target {
	case pb.Compare_VERSION:
		is = cmp.Compare(kv.Version, c.GetVersion())
	case pb.Compare_CREATE:
		is = cmp.Compare(kv.CreateRevision, c.GetCreateRevision())
	case pb.Compare_MOD:
		is = cmp.Compare(kv.ModRevision, c.GetModRevision())
	case pb.Compare_VALUE:
		is = bytes.Compare(kv.Value, c.GetValue())
	case pb.Compare_LEASE:
		is = cmp.Compare(kv.Lease, c.GetLease())
	}
	switch c.Result {
	case pb.Compare_EQUAL:
		return is == 0
	case pb.Compare_NOT_EQUAL:
		return is != 0
	case pb.Compare_GREATER:
		return is > 0
	}
	return is < 0
}
