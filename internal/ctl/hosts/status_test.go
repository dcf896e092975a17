package hosts

import (
	"context"
	"encoding/json"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/attachlock"
)

func TestStatusTellsAnAgentThatServesFromOneThatStarts(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "agent.sock")
	expect := func(want string) {
		t.Helper()
		if _, err := ask(t.Context(), socket); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("status is %v, want %q", err, want)
		}
	}
	expect("Calico process is not running.")
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	lock, err := attachlock.Acquire(ctx, filepath.Dir(socket), attach.AgentLock)
	if err != nil {
		t.Fatal(err)
	}
	expect("Calico process is running, but has not programmed this host yet")
	lock.Release()
	expect("Calico process is not running.")
}

// agent answers each question for BGP with the same reply.
func agent(t *testing.T, reply attach.Reply) string {
	t.Helper()
	return agentFor(t, attach.BGP, reply)
}

// agentFor answers each question of a kind with the same reply.
func agentFor(t *testing.T, verb attach.Verb, reply attach.Reply) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conn := attach.NewConn(c)
			var req attach.Request
			if conn.Receive(&req) == nil && req.Verb == verb && req.Version == attach.Version {
				_ = conn.Send(&reply) // the test sees what is missing
			}
			_ = c.Close()
		}
	}()
	return socket
}

func TestStatusOfSessionsIsPrintedAsCalicoctlDoes(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	peer := func(addr, kind, state string, since time.Time, info string) attach.Peer {
		return attach.Peer{Addr: netip.MustParseAddr(addr), Type: kind, State: state, Since: since, Info: info}
	}
	morning, before := now.Add(-3*time.Hour-4*time.Second), now.Add(-50*time.Hour)
	sessions := []attach.Peer{
		peer("10.0.0.2", "node-to-node mesh", "Established", morning, ""),
		peer("10.0.0.3", "node specific", "Active", before, "Socket: connection refused"),
		peer("10.0.0.10", "global", "Passive", morning, ""),
		peer("192.168.0.7", "local workload", "Established", morning, ""),
	}
	for _, c := range []struct {
		name  string
		reply attach.Reply
		want  string
	}{
		{"IPv4", attach.Reply{Peers: sessions}, `Calico process is running.

IPv4 BGP status
+--------------+-------------------+-------+------------+-----------------------------------+
| PEER ADDRESS |     PEER TYPE     | STATE |   SINCE    |               INFO                |
+--------------+-------------------+-------+------------+-----------------------------------+
| 10.0.0.2     | node-to-node mesh | up    | 08:59:56   | Established                       |
| 10.0.0.3     | node specific     | start | 2026-11-19 | Active Socket: connection refused |
| 10.0.0.10    | global            | start | 08:59:56   | Passive                           |
+--------------+-------------------+-------+------------+-----------------------------------+

IPv6 BGP status
No IPv6 peers found.

`},
		{"IPv6", attach.Reply{Peers: []attach.Peer{peer("fd00::2", "node-to-node mesh", "OpenConfirm", now, "")}}, `Calico process is running.

IPv4 BGP status
No IPv4 peers found.

IPv6 BGP status
+--------------+-------------------+-------+----------+-------------+
| PEER ADDRESS |     PEER TYPE     | STATE |  SINCE   |    INFO     |
+--------------+-------------------+-------+----------+-------------+
| fd00::2      | node-to-node mesh | start | 12:00:00 | OpenConfirm |
+--------------+-------------------+-------+----------+-------------+

`},
		{"BGP is off", attach.Reply{Error: &attach.Error{Code: attach.CodeNoBGP, Msg: "BGP is off on this node", Details: "reason"}}, `Calico process is running.

The BGP backend process (BIRD) is not running.
BGP is off on this node: reason.
`},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := ask(t.Context(), agent(t, c.reply))
			if err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			if err := r.print(&out, now); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.want, out.String()); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			var again report
			text, err := json.Marshal(r)
			if err == nil {
				err = json.Unmarshal(text, &again)
			}
			if d := cmp.Diff(r, again, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); err != nil || d != "" {
				t.Errorf("as JSON: error %v, (-want +got):\n%s", err, d)
			}
		})
	}
}

func TestStatusPassesOnWhatTheAgentSays(t *testing.T) {
	_, err := ask(t.Context(), agent(t, attach.Reply{Error: &attach.Error{Code: attach.CodeInternal, Msg: "BGP is stuck"}}))
	if err == nil || !strings.Contains(err.Error(), "BGP is stuck") {
		t.Errorf("error %v", err)
	}
}
