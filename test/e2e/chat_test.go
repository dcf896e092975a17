package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
)

// chatSize is more than a segment, so that full-size packets go each way.
const chatSize = 4 << 10

// chat is what two pods say to each other for as long as a test lasts: one connection that is never opened again, and datagrams, each of
// which is to come back.
type chat struct {
	name  string
	door  net.Listener
	echo  net.PacketConn
	talk  net.Conn // TCP
	probe net.Conn // UDP
	going sync.WaitGroup

	mu     sync.Mutex
	ended  bool
	broken error // of the connection
	now    progress
	before progress      // at the last mark
	heard  time.Time     // when the latest datagram came back
	gap    time.Duration // the longest between two that did, since the mark
}

// progress is how far a chat has come.
type progress struct {
	rounds     int // there and back by the connection
	sent, back int // datagrams
	last       int // the one that came back with the highest number
}

// silence is what a change has cost a chat.
type silence struct {
	gap  time.Duration
	lost int
}

// startChat begins; the test's end ends it. A pause lies between two rounds, and between two datagrams.
func startChat(t *testing.T, l *lab.Lab, from, to string, addr netip.Addr, pause time.Duration) *chat {
	t.Helper()
	c := &chat{name: fmt.Sprintf("%s -> %s (%v)", from, to, addr), heard: time.Now()}
	anyPort := net.JoinHostPort(addr.String(), "0")
	err := errors.Join(
		l.WithinPod(to, func() (err error) { c.door, err = net.Listen("tcp", anyPort); return err }),
		l.WithinPod(to, func() (err error) { c.echo, err = net.ListenPacket("udp", anyPort); return err }),
	)
	if err != nil {
		t.Fatal(err)
	}
	go c.repeat()
	go answer(c.echo)
	nettest.Eventually(t, func() error {
		return l.WithinPod(from, func() (err error) {
			c.talk, err = net.DialTimeout("tcp", c.door.Addr().String(), time.Second)
			return err
		})
	})
	if err := l.WithinPod(from, func() (err error) { c.probe, err = net.Dial("udp", c.echo.LocalAddr().String()); return err }); err != nil {
		t.Fatal(err)
	}
	c.going.Go(func() { c.converse(pause) })
	c.going.Go(func() { c.send(pause) })
	c.going.Go(c.listen)
	t.Cleanup(c.finish)
	return c
}

// finish ends the chat. Twice is no harm.
func (c *chat) finish() {
	c.mu.Lock()
	c.ended = true
	c.mu.Unlock()
	_, _, _, _ = c.door.Close(), c.echo.Close(), c.talk.Close(), c.probe.Close()
	c.going.Wait()
}

// repeat says back what the connection says.
func (c *chat) repeat() {
	conn, err := c.door.Accept()
	if err != nil {
		return // the chat ended before it began
	}
	_, _ = io.Copy(conn, conn) // who talks sees what goes wrong
	_ = conn.Close()
}

// over reports whether the test has ended.
func (c *chat) over() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended
}

func (c *chat) converse(pause time.Duration) {
	said, got := make([]byte, chatSize), make([]byte, chatSize)
	for n := uint64(0); !c.over(); n++ {
		binary.BigEndian.PutUint64(said[n%chatSize/8*8:], n)
		_, err := c.talk.Write(said)
		if err == nil {
			_, err = io.ReadFull(c.talk, got)
		}
		if err == nil && !bytes.Equal(said, got) {
			err = errors.New("what came back is not what was said")
		}
		c.mu.Lock()
		if c.now.rounds++; err != nil {
			c.broken = err
		}
		c.mu.Unlock()
		if err != nil {
			return
		}
		<-time.After(pause)
	}
}

func (c *chat) send(pause time.Duration) {
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for ; !c.over(); <-tick.C {
		c.mu.Lock()
		c.now.sent++
		n := c.now.sent
		c.mu.Unlock()
		_, _ = c.probe.Write(binary.BigEndian.AppendUint64(nil, uint64(n))) // one that cannot be sent counts as lost
	}
}

func (c *chat) listen() {
	buf := make([]byte, 64)
	for {
		n, err := c.probe.Read(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil && n == 8 {
			c.hear(int(binary.BigEndian.Uint64(buf)))
		}
	}
}

func (c *chat) hear(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	c.gap, c.heard = max(c.gap, now.Sub(c.heard)), now
	c.now.back++
	c.now.last = max(c.now.last, n)
}

// mark begins to count what the next change costs.
func (c *chat) mark() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.before, c.gap = c.now, 0
}

// goesOn waits until what is said from now on is answered, by the connection that there was and by datagrams, and tells what was lost since
// the mark.
func (c *chat) goesOn(t *testing.T) (cost silence) {
	t.Helper()
	c.mu.Lock()
	begun := c.now
	c.mu.Unlock()
	nettest.Eventually(t, func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		switch {
		case c.broken != nil:
			return fmt.Errorf("%s: the connection broke: %w", c.name, c.broken)
		case c.now.rounds < begun.rounds+2: // of which one was under way
			return fmt.Errorf("%s: the connection is stuck", c.name)
		case c.now.last <= begun.sent:
			return fmt.Errorf("%s: no datagram comes back", c.name)
		}
		cost = silence{gap: c.gap, lost: max(0, c.now.last-c.before.last-(c.now.back-c.before.back))}
		return nil
	})
	return cost
}
