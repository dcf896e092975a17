package attach

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/muslin-cni/muslin/internal/members"
)

// wire is a peer that has said something already, and that keeps what it is told.
type wire struct {
	io.Reader
	told bytes.Buffer
}

func (w *wire) Write(b []byte) (int, error) { return w.told.Write(b) }

func TestMembersAreThoseOfTheTags(t *testing.T) {
	for _, o := range []members.Object{&Request{}, &Reply{}, &Pod{}, &Linked{}} {
		if want, got := members.Tagged(o), o.Members(); !slices.Equal(got, want) {
			t.Errorf("%T: %v, want as by its tags %v", o, got, want)
		}
	}
}

func TestAskReturnsTheAnswer(t *testing.T) {
	w := &wire{Reader: strings.NewReader(`{"addrs":["10.0.0.1","fd00::1"],"mac":"02:00:00:00:00:01"}` + "\n")}
	got, err := NewConn(w).Ask(&Linked{HostIf: "cali1", Index: 7})
	if err != nil {
		t.Fatal(err)
	}
	want := Reply{Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}, MAC: "02:00:00:00:00:01"}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("answer (-want +got):\n%s", diff)
	}
	if got, want := w.told.String(), `{"hostIf":"cali1","index":7}`+"\n"; got != want {
		t.Errorf("said %q, want %q", got, want)
	}
}

func TestAskReturnsARefusalAsError(t *testing.T) {
	w := &wire{Reader: strings.NewReader(`{"error":{"code":101,"msg":"pools are full","details":"add a pool"}}` + "\n")}
	_, err := NewConn(w).Ask(&Request{})
	var told *Error
	if !errors.As(err, &told) || told.Code != CodeNoAddress || err.Error() != "pools are full: add a pool" {
		t.Errorf("got %v", err)
	}
}

func TestReceiveRefusesWhatIsNoMessage(t *testing.T) {
	for _, c := range []struct{ name, input, says string }{
		{"nothing", "", "EOF"},
		{"half a line", `{"mac":`, "receive message"},
		{"no JSON", "hello\n", "decode message"},
		{"wrong type", `{"addrs":7}` + "\n", "decode message"},
		{"endless line", strings.Repeat("x", 2*maxLine), fmt.Sprintf("longer than %d bytes", maxLine)},
	} {
		t.Run(c.name, func(t *testing.T) {
			var r Reply
			err := NewConn(&wire{Reader: strings.NewReader(c.input)}).Receive(&r)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want an error with %q", err, c.says)
			}
		})
	}
}

func TestReceiveTellsACutMessageFromAClosedConnection(t *testing.T) {
	for input, want := range map[string]error{"": io.EOF, `{"mac":`: io.ErrUnexpectedEOF} {
		var r Reply
		if err := NewConn(&wire{Reader: strings.NewReader(input)}).Receive(&r); !errors.Is(err, want) {
			t.Errorf("after %q: %v, want %v", input, err, want)
		}
	}
}

// FuzzReceive checks that bytes of any kind end in a message or an error, and that what was received goes round.
func FuzzReceive(f *testing.F) {
	for _, s := range []string{"", "\n", "{}\n", `{"version":1,"verb":"add","addrs":["10.0.0.1"],"pod":{"name":"a"}}` + "\n", `{"addrs":["nonsense"]}` + "\n", "\x00\xff\n", "{}{}\n", `{"stale":[{}]`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		c := NewConn(struct {
			io.Reader
			io.Writer
		}{bytes.NewReader(in), io.Discard})
		var req Request
		if c.Receive(&req) != nil {
			return
		}
		var buf bytes.Buffer
		var again Request
		if err := NewConn(&buf).Send(&req); err != nil {
			t.Fatalf("send what was received: %v", err)
		}
		if err := NewConn(&buf).Receive(&again); err != nil {
			t.Fatalf("receive what was sent: %v", err)
		}
	})
}
