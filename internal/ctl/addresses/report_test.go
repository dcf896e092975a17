package addresses

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestOnlyLeaksThatAllReportsAgreeOnAreReleased(t *testing.T) {
	leak := func(ip, handle string, seq uint64) allocation {
		return allocation{IP: ip, Handle: handle, SequenceNumber: seq, Leaked: true}
	}
	first := report{Allocations: []allocation{
		leak("10.0.0.10", "a", 1), leak("10.0.0.9", "b", 2), leak("10.0.0.3", "c", 3), leak("10.0.0.4", "d", 4), leak("10.0.0.5", "e", 5), {IP: "10.0.0.6"},
	}}
	second := report{Allocations: []allocation{
		leak("10.0.0.10", "a", 1), leak("10.0.0.9", "b", 2), leak("10.0.0.3", "c", 9), leak("10.0.0.4", "x", 4), {IP: "10.0.0.5", Handle: "e", SequenceNumber: 5}, leak("10.0.0.6", "f", 6),
	}}
	ips := func(list []allocation) (out []string) {
		for _, a := range list {
			out = append(out, a.IP)
		}
		return out
	}
	if diff := cmp.Diff([]string{"10.0.0.9", "10.0.0.10"}, ips(leaks([]report{first, second}))); diff != "" {
		t.Errorf("leaks of both reports (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.9", "10.0.0.10"}, ips(leaks([]report{first}))); diff != "" {
		t.Errorf("leaks of one report (-want +got):\n%s", diff)
	}
}
