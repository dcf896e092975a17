package rtnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/kernel"
)

// Veth is a veth pair that is to be: one end in the namespace of a Veths, which is up at once, the other in another one.
type Veth struct {
	Name    string
	MAC     kernel.MAC
	Peer    string
	PeerMAC kernel.MAC
	PeerNS  int // file descriptor of the peer's network namespace
	MTU     int // of both, in bytes; 0: the kernel's default
	Queues  int // of each end, each way; 0: the kernel's default
}

// End is an interface as it is found.
type End struct {
	Name  string
	Index int
	Kind  string // veth, bridge …; "" for a physical device
	Peer  int    // index of a veth's other end, in whatever namespace that is
}

// Veths makes, finds and removes veth pairs in one network namespace. One caller at a time.
type Veths struct{ s *sender }

// OpenVeths opens the namespace that the calling thread is in.
func OpenVeths() (*Veths, error) {
	fd, err := openSocket()
	if err != nil {
		return nil, err
	}
	return &Veths{&sender{fd: fd}}, nil
}

// OpenVethsBy takes over a new socket for rtnetlink(7) in whatever namespace it is, also after an error.
func OpenVethsBy(socket int) (*Veths, error) {
	s, err := senderBy(socket)
	if err != nil {
		return nil, err
	}
	return &Veths{s}, nil
}

// Close releases the socket.
func (v *Veths) Close() { v.s.close() }

// Add makes a pair with one message. The error is unix.EEXIST where either name is taken.
func (v *Veths) Add(x Veth) error { return v.s.one(x.append) }

// append adds the message that makes the pair (struct ifinfomsg, rtnetlink(7); VETH_INFO_PEER has another one within).
func (x Veth) append(m *messages) {
	m.begin(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, ifInfo(0, unix.IFF_UP)...)
	m.attr(unix.IFLA_IFNAME, append([]byte(x.Name), 0))
	m.attr(unix.IFLA_ADDRESS, x.MAC[:])
	x.sizes(m)
	kind := m.nest(unix.IFLA_LINKINFO)
	m.attr(unix.IFLA_INFO_KIND, []byte("veth"))
	data := m.nest(unix.IFLA_INFO_DATA)
	peer := m.nest(vethInfoPeer)
	m.raw(ifInfo(0, 0))
	m.attr(unix.IFLA_IFNAME, append([]byte(x.Peer), 0))
	m.attr(unix.IFLA_ADDRESS, x.PeerMAC[:])
	x.sizes(m)
	m.attr(unix.IFLA_NET_NS_FD, binary.NativeEndian.AppendUint32(nil, uint32(x.PeerNS)))
	m.end(peer)
	m.end(data)
	m.end(kind)
}

const vethInfoPeer = 1 // VETH_INFO_PEER (linux/veth.h)

func (x Veth) sizes(m *messages) {
	m.uint32(unix.IFLA_MTU, x.MTU)
	m.uint32(unix.IFLA_NUM_TX_QUEUES, x.Queues)
	m.uint32(unix.IFLA_NUM_RX_QUEUES, x.Queues)
}

// Index returns the index of the interface of that name, which costs much less than what else there is to find. The error is unix.ENODEV where there is none.
func (v *Veths) Index(name string) (int, error) {
	index, err := v.s.number(name, unix.SIOCGIFINDEX)
	return int(index), err
}

// Find returns the interface of that name. The error is unix.ENODEV where there is none.
func (v *Veths) Find(name string) (End, error) {
	if len(name) >= unix.IFNAMSIZ {
		return End{}, fmt.Errorf("look for interface %s: its name is too long", name)
	}
	return v.find(0, func(m *messages) { m.attr(unix.IFLA_IFNAME, append([]byte(name), 0)) })
}

// At returns the interface of that index, likewise.
func (v *Veths) At(index int) (End, error) { return v.find(index, func(*messages) {}) }

func (v *Veths) find(index int, more func(*messages)) (End, error) {
	body, err := v.s.get(func(m *messages) {
		m.begin(unix.RTM_GETLINK, 0, ifInfo(index, 0)...)
		m.uint32(unix.IFLA_EXT_MASK, skipStats)
		more(m)
	})
	if err != nil {
		return End{}, err
	}
	d, _, err := decodeLink(body)
	if err != nil {
		return End{}, err
	}
	end := End{Name: d.name, Index: d.host.Index, Kind: d.host.Kind}
	for a, err := range attributes(body[unix.SizeofIfInfomsg:]) {
		if err == nil && a.Attr.Type == unix.IFLA_LINK {
			end.Peer = int(number(a.Value))
		}
	}
	return end, nil
}

// Remove removes the interface of that index, and the other end of its pair. The error is unix.ENODEV where there is none.
func (v *Veths) Remove(index int) error {
	return v.s.one(func(m *messages) { m.begin(unix.RTM_DELLINK, 0, ifInfo(index, 0)...) })
}

// get sends a request for one object and returns the body of the answer.
func (s *sender) get(encode func(*messages)) ([]byte, error) {
	var m messages
	encode(&m)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seq++
	binary.NativeEndian.PutUint32(m.buf[8:], s.seq)
	if err := sendTo(s.fd, &m); err != nil {
		return nil, err
	}
	buf := make([]byte, 2*unix.Getpagesize())
	for began := time.Now(); time.Since(began) < socketTimeout; {
		n, err := receiveFrom(s.fd, buf, 0)
		if err != nil {
			return nil, err
		}
		const header = unix.SizeofNlMsghdr
		if n < header+4 || binary.NativeEndian.Uint32(buf[8:]) != s.seq {
			continue // left of a request that was given up
		}
		if binary.NativeEndian.Uint16(buf[4:]) != unix.NLMSG_ERROR {
			return buf[header:min(n, max(header, int(binary.NativeEndian.Uint32(buf))))], nil
		}
		if errno := int32(binary.NativeEndian.Uint32(buf[header:])); errno != 0 {
			return nil, unix.Errno(-errno)
		}
		return nil, errors.New("receive from netlink: an answer without an object")
	}
	return nil, fmt.Errorf("receive from netlink: %w", unix.ETIMEDOUT)
}
