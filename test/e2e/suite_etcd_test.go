package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
)

// etcdEndpoints are the members of the suite's etcd.
func etcdEndpoints() (out []string) {
	for i := range suiteMembers {
		out = append(out, fmt.Sprintf("172.30.0.%d:2379", i+1))
	}
	return out
}

// dialEtcd makes a client on the fabric, for what an operator asks of etcd itself.
func dialEtcd(t *testing.T, l *lab.Lab, endpoints ...string) *clientv3.Client {
	t.Helper()
	dial := func(ctx context.Context, addr string) (conn net.Conn, err error) {
		err = l.Within("fabric", func() (err error) {
			conn, err = (&net.Dialer{}).DialContext(ctx, "tcp4", addr)
			return err
		})
		return conn, err
	}
	c, err := clientv3.New(clientv3.Config{Endpoints: endpoints, Logger: zap.NewNop(), DialOptions: []grpc.DialOption{grpc.WithContextDialer(dial)}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// asks gives an operator's request to etcd half a minute, and repeats it while etcd is not there yet.
func (s *suite) asks(what string, do func(context.Context) error) {
	s.t.Helper()
	patiently(s.t, func() error {
		ctx, cancel := context.WithTimeout(s.t.Context(), nettest.Patience(30*time.Second))
		defer cancel()
		if err := do(ctx); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		return nil
	})
}

// leader is the member that leads, and another one's id.
func (s *suite) leader() (member int, other uint64) {
	s.t.Helper()
	s.asks("find the leader", func(ctx context.Context) error {
		member = -1
		for i, at := range etcdEndpoints() {
			status, err := s.etcd.Status(ctx, at)
			if err != nil {
				return err
			}
			if status.Header.MemberId == status.Leader {
				member = i
			} else {
				other = status.Header.MemberId
			}
		}
		if member < 0 {
			return errors.New("nobody leads")
		}
		return nil
	})
	return member, other
}

func (s *suite) signal(member int, sig unix.Signal) {
	s.t.Helper()
	if err := s.lab.SignalEtcd(s.t.Context(), member, sig); err != nil {
		s.t.Fatal(err)
	}
}

func (s *suite) startEtcd() {
	s.t.Helper()
	if err := s.lab.StartEtcd(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
}

// compact has etcd forget its history, and gives the room back.
func (s *suite) compact() {
	s.t.Helper()
	s.asks("compact", func(ctx context.Context) error {
		now, err := s.etcd.Get(ctx, "/calico")
		if err != nil {
			return err
		}
		_, err = s.etcd.Compact(ctx, now.Header.Revision, clientv3.WithCompactPhysical())
		if errors.Is(err, rpctypes.ErrCompacted) { // by the attempt before
			return nil
		}
		return err
	})
	for _, at := range etcdEndpoints() {
		s.asks("defragment", func(ctx context.Context) error {
			_, err := s.etcd.Defragment(ctx, at)
			return err
		})
	}
}

// makeRoom has etcd forget what it must not keep for ever, as API servers do every five minutes: thousands of commands fill what a fault is to fill.
func (s *suite) makeRoom() {
	s.t.Helper()
	var size int64
	s.asks("look how full etcd is", func(ctx context.Context) error {
		status, err := s.etcd.Status(ctx, etcdEndpoints()[0])
		if err == nil {
			size = status.DbSize
		}
		return err
	})
	if size > suiteQuota/2 {
		s.compact()
	}
}

// etcdBreaks are the faults of etcd. The short form leaves out those that last as long as a plugin waits for a silent etcd.
func (s *suite) etcdBreaks() []breakage {
	all := append(s.quickBreaks(), s.diskFull())
	if *suiteOperations == 0 {
		return all
	}
	return append(all,
		breakage{name: "etcd: killed", begin: func() {
			if err := s.lab.StopEtcd(s.t.Context()); err != nil {
				s.t.Fatal(err)
			}
		}, end: s.startEtcd, lasts: heldFor},
		breakage{name: "etcd: paused", begin: func() {
			for m := range suiteMembers {
				s.signal(m, unix.SIGSTOP)
			}
		}, end: s.startEtcd, lasts: heldFor},
	)
}

// quickBreaks are those in which most commands succeed.
func (s *suite) quickBreaks() []breakage {
	return []breakage{
		{name: "etcd: its leader killed", begin: func() { m, _ := s.leader(); s.signal(m, unix.SIGKILL) }, end: s.startEtcd, lasts: heldFor},
		{name: "etcd: its leader paused", begin: func() { m, _ := s.leader(); s.signal(m, unix.SIGSTOP) }, end: s.startEtcd, lasts: heldFor},
		{name: "etcd: its leader moved", begin: s.moveLeader, end: s.moveLeader, lasts: heldFor},
		{name: "etcd: compacted", begin: s.compact, end: s.compact, lasts: heldFor},
		s.cutOff(),
	}
}

func (s *suite) moveLeader() {
	s.t.Helper()
	from, to := s.leader()
	c := dialEtcd(s.t, s.lab, etcdEndpoints()[from])
	s.asks("move the leader", func(ctx context.Context) error {
		_, err := c.MoveLeader(ctx, to)
		if errors.Is(err, rpctypes.ErrNotLeader) { // it has moved
			return nil
		}
		return err
	})
	if now, _ := s.leader(); now == from {
		s.t.Errorf("member %d leads still", from)
	}
}

// cutOff drops what a node sends to etcd and has etcd forget what the node misses.
func (s *suite) cutOff() breakage {
	rules := func(text string) { run(s.t, s.lab, "fabric", "nft", text) }
	return breakage{
		name: "etcd: cut off from one node, and compacted", lasts: heldFor,
		begin: func() {
			for _, n := range nodesOf(s.t, s.lab) {
				if n.Name == suiteVictim {
					rules(fmt.Sprintf("add table inet cut; add chain inet cut in { type filter hook input priority 0; }; add rule inet cut in ip saddr %v tcp dport 2379 drop", n.Addr))
				}
			}
		},
		end: func() {
			s.compact()
			rules("delete table inet cut")
		},
	}
}

// diskFull fills etcd to its quota, which is how it notices in time that its disk is filling up. What brings it back is what its manual says.
func (s *suite) diskFull() breakage {
	const filler = "/filler"
	return breakage{
		name: "etcd: its disk full", lasts: heldFor,
		begin: func() {
			block := string(bytes.Repeat([]byte("x"), 1<<20))
			s.asks("fill the disk", func(ctx context.Context) error {
				for {
					_, err := s.etcd.Put(ctx, filler, block)
					if errors.Is(err, rpctypes.ErrNoSpace) {
						return nil
					}
					if err != nil {
						return err
					}
				}
			})
			_, err := s.lab.AddPod(s.t.Context(), lab.PodSpec{Name: "late", Node: "node-1"})
			if err == nil || !strings.Contains(err.Error(), "space exceeded") {
				s.t.Errorf("ADD: error %v, want one that says that etcd has no space", err)
			}
		},
		end: func() {
			s.asks("delete what fills the disk", func(ctx context.Context) error {
				_, err := s.etcd.Delete(ctx, filler)
				return err
			})
			s.compact()
			s.asks("disarm", func(ctx context.Context) error {
				_, err := s.etcd.AlarmDisarm(ctx, &clientv3.AlarmMember{})
				return err
			})
			patiently(s.t, func() error { return forget(s.lab, "late") })
		},
	}
}
