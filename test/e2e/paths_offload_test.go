package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/lab"
)

// breakOffload puts, until the test ends, a device between a node and its bridge whose driver does not know tunnels: what the kernel leaves to it, it does for
// every packet but for those in VXLAN, where it leaves the inner checksum as it found it. That is the fault of real drivers.
//
// Of a frame on its way the kernel tells, in a header in front of it (packet(7), PACKET_VNET_HDR), whether and where there is a checksum to be filled in. It is handed
// on with the frame, and so is the duty, except where it is about what is in a tunnel.
func breakOffload(t *testing.T, l *lab.Lab, node string) {
	t.Helper()
	for _, cmd := range []string{
		"ip link set " + node + " nomaster",
		"ip link add wire type veth peer name wire-br",
		"ip link set wire-br master br-1",
		"ip link set wire-br up",
		"ip link set wire up",
		"sysctl -qw net.ipv4.conf." + node + ".arp_ignore=1 net.ipv4.conf.wire.arp_ignore=1", // these ends answer for nobody
	} {
		run(t, l, "fabric", "sh", "-ec", cmd)
	}
	near, far := openFrames(t, l, node), openFrames(t, l, "wire")
	var copying sync.WaitGroup
	copying.Go(func() { copyFrames(near, far, forgetTunnels) })
	copying.Go(func() { copyFrames(far, near, func([]byte) {}) })
	t.Cleanup(func() {
		for _, f := range []*os.File{near, far} {
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		}
		copying.Wait()
	})
}

// openFrames opens a device of the fabric for whole frames, with the kernel's header.
func openFrames(t *testing.T, l *lab.Lab, dev string) *os.File {
	t.Helper()
	fd := -1
	err := l.Within("fabric", func() (err error) {
		link, err := net.InterfaceByName(dev)
		if err != nil {
			return err
		}
		all := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL}) // in network order
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
			unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index}),
		)
	})
	if err != nil {
		t.Fatal(fmt.Errorf("open %s: %w", dev, err))
	}
	return os.NewFile(uintptr(fd), dev)
}

// copyFrames copies frames until a file is closed, with a change to each.
func copyFrames(from, to *os.File, change func(frame []byte)) {
	buf := make([]byte, 1<<17)
	for {
		n, err := from.Read(buf)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil {
			continue // of one frame
		}
		change(buf[:n])
		_, _ = to.Write(buf[:n]) // one that is lost is one of many
	}
}

// forgetTunnels takes the duty off a frame to fill in a checksum, if that is behind a VXLAN header. The kernel's header is struct virtio_net_hdr.
func forgetTunnels(frame []byte) {
	const header, needsChecksum = 10, 1
	udp := header + 14 + 20
	if len(frame) > udp && frame[header+14]>>4 == 6 {
		udp += 20
	}
	if len(frame) < udp+8 {
		return
	}
	start := int(binary.NativeEndian.Uint16(frame[6:]))
	if binary.BigEndian.Uint16(frame[udp+2:]) == 4789 && start > udp-header {
		frame[0] &^= needsChecksum
	}
}
