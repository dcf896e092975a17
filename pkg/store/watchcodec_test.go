package store

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// toldByWatch is a message about so many changes.
func toldByWatch(t testing.TB, changes int) []byte {
	res := &pb.WatchResponse{Header: &pb.ResponseHeader{ClusterId: 1 << 63, MemberId: 2, Revision: 7, RaftTerm: 4}, WatchId: 1}
	for i := range changes {
		e := &mvccpb.Event{Kv: &mvccpb.KeyValue{Key: []byte(fmt.Sprint("/calico/", i)), ModRevision: 7, CreateRevision: 5, Version: 2, Value: []byte("value")}}
		if i%3 == 2 {
			e = &mvccpb.Event{Type: mvccpb.Event_DELETE, Kv: &mvccpb.KeyValue{Key: e.Kv.Key, ModRevision: 7}}
		}
		res.Events = append(res.Events, e)
	}
	return marshalled(t, res)
}

func marshalled(t testing.TB, m proto.Message) []byte {
	raw, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// FuzzWatchCodec holds our own reading of a watch's messages against protobuf's.
func FuzzWatchCodec(f *testing.F) {
	f.Add(toldByWatch(f, 0))
	f.Add(toldByWatch(f, 7))
	f.Add(marshalled(f, &pb.WatchResponse{Created: true, Header: &pb.ResponseHeader{}}))
	f.Add(marshalled(f, &pb.WatchResponse{Canceled: true, CompactRevision: 5, CancelReason: "gone"}))
	f.Add(marshalled(f, &pb.WatchResponse{Fragment: true, Events: []*mvccpb.Event{{}, {PrevKv: &mvccpb.KeyValue{Lease: 1}}, {Kv: &mvccpb.KeyValue{Lease: -1, Value: []byte{}}}}}))
	codec := newWatchCodec() // one for all, as for all of a watch's messages
	f.Fuzz(func(t *testing.T, raw []byte) {
		var got, want pb.WatchResponse
		own := codec.read(raw, &got)
		if err := proto.Unmarshal(raw, &want); own && err != nil {
			t.Fatalf("%x was read, and to protobuf it is: %v", raw, err)
		}
		if !own {
			want = pb.WatchResponse{}
		}
		if diff := cmp.Diff(&want, &got, protocmp.Transform()); diff != "" {
			t.Fatalf("%x was read differently (-protobuf +own):\n%s", raw, diff)
		}
	})
}

func TestWhatAWatchTellsTakesTheShortWay(t *testing.T) {
	for _, changes := range []int{0, 1, 10} {
		var res pb.WatchResponse
		if raw := toldByWatch(t, changes); !newWatchCodec().read(raw, &res) || len(res.Events) != changes {
			t.Errorf("a message of %d changes is left to protobuf, or read as %d", changes, len(res.Events))
		}
	}
}

func TestMessagesOfAWatchAreReadOneAfterTheOther(t *testing.T) {
	codec := newWatchCodec()
	for _, changes := range []int{1, 3, 2, keptEvents + 1, 1} {
		raw := toldByWatch(t, changes)
		var got, want pb.WatchResponse
		if err := codec.Unmarshal(mem.BufferSlice{mem.SliceBuffer(raw[:4]), mem.SliceBuffer(raw[4:])}, &got); err != nil {
			t.Fatal(err)
		}
		if err := proto.Unmarshal(raw, &want); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(&want, &got, protocmp.Transform()); diff != "" {
			t.Errorf("%d changes (-want +got):\n%s", changes, diff)
		}
	}
}
