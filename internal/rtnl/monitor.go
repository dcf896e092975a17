package rtnl

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/kernel"
)

const (
	// eventBuffer is the size of the socket's buffer in bytes, about 10 000 events. When it overflows everything is read anew.
	eventBuffer = 8 << 20
	// maxEvents bounds the events that wait to be fetched, as while an agent waits for etcd. Beyond it everything is to be listed.
	maxEvents = 1 << 14
)

// Monitor keeps the host facts of one network namespace up to date and collects what happens to our objects in it.
// Host, Events and Changed may be used by any goroutine.
type Monitor struct {
	c       *Conn
	s       *subscription
	log     *slog.Logger
	changed chan struct{}

	mu       sync.Mutex
	devices  map[int]device
	addrs    []address                      // in the kernel's order
	neighs   map[kernel.NeighKey]kernel.MAC // permanent ones of ours: the kernel's own come and go and are no news
	events   kernel.Events                  // since the last call of Events
	snapshot kernel.Host                    // of devices and addrs, if not stale
	version  uint64                         // of the snapshot
	stale    bool
}

// NewMonitor subscribes to the events of the namespace that the calling thread is in, which has to be the one of c, and reads the
// facts once: when it returns, Host is complete. Run must be called to keep it so, and to release the socket.
func NewMonitor(ctx context.Context, c *Conn, log *slog.Logger) (*Monitor, error) {
	s, err := subscribe(unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
		unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE)
	if err != nil {
		return nil, fmt.Errorf("subscribe to netlink events: %w", err)
	}
	if err := s.resize(eventBuffer); err != nil {
		log.Warn("keep the small buffer for netlink events", "err", err)
	}
	m := &Monitor{c: c, s: s, log: log, changed: make(chan struct{}, 1), events: kernel.NewEvents()}
	if err := m.resync(ctx); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return m, nil
}

// Run follows the events until ctx is done, and then returns nil. It may be called once.
func (m *Monitor) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, m.close)
	defer func() {
		if stop() {
			m.close()
		}
	}()
	for {
		msgs, err := m.s.receive()
		switch {
		case ctx.Err() != nil || errors.Is(err, os.ErrClosed):
			return nil
		case is(err, unix.ENOBUFS):
			m.log.Warn("netlink events were lost, reading everything anew")
			if err := m.startOver(ctx); err != nil && ctx.Err() == nil {
				return fmt.Errorf("read host facts after lost events: %w", err)
			}
		case is(err, unix.EINTR, unix.EAGAIN):
		case err != nil:
			return fmt.Errorf("receive netlink events: %w", err)
		default:
			m.take(msgs)
		}
	}
}

// Host returns the host facts. The value is never modified afterwards. It costs nothing while nothing has changed.
func (m *Monitor) Host() kernel.Host {
	h, _ := m.Facts()
	return h
}

// Facts is Host together with a number that differs whenever the facts do.
func (m *Monitor) Facts() (h kernel.Host, version uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stale {
		m.snapshot, m.stale = hostOf(m.devices, m.addrs), false
		m.version++
	}
	return m.snapshot, m.version
}

// Events returns what happened to our objects since the last call, our own writes included. Call it before Host: then the
// facts are at least as new as the events.
func (m *Monitor) Events() kernel.Events {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := m.events
	m.events = kernel.NewEvents()
	return out
}

// Changed receives a value when Host or Events have something new. Many changes may give one value.
func (m *Monitor) Changed() <-chan struct{} { return m.changed }

// startOver makes up for lost events. The kernel goes on dropping events, without a word, until the socket has been read empty: only
// after that can be read anew what they would have said.
func (m *Monitor) startOver(ctx context.Context) error {
	if err := m.s.discard(ctx); err != nil {
		return fmt.Errorf("read netlink socket: %w", err)
	}
	return m.resync(ctx)
}

// close closes the socket, which ends a receive.
func (m *Monitor) close() {
	if err := m.s.close(); err != nil {
		m.log.Debug("close netlink socket", "err", err)
	}
}

// resync reads devices and addresses anew and says that events were lost.
func (m *Monitor) resync(ctx context.Context) error {
	devices, err := m.c.devices(ctx)
	if err != nil {
		return err
	}
	addrs, err := m.c.addresses(ctx)
	if err != nil {
		return err
	}
	neighs, err := m.c.Neighs().List(ctx)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.devices, m.addrs, m.neighs, m.stale = devices, addrs, neighs, true
	m.events = kernel.NewEvents()
	m.events.Lost = true
	m.wake()
	return nil
}

func (m *Monitor) wake() {
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

// take works a batch of messages into facts and events.
func (m *Monitor) take(msgs []syscall.NetlinkMessage) {
	m.mu.Lock()
	defer m.mu.Unlock()
	wake := false
	for _, msg := range msgs {
		news, err := m.one(msg)
		if err != nil {
			m.log.Warn("skip netlink event", "type", msg.Header.Type, "err", err)
		}
		wake = wake || news
	}
	m.bound()
	if wake {
		m.wake()
	}
}

// bound makes of too many events one that says that everything may have changed.
func (m *Monitor) bound() {
	if m.events.Len() <= maxEvents {
		return
	}
	m.events = kernel.NewEvents()
	m.events.Lost = true
}

func (m *Monitor) one(msg syscall.NetlinkMessage) (news bool, err error) {
	switch msg.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		d, ok, err := decodeLink(msg.Data)
		if err != nil || !ok {
			return false, err
		}
		if msg.Header.Type == unix.RTM_DELLINK {
			return m.linkGone(d), nil
		}
		return m.link(d), nil
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		a, err := decodeAddr(msg.Data)
		return err == nil && m.address(a, msg.Header.Type == unix.RTM_NEWADDR), err
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		n, err := decodeNeigh(msg.Data)
		return err == nil && m.neighbour(n, msg.Header.Type == unix.RTM_NEWNEIGH), err
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		r, ok, err := decodeRoute(msg.Data)
		return err == nil && ok && m.route(r, msg.Header), err
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		r, ok, err := decodeRule(msg.Data)
		return err == nil && ok && m.rule(r, msg.Header.Type == unix.RTM_NEWRULE), err
	case unix.RTM_NEWNETCONF:
		n, err := decodeNetconf(msg.Data)
		return err == nil && m.settings(n), err
	}
	return false, nil
}

func (m *Monitor) link(d device) (news bool) {
	old, known := m.devices[d.host.Index]
	m.devices[d.host.Index] = d
	if known && old.admin && !d.admin {
		m.events.Down = append(m.events.Down, d.dev())
		m.forget(d.host.Index)
	}
	if known && old.name != d.name && old.ours() {
		m.events.Lost = true // what hangs on it goes by another name now, and no event says so
		m.events.Links[old.name] = nil
	}
	if d.ours() {
		m.events.Links[d.name] = m.describe(d)
	}
	m.stale = m.stale || old != d
	return old != d || d.ours()
}

// describe reads a device of ours in full, which its event does not describe. It is nil for one that the table would not list.
func (m *Monitor) describe(d device) *kernel.Link {
	l, err := m.c.h.LinkByIndex(d.host.Index)
	if err != nil {
		return nil // it is gone already, and the event that says so follows
	}
	if !listed(l) {
		return nil
	}
	out := linkOf(l, func(i int) kernel.Dev { return m.devices[i].dev() })
	return &out
}

func (m *Monitor) linkGone(d device) (news bool) {
	if _, known := m.devices[d.host.Index]; !known {
		return false
	}
	delete(m.devices, d.host.Index)
	m.addrs = slices.DeleteFunc(m.addrs, func(a address) bool { return a.index == d.host.Index })
	m.forget(d.host.Index)
	maps.DeleteFunc(m.events.Sysctls, func(k kernel.SysctlKey, _ string) bool { return k.Index == d.host.Index })
	maps.DeleteFunc(m.events.FDB, func(k kernel.FDBKey, _ *netip.Addr) bool { return k.Dev.Index == d.host.Index })
	maps.DeleteFunc(m.events.Addrs, func(k kernel.AddrKey, _ *struct{}) bool { return k.Link == d.name })
	m.events.Down = slices.DeleteFunc(m.events.Down, func(x kernel.Dev) bool { return x.Index == d.host.Index })
	m.events.Gone = append(m.events.Gone, d.dev())
	if d.ours() {
		m.events.Links[d.name] = nil
	}
	m.stale = true
	return true
}

// forget drops neighbours and the events of what hung on a device: the event of the device says more.
func (m *Monitor) forget(index int) {
	maps.DeleteFunc(m.neighs, func(k kernel.NeighKey, _ kernel.MAC) bool { return k.Dev.Index == index })
	maps.DeleteFunc(m.events.Neighs, func(k kernel.NeighKey, _ *kernel.MAC) bool { return k.Dev.Index == index })
	maps.DeleteFunc(m.events.Routes, func(_ kernel.RouteKey, r *kernel.Route) bool { return r != nil && r.On(index) })
}

func (m *Monitor) address(a address, added bool) (news bool) {
	at := slices.Index(m.addrs, a)
	switch {
	case added && at < 0:
		m.addrs = append(m.addrs, a)
	case !added && at >= 0:
		m.addrs = slices.Delete(m.addrs, at, at+1)
		// Routes with this preferred source go with the address, and all on the device with its last one.
		m.events.RoutesLost = m.events.RoutesLost || a.addr.Addr().Is4()
	default:
		return false
	}
	if d := m.devices[a.index]; ourAddr(d, a) {
		m.events.Addrs[kernel.AddrKey{Link: d.name, Addr: a.addr}] = present(struct{}{}, added)
	}
	m.stale = true
	return true
}

func (m *Monitor) neighbour(n neighbour, added bool) (news bool) {
	d, known := m.devices[n.index]
	if !known || !m.c.ourDevice(d.name) {
		return false
	}
	if !n.bridge {
		return m.neighbourOf(kernel.NeighKey{Dev: d.dev(), Addr: n.addr}, n.mac, added && n.permanent)
	}
	if !ourTunnel(d.name) || !n.self {
		return false
	}
	m.events.FDB[kernel.FDBKey{Dev: d.dev(), MAC: n.mac}] = present(n.addr, added && ourFDB(d.name, n))
	return true
}

func (m *Monitor) neighbourOf(k kernel.NeighKey, mac kernel.MAC, there bool) (news bool) {
	if _, known := m.neighs[k]; !known && !there {
		return false
	}
	if there {
		m.neighs[k] = mac
	} else {
		delete(m.neighs, k)
	}
	m.events.Neighs[k] = present(mac, there)
	return true
}

// route looks at foreign routes only for whether they took the place of one that may be ours.
func (m *Monitor) route(r route, h syscall.NlMsghdr) (news bool) {
	r.name(func(index int) string { return m.devices[index].name })
	ours, added := ourRoute(m.c.ownership(), r), h.Type == unix.RTM_NEWROUTE
	if !ours && (!added || h.Flags&unix.NLM_F_REPLACE == 0) {
		return false
	}
	m.events.Routes[r.key] = present(r.val, ours && added)
	return true
}

func (m *Monitor) rule(r kernel.Rule, added bool) (news bool) {
	if !m.c.ownership().HasProtocol(r.Protocol) {
		return false
	}
	m.events.Rules[r] = present(struct{}{}, added)
	return true
}

// settings takes notice of settings of the whole host, of workloads' devices and of our own.
func (m *Monitor) settings(n netconf) (news bool) {
	d, known := m.devices[n.index]
	if n.index != allDevices && (!known || !m.c.ourDevice(d.name)) {
		return false
	}
	for k, v := range n.settings(d) {
		m.events.Sysctls[k], news = v, true
	}
	return news
}

func present[V any](v V, there bool) *V {
	if !there {
		return nil
	}
	return &v
}
