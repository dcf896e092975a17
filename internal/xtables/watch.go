package xtables

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/kernel"
)

const (
	// eventBuffer is the size of the socket's buffer in bytes: a proxy that writes ten thousand rules sends some megabytes of events.
	eventBuffer = 8 << 20
	// patience is how long the event of an own write is waited for. It is in the socket before the program ends; a busy agent reads it later.
	patience = time.Minute
)

// hands is what a Watch has to know of the tables beside it: which changes are our own, and which of the kernel's chains hold rules of
// ours. It is shared by the tables of both families.
//
// An event does not tell its writer from others, as go-iptables keeps its processes to itself. But of each write we know the one event
// that it sends (seen with iptables 1.8.9 and Linux 6.18):
//
//	-N  a new chain        -I, -A  a new rule
//	-X  a chain gone       -D      a rule gone
//
// A command that fails has sent none. The first write to a table also sends that the table is new, and the first to one of the kernel's
// chains that this is; those are no changes, see decodeChange. -S and iptables-save send nothing, also where the table is new. So each write is expected,
// and each event uses up one expectation of its like. An event that finds none is others'. Theirs may use up ours, but then our own finds
// none: as many are left over as others have made. What is left over costs a list, and a list that finds all as it should be
// writes nothing: there is no loop. A write that fails may leave its event to others': of a removal that finds nothing to remove the state is as wanted, and
// after all other failures the table is listed anyway.
type hands struct {
	mu       sync.Mutex
	expected map[change][]time.Time // when our writes began whose events are to come; nil: nobody watches
	hooks    map[hook]bool
}

// hook is one of the kernel's chains.
type hook struct {
	v6 bool
	kernel.ChainKey
}

func newHands() *hands { return &hands{hooks: map[hook]bool{}} }

// watch begins to expect events, or ends that.
func (h *hands) watch(on bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.expected = nil
	if on {
		h.expected = map[change][]time.Time{}
	}
}

// expect notes a write that is about to be made.
func (h *hands) expect(c change) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.expected == nil {
		return
	}
	for other := range h.expected {
		h.expire(other)
	}
	h.expected[c] = append(h.expected[c], time.Now())
}

// takeBack expects the last write no longer.
func (h *hands) takeBack(c change) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if n := len(h.expected[c]); n > 0 {
		h.keep(c, h.expected[c][:n-1])
	}
}

// meets tells whether an event was expected, and uses that up.
func (h *hands) meets(c change) bool {
	h.expire(c)
	since := h.expected[c]
	if len(since) == 0 {
		return false
	}
	h.keep(c, since[1:])
	return true
}

// expire drops the expectations that were in vain.
func (h *hands) expire(c change) {
	since := h.expected[c]
	old := 0
	for old < len(since) && time.Since(since[old]) > patience {
		old++
	}
	if old > 0 {
		h.keep(c, since[old:])
	}
}

func (h *hands) keep(c change, since []time.Time) {
	if len(since) == 0 {
		delete(h.expected, c)
		return
	}
	h.expected[c] = since
}

// use notes the kernel's chains that hold rules of ours, or are to.
func (h *hands) use(v6 bool, keys ...kernel.ChainKey) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, k := range keys {
		if !ourChain(k) {
			h.hooks[hook{v6, k}] = true
		}
	}
}

// spoils tells whether a change may concern us: others made it, to a chain of ours or to one of the kernel's that we use.
func (h *hands) spoils(c change) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	k := kernel.ChainKey{Table: c.table, Chain: c.chain}
	return (ourChain(k) || h.hooks[hook{c.v6, k}]) && !h.meets(c)
}

// Watch tells when others have changed our chains, our rules, or what stands beside these in the kernel's chains. The kernel says so of what
// is written by the nft backend of iptables and by nft itself, and not of the legacy backend: what is done there only a list finds. It may be
// used by any goroutine.
type Watch struct {
	s       *nl.NetlinkSocket
	hands   *hands
	log     *slog.Logger
	changed chan struct{}
	closing sync.Mutex // held to close s, and to use its number

	mu     sync.Mutex
	v4, v6 bool
}

// Watch opens a watch in the namespace that the calling thread is in, over the chains of c and of the table that IPv6 makes of it. What
// these two write is not reported. Run must be called to follow it, and to release the socket; until that ends there may be no second watch.
func (c *Chains) Watch(log *slog.Logger) (*Watch, error) {
	s, err := nl.Subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		return nil, fmt.Errorf("subscribe to nftables events: %w", err)
	}
	if err := s.SetReceiveBufferSize(eventBuffer, true); err != nil {
		log.Warn("keep the small buffer for nftables events", "err", err)
	}
	c.hands.watch(true)
	return &Watch{s: s, hands: c.hands, log: log, changed: make(chan struct{}, 1)}, nil
}

// Changed receives a value when Spoiled has something new. Many changes may give one value.
func (w *Watch) Changed() <-chan struct{} { return w.changed }

// Spoiled tells in which families others have changed something since the last call.
func (w *Watch) Spoiled() (v4, v6 bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	v4, v6 = w.v4, w.v6
	w.v4, w.v6 = false, false
	return v4, v6
}

// Run follows the events until ctx is done, and then returns nil. It may be called once.
func (w *Watch) Run(ctx context.Context) error {
	defer w.hands.watch(false)
	stop := context.AfterFunc(ctx, w.close)
	defer func() {
		if stop() {
			w.close()
		}
	}()
	for {
		msgs, from, err := w.s.Receive()
		switch {
		case ctx.Err() != nil || errors.Is(err, os.ErrClosed):
			return nil
		case errors.Is(err, unix.ENOBUFS):
			// The kernel goes on dropping events until the socket has been read empty; what they would have said is to be looked for after that.
			if err := w.drain(ctx); err != nil && ctx.Err() == nil {
				return err
			}
			w.hands.watch(true) // none of the events that were expected will come
			w.spoiled(true, true)
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
		case err != nil:
			return fmt.Errorf("receive nftables events: %w", err)
		case from.Pid == nl.PidKernel:
			w.take(msgs)
		}
	}
}

func (w *Watch) drain(ctx context.Context) error {
	w.closing.Lock()
	defer w.closing.Unlock()
	buf := make([]byte, nl.RECEIVE_BUFFER_SIZE)
	for ctx.Err() == nil {
		_, _, err := unix.Recvfrom(w.s.GetFd(), buf, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("read nftables events: %w", err)
		}
	}
	return ctx.Err()
}

// close closes the socket, which ends a Receive, but not under a drain, which uses its number.
func (w *Watch) close() {
	w.closing.Lock()
	defer w.closing.Unlock()
	w.s.Close()
}

func (w *Watch) take(msgs []syscall.NetlinkMessage) {
	var v4, v6 bool
	for _, m := range msgs {
		if c, ok := decodeChange(m); ok && w.hands.spoils(c) {
			v4, v6 = v4 || !c.v6, v6 || c.v6
		}
	}
	w.spoiled(v4, v6)
}

func (w *Watch) spoiled(v4, v6 bool) {
	if !v4 && !v6 {
		return
	}
	w.mu.Lock()
	w.v4, w.v6 = w.v4 || v4, w.v6 || v6
	w.mu.Unlock()
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// change is what an event says of a chain, or of a rule in it.
type change struct {
	kind  uint8 // msgNewChain, msgDelChain, msgNewRule or msgDelRule
	v6    bool
	table string
	chain string
}

// Numbers of nftables messages and attributes (linux/netfilter/nf_tables.h).
const (
	msgNewChain, msgDelChain = 3, 5
	msgNewRule, msgDelRule   = 6, 8

	attrChainTable, attrChainName = 1, 3
	attrRuleTable, attrRuleChain  = 1, 2
)

// decodeChange reads an event. ok is false for those of other kinds, and of tables that iptables does not use. That the kernel's chain is
// new or has another policy says nothing of our rules. (A table goes with its chains, each with an event of its own.)
func decodeChange(m syscall.NetlinkMessage) (c change, ok bool) {
	if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.Data) < nl.SizeofNfgenmsg {
		return change{}, false
	}
	family := m.Data[0]
	if family != unix.AF_INET && family != unix.AF_INET6 {
		return change{}, false
	}
	c = change{kind: uint8(m.Header.Type & 0xff), v6: family == unix.AF_INET6}
	body := m.Data[nl.SizeofNfgenmsg:]
	switch c.kind {
	case msgNewRule, msgDelRule:
		c.table, c.chain = twoNames(body, attrRuleTable, attrRuleChain)
	case msgNewChain, msgDelChain:
		c.table, c.chain = twoNames(body, attrChainTable, attrChainName)
		if c.kind == msgNewChain && !strings.HasPrefix(c.chain, kernel.ChainPrefix) {
			return change{}, false
		}
	}
	return c, c.table != "" && c.chain != ""
}

// twoNames returns two text attributes. It stops at the second, since what follows in a rule is long.
func twoNames(body []byte, first, second uint16) (a, b string) {
	for len(body) >= unix.SizeofNlAttr && b == "" {
		length, kind := int(binary.NativeEndian.Uint16(body)), binary.NativeEndian.Uint16(body[2:])&^uint16(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER)
		if length < unix.SizeofNlAttr || length > len(body) {
			return a, b
		}
		value := strings.TrimRight(string(body[unix.SizeofNlAttr:length]), "\x00")
		switch kind {
		case first:
			a = value
		case second:
			b = value
		}
		body = body[min(len(body), (length+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1)):]
	}
	return a, b
}
