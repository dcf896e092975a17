package rtnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/kernel"
)

// What the kernel refuses, in each of several batches, is named, and all else is made.
func TestRefusedChangesOfBatchesKeepNoOtherFromTheKernel(t *testing.T) {
	h := newHost(t)
	good := kernel.Route{Dev: h.dev("eth0"), Gateway: netip.MustParseAddr("172.30.0.2"), Onlink: true, Protocol: 80}
	bad := good
	bad.Dev = kernel.Dev{Name: "gone", Index: 9999}
	made, refused, all := map[kernel.RouteKey]kernel.Route{}, map[kernel.RouteKey]bool{}, map[kernel.RouteKey]kernel.Route{}
	for i := range 2*batchSize + 100 {
		k := routeKey(fmt.Sprintf("10.%d.%d.0/24", i/250, i%250), 0)
		if i%100 == 7 {
			all[k], refused[k] = bad, true
			continue
		}
		all[k], made[k] = good, good
	}
	err := h.Routes().Apply(t.Context(), kernel.Diff(nil, all))
	keys, only := kernel.Failed[kernel.RouteKey](err)
	if !only {
		t.Errorf("more failed than single changes: %v", err)
	}
	got := map[kernel.RouteKey]bool{}
	for _, k := range keys {
		got[k] = true
	}
	if diff := cmp.Diff(refused, got, addrs); diff != "" {
		t.Errorf("to be refused (-) and refused (+) differ:\n%s", diff)
	}
	if diff := cmp.Diff(made, mustList(t, h.Routes()), addrs); diff != "" {
		t.Errorf("want (-) and listed (+) differ:\n%s", diff)
	}
}

// Where the socket is gone no answer comes, and every change counts as failed.
func TestBatchWithoutAnswerFailsInEveryChange(t *testing.T) {
	h := newHost(t)
	h.sender.close()
	want := map[kernel.RouteKey]kernel.Route{}
	for i := range 3 {
		want[routeKey(fmt.Sprintf("10.0.%d.0/24", i), 0)] = kernel.Route{Type: kernel.Blackhole, Protocol: 80}
	}
	err := h.Routes().Apply(t.Context(), kernel.Diff(nil, want))
	keys, only := kernel.Failed[kernel.RouteKey](err)
	if !only || len(keys) != len(want) || !errors.Is(err, unix.EBADF) {
		t.Errorf("%d of %d changes failed: %v", len(keys), len(want), err)
	}
}

// Answers of a batch that was given up are not taken for those of the next.
func TestAnswersOfAnEarlierBatchArePassedOver(t *testing.T) {
	answer := func(seq uint32, errno unix.Errno) []byte {
		b := make([]byte, unix.SizeofNlMsghdr+4)
		binary.NativeEndian.PutUint32(b, uint32(len(b)))
		binary.NativeEndian.PutUint16(b[4:], unix.NLMSG_ERROR)
		binary.NativeEndian.PutUint32(b[8:], seq)
		binary.NativeEndian.PutUint32(b[unix.SizeofNlMsghdr:], uint32(-int32(errno)))
		return b
	}
	errs := make([]error, 2)
	if answered(answer(9, unix.EPERM), 10, errs) || errs[0] != nil || errs[1] != nil {
		t.Errorf("an old answer was taken: %v", errs)
	}
	if answered(answer(10, unix.EEXIST), 10, errs) || !errors.Is(errs[0], unix.EEXIST) {
		t.Errorf("the first answer: %v", errs)
	}
	if !answered(answer(11, 0), 10, errs) || errs[1] != nil {
		t.Errorf("the last answer: %v", errs)
	}
}
