package rtnl

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// From linux/ethtool.h: whether a device fills in the checksums of what it sends, of every protocol at once.
const (
	ethtoolGetTxChecksum = 0x16
	ethtoolSetTxChecksum = 0x17
)

// ethtoolValue is struct ethtool_value.
type ethtoolValue struct{ cmd, data uint32 }

// ethtoolRequest is struct ifreq with a pointer in it.
type ethtoolRequest struct {
	name  [unix.IFNAMSIZ]byte
	value unsafe.Pointer
	_     [24 - unsafe.Sizeof(uintptr(0))]byte
}

// TxChecksum tells whether the kernel leaves checksums of what it sends to a device.
func TxChecksum(dev string) (on bool, err error) {
	v, err := ethtool(dev, ethtoolValue{cmd: ethtoolGetTxChecksum})
	return v.data != 0, err
}

// TurnOffTxChecksum has the kernel compute the checksums of what it sends by a device. It stays so as long as the device exists. What
// `ethtool -K DEVICE tx off` does; on a tunnel's device that is tx-checksum-ip-generic alone.
func TurnOffTxChecksum(dev string) error {
	_, err := ethtool(dev, ethtoolValue{cmd: ethtoolSetTxChecksum})
	return err
}

// ethtool asks one thing of a device in the calling thread's network namespace.
func ethtool(dev string, v ethtoolValue) (ethtoolValue, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return v, fmt.Errorf("open a socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }() // nothing was written to it
	held := new(ethtoolValue)
	*held = v
	req := ethtoolRequest{value: unsafe.Pointer(held)}
	if len(dev) >= len(req.name) {
		return v, fmt.Errorf("ask %s for its checksums: the name is too long", dev)
	}
	copy(req.name[:], dev)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
	runtime.KeepAlive(held)
	if errno != 0 {
		return v, fmt.Errorf("ask %s for its checksums: %w", dev, errno)
	}
	return *held, nil
}
