package rtnl

import (
	"reflect"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"pgregory.net/rapid"
)

// TestAttributesAreThoseThatTheLibraryFinds also in what a kernel would not send.
func TestAttributesAreThoseThatTheLibraryFinds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b []byte
		for range rapid.IntRange(0, 5).Draw(t, "attributes") {
			b = append(b, nl.NewRtAttr(rapid.IntRange(0, 60).Draw(t, "type"), rapid.SliceOfN(rapid.Byte(), 0, 9).Draw(t, "value")).Serialize()...)
		}
		if len(b) > 0 && rapid.Bool().Draw(t, "broken") {
			b[rapid.IntRange(0, len(b)-1).Draw(t, "where")] ^= rapid.Byte().Draw(t, "how")
		}
		if len(b) > 0 && rapid.Bool().Draw(t, "short") {
			b = b[:len(b)-rapid.IntRange(1, 4).Draw(t, "by")]
		}
		want, defined, wantErr := parsed(b)
		var got []syscall.NetlinkRouteAttr
		var gotErr error
		for a, err := range attributes(b) {
			if err != nil {
				gotErr = err
				break
			}
			got = append(got, a)
		}
		if !defined {
			return // that it comes to an end is all
		}
		if (gotErr != nil) != (wantErr != nil) || wantErr == nil && len(want)+len(got) > 0 && !reflect.DeepEqual(got, want) {
			t.Fatalf("%x: %v, %v; want %v, %v", b, got, gotErr, want, wantErr)
		}
	})
}

// parsed is what the library finds. It does not survive a message that ends before the padding of its last attribute.
func parsed(b []byte) (out []syscall.NetlinkRouteAttr, defined bool, err error) {
	defer func() { defined = recover() == nil }()
	out, err = nl.ParseRouteAttr(b)
	return out, true, err
}
