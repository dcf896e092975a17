package calicowriter_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/test/calicowriter"
)

// TestSequencesWriteWhatWasRecorded compares the order of the writes with what was seen when Calico v3.32.1's own programs ran.
func TestSequencesWriteWhatWasRecorded(t *testing.T) {
	w := newRig(t).empty(t)
	add := w.writer(node1).Add(calicos(subject))
	w.run(add)
	w.told[subject] = add.Addrs()
	cidr := blockAt(w.blockOf(subject))
	var (
		blockKey = api.BlockKey(cidr)
		affinity = api.AffinityKey(node1, cidr)
		handle   = api.HandleKey(handleOf(subject))
		endpoint = endpointKey(node1, subject)
		profile  = (*api.Profile)(nil).KindOf().Key("", network)
	)
	check := func(what string, s *calicowriter.Sequence, want ...string) {
		t.Helper()
		w.run(s)
		if diff := cmp.Diff(want, s.Writes()); diff != "" {
			t.Errorf("%s (-recorded +replayed):\n%s", what, diff)
		}
	}
	check("first ADD on a node", add, "PUT "+affinity, "PUT "+affinity, "PUT "+blockKey, "PUT "+affinity, "PUT "+handle, "PUT "+blockKey,
		"PUT "+endpoint, "PUT "+profile)
	check("ADD again", w.writer(node1).Add(calicos(subject)), "PUT "+endpoint)
	check("DEL", w.writer(node1).Del(calicos(subject)), "PUT "+blockKey, "DELETE "+handle, "DELETE "+endpoint)
	check("DEL again", w.writer(node1).Del(calicos(subject)))
	check("second ADD", w.writer(node1).Add(calicos(old)), "PUT "+api.HandleKey(handleOf(old)), "PUT "+blockKey, "PUT "+endpointKey(node1, old))
	w.run(w.writer(node1).Del(calicos(old)))
	check("delete node", w.writer(node1).DeleteNode(), "PUT "+affinity, "DELETE "+blockKey, "DELETE "+affinity, "DELETE "+api.NodeKey(node1))
}
