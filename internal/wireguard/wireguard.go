// Package wireguard reads and writes what WireGuard devices have besides a link's: key, port, mark and peers.
//
// A device's private key is made here, given to the kernel, and forgotten. It is nowhere else, neither in a file nor in a log nor in etcd: an
// agent that starts anew finds it in the device. Who wants another key removes the device (`ip link del wireguard.cali`) or gives it one
// (`wg set`): the public half is read from the kernel.
//
// Every kind of object is a table with List and Apply, see internal/kernel.
package wireguard

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/muslin-cni/muslin/internal/fault"
	"github.com/muslin-cni/muslin/internal/kernel"
)

// sysNet is where the kernel shows devices' settings.
const sysNet = "/sys/class/net"

// Conn reads and writes the WireGuard devices of one network namespace. It may be used by any goroutine, also concurrently.
type Conn struct {
	find func(context.Context) ([]kernel.Dev, error)

	mu     sync.Mutex
	client *wgctrl.Client // nil until there was a device: before that the kernel may not have loaded what it talks to
	public map[kernel.Dev]kernel.PublicKey
}

// New returns a connection. find lists the WireGuard devices that are ours. The namespace is that of the threads that call the methods, which have
// to be in the same.
func New(find func(context.Context) ([]kernel.Dev, error)) *Conn {
	return &Conn{find: find, public: map[kernel.Dev]kernel.PublicKey{}}
}

// Close releases the socket. Nothing else of the connection may be used afterwards.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.client == nil {
		return nil
	}
	return c.client.Close()
}

// Public is the public key of a device, as it was last seen or made. ok is false if none was.
func (c *Conn) Public(d kernel.Dev) (key kernel.PublicKey, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key, ok = c.public[d]
	return key, ok
}

// device reads a device. It is nil if there is none of that name. The private key is left out; keyed tells whether there is one.
func (c *Conn) device(d kernel.Dev) (found *wgtypes.Device, keyed bool, err error) {
	client, err := c.open()
	if err != nil {
		return nil, false, err
	}
	found, err = client.Device(d.Name)
	if errors.Is(err, os.ErrNotExist) {
		delete(c.public, d)
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("read WireGuard device %v: %w", d, err)
	}
	keyed = found.PrivateKey != wgtypes.Key{}
	found.PrivateKey = wgtypes.Key{}
	delete(c.public, d)
	if keyed {
		c.public[d] = kernel.PublicKey(found.PublicKey)
	}
	return found, keyed, nil
}

// open returns the client. It is called only once there is a device, for then the kernel has its part.
func (c *Conn) open() (*wgctrl.Client, error) {
	if c.client != nil {
		return c.client, nil
	}
	client, err := wgctrl.New()
	if err != nil {
		return nil, fmt.Errorf("open WireGuard's netlink socket: %w", err)
	}
	c.client = client
	return client, nil
}

// each calls f for every device of ours that is there.
func (c *Conn) each(ctx context.Context, f func(d kernel.Dev, found *wgtypes.Device, keyed bool)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	devices, err := c.find(ctx)
	if err != nil {
		return err
	}
	for _, d := range devices {
		found, keyed, err := c.device(d)
		if err != nil {
			return err
		}
		if found != nil {
			f(d, found, keyed)
		}
	}
	return nil
}

// Devices is the table of what our devices have. Their mark is the link's, see rtnl.Links.
type Devices struct{ c *Conn }

// Devices returns the table of our devices.
func (c *Conn) Devices() Devices { return Devices{c} }

// List returns what our devices have.
func (t Devices) List(ctx context.Context) (map[kernel.Dev]kernel.WireGuard, error) {
	out := map[kernel.Dev]kernel.WireGuard{}
	err := t.c.each(ctx, func(d kernel.Dev, found *wgtypes.Device, keyed bool) {
		threaded, _ := readThreaded(d.Name) // a kernel that has no such setting does not do it
		out[d] = kernel.WireGuard{Port: uint16(found.ListenPort), Mark: uint32(found.FirewallMark), Keyed: keyed, Threaded: threaded}
	})
	return out, err
}

// Apply sets up devices. One that has no private key gets one. What a device has goes with it, so there is nothing to remove.
func (t Devices) Apply(ctx context.Context, changes []kernel.Change[kernel.Dev, kernel.WireGuard]) error {
	return kernel.Each(changes, func(x kernel.Change[kernel.Dev, kernel.WireGuard]) error {
		if err := ctx.Err(); err != nil || x.New == nil {
			return err
		}
		if err := t.c.setUp(x.Key, *x.New); err != nil {
			return fmt.Errorf("set up WireGuard device %v: %w", x.Key, err)
		}
		return nil
	})
}

func (c *Conn) setUp(d kernel.Dev, want kernel.WireGuard) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	found, keyed, err := c.device(d)
	if err != nil {
		return err
	}
	if found == nil {
		return errors.New("it is not there")
	}
	port, mark := int(want.Port), int(want.Mark)
	cfg := wgtypes.Config{ListenPort: &port, FirewallMark: &mark}
	if want.Keyed && !keyed {
		key, err := wgtypes.GeneratePrivateKey()
		if err != nil {
			return fmt.Errorf("make its key: %w", err)
		}
		cfg.PrivateKey = &key
	}
	if err := c.client.ConfigureDevice(d.Name, cfg); err != nil {
		return fmt.Errorf("UDP port %d, mark %#x: %w", want.Port, want.Mark, err)
	}
	if cfg.PrivateKey != nil {
		c.public[d] = kernel.PublicKey(cfg.PrivateKey.PublicKey())
	}
	return writeThreaded(d.Name, want.Threaded)
}

func threadedFile(dev string) string { return filepath.Join(sysNet, dev, "threaded") }

func readThreaded(dev string) (bool, error) {
	text, err := os.ReadFile(threadedFile(dev))
	return strings.TrimSpace(string(text)) == "1", err
}

// writeThreaded sets a device's threading where it is not so. A kernel that does not know of it does not do it.
func writeThreaded(dev string, want bool) error {
	have, err := readThreaded(dev)
	if have == want && (err == nil || !want) {
		return nil
	}
	n := 0
	if want {
		n = 1
	}
	if err := os.WriteFile(threadedFile(dev), []byte(strconv.Itoa(n)), 0); err != nil {
		return fmt.Errorf("switch threading (wireguardThreadingEnabled): %w", err)
	}
	return nil
}

// Peers is the table of our devices' peers. All peers of a device of ours are ours.
type Peers struct{ c *Conn }

// Peers returns the table of our devices' peers.
func (c *Conn) Peers() Peers { return Peers{c} }

// List returns the peers of our devices.
func (t Peers) List(ctx context.Context) (map[kernel.PeerKey]kernel.Peer, error) {
	out := map[kernel.PeerKey]kernel.Peer{}
	err := t.c.each(ctx, func(d kernel.Dev, found *wgtypes.Device, _ bool) {
		for _, p := range found.Peers {
			out[kernel.PeerKey{Dev: d, Key: kernel.PublicKey(p.PublicKey)}] = peerOf(p)
		}
	})
	return out, err
}

// Status is how a device fares.
type Status struct {
	Dev    kernel.Dev
	Public kernel.PublicKey // zero if it has no key yet
	Port   uint16           // UDP, on which it receives
	Peers  []PeerStatus     // sorted by key
}

// PeerStatus is how it fares with a peer.
type PeerStatus struct {
	Key            kernel.PublicKey
	Endpoint       netip.AddrPort // where it was heard from last, or is sent to; zero if nowhere
	Received, Sent int64          // bytes
	Handshake      time.Time      // the latest; zero if there was none
}

// Status says how our devices fare, sorted by name.
func (c *Conn) Status(ctx context.Context) ([]Status, error) {
	var out []Status
	err := c.each(ctx, func(d kernel.Dev, found *wgtypes.Device, _ bool) {
		s := Status{Dev: d, Public: c.public[d], Port: uint16(found.ListenPort)}
		for _, p := range found.Peers {
			s.Peers = append(s.Peers, PeerStatus{
				Key: kernel.PublicKey(p.PublicKey), Endpoint: peerOf(p).Endpoint, Received: p.ReceiveBytes, Sent: p.TransmitBytes, Handshake: p.LastHandshakeTime,
			})
		}
		slices.SortFunc(s.Peers, func(a, b PeerStatus) int { return bytes.Compare(a.Key[:], b.Key[:]) })
		out = append(out, s)
	})
	slices.SortFunc(out, func(a, b Status) int { return cmp.Compare(a.Dev.Name, b.Dev.Name) })
	return out, err
}

func peerOf(p wgtypes.Peer) kernel.Peer {
	out := kernel.Peer{KeepAlive: p.PersistentKeepaliveInterval}
	if p.Endpoint != nil {
		at := p.Endpoint.AddrPort()
		out.Endpoint = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	}
	allowed := make([]netip.Prefix, 0, len(p.AllowedIPs))
	for _, n := range p.AllowedIPs {
		a, _ := netip.AddrFromSlice(n.IP)
		bits, _ := n.Mask.Size()
		allowed = append(allowed, netip.PrefixFrom(a.Unmap(), bits))
	}
	out.Allowed = kernel.JoinPrefixes(allowed)
	return out
}

// Apply adds, changes and removes peers. What two peers claim is the one's that was written last.
func (t Peers) Apply(ctx context.Context, changes []kernel.Change[kernel.PeerKey, kernel.Peer]) error {
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	return kernel.Each(changes, func(x kernel.Change[kernel.PeerKey, kernel.Peer]) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		client, err := t.c.open()
		if err != nil {
			return err
		}
		peer, err := configOf(x.Key.Key, x.New)
		if err == nil {
			err = client.ConfigureDevice(x.Key.Dev.Name, wgtypes.Config{Peers: []wgtypes.PeerConfig{peer}})
		}
		if x.New == nil && errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("change peer %v of WireGuard device %v: %w", x.Key.Key, x.Key.Dev, err)
		}
		return fault.At(fault.ApplyPeerPut)
	})
}

// configOf is what the kernel is told of a peer; nil is that it is none any more.
func configOf(key kernel.PublicKey, p *kernel.Peer) (wgtypes.PeerConfig, error) {
	out := wgtypes.PeerConfig{PublicKey: wgtypes.Key(key)}
	if p == nil {
		out.Remove, out.UpdateOnly = true, true
		return out, nil
	}
	out.ReplaceAllowedIPs = true
	out.Endpoint = net.UDPAddrFromAddrPort(p.Endpoint)
	out.PersistentKeepaliveInterval = &p.KeepAlive
	for _, text := range strings.FieldsFunc(p.Allowed, func(r rune) bool { return r == ',' }) {
		a, err := netip.ParsePrefix(text)
		if err != nil {
			return out, err
		}
		out.AllowedIPs = append(out.AllowedIPs, net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen())})
	}
	return out, nil
}
