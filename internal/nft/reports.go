package nft

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/nftable"
)

// Of linux/netfilter/nfnetlink_log.h, which the packages at hand do not have.
const (
	logPacket = 0 // NFULNL_MSG_PACKET
	logConfig = 1 // NFULNL_MSG_CONFIG

	logCmd     = 1 // NFULA_CFG_CMD
	logMode    = 2 // NFULA_CFG_MODE
	logTimeout = 4 // NFULA_CFG_TIMEOUT

	logBind       = 1 // NFULNL_CFG_CMD_BIND
	logCopyPacket = 2 // NFULNL_COPY_PACKET

	logHeader  = 1  // NFULA_PACKET_HDR
	logIn      = 4  // NFULA_IFINDEX_INDEV
	logOut     = 5  // NFULA_IFINDEX_OUTDEV
	logPayload = 9  // NFULA_PAYLOAD
	logPrefix  = 10 // NFULA_PREFIX

	// logDelay is how long the kernel collects reports before it sends them, in hundredths of a second.
	logDelay = 10
	// logLength is the most of a packet that is reported, in bytes. Rules ask for less.
	logLength = 1024
)

// ErrMissed says that reports were lost, because more came than were read.
var ErrMissed = errors.New("reports of packets were lost")

// Report is a packet of which a rule has told.
type Report struct {
	Prefix string       // that the rule puts in front
	Hook   nftable.Hook // where the rule stands; "" where nobody knows
	// In and Out are the indices of the devices by which the packet came and would leave, 0 for none.
	In, Out int
	Packet  []byte // its beginning, from the header of IP on
}

// Reports receives what rules of one network namespace report to a group. The kernel gives a group to one reader at a time, and closing the reader
// frees it. One caller at a time.
type Reports struct {
	s       *socket
	pending []Report
	buf     []byte
}

// OpenReports begins to receive the reports to a group, in the namespace that the calling thread is in. It needs the right to administer
// the network. A group that has a reader already is a *TakenError.
func OpenReports(group uint16) (*Reports, error) {
	s, err := openSocket(0)
	if err != nil {
		return nil, err
	}
	r := &Reports{s: s, buf: make([]byte, readSize)}
	if err := r.bind(group); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return r, nil
}

// Close gives the group back.
func (r *Reports) Close() error { return r.s.Close() }

// bind asks for the group, and then for what of each packet is to be told.
func (r *Reports) bind(group uint16) error {
	var b buffer
	config := func(attrs func()) {
		b.raw(unix.NFNL_SUBSYS_ULOG<<8|logConfig, unix.NLM_F_ACK, unix.AF_UNSPEC, group, attrs)
	}
	config(func() { b.attr(logCmd, []byte{logBind}) })
	config(func() {
		b.attr(logMode, append(binary.BigEndian.AppendUint32(nil, logLength), logCopyPacket, 0))
		b.attr32(logTimeout, logDelay)
	})
	ctx, cancel := context.WithTimeout(context.Background(), answerTimeout)
	defer cancel()
	stop := r.s.until(ctx)
	defer stop()
	if err := r.s.send(b.b); err != nil {
		return fmt.Errorf("ask for reports to group %d: %w", group, err)
	}
	for answered := uint32(0); answered < b.seq; {
		n, err := r.s.receive(r.buf)
		if err != nil {
			return fmt.Errorf("ask for reports to group %d: %w", group, err)
		}
		_, err = each(r.buf[:n], func(h header, body []byte) (bool, error) {
			if h.typ != unix.NLMSG_ERROR {
				return false, r.take(h, body) // the first reports may come before the last answer
			}
			answered = h.seq
			return false, errorOf(h, body)
		})
		if err != nil {
			return refused(group, err)
		}
	}
	return nil
}

// refused explains why a group is not to be had. The kernel says EPERM both for want of rights and where somebody else has the group.
func refused(group uint16, err error) error {
	if reader, taken := ReaderOf(group); taken && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.EBUSY)) {
		return &TakenError{Group: group, Reader: reader}
	}
	return fmt.Errorf("ask for reports to group %d: %w", group, err)
}

// ReaderOf looks up who reads a group in the namespace of this thread: the second field of a line is the netlink address of the reader.
func ReaderOf(group uint16) (reader int, taken bool) {
	f, err := os.Open("/proc/thread-self/net/netfilter/nfnetlink_log")
	if err != nil {
		return 0, false
	}
	defer f.Close()
	for scan := bufio.NewScanner(f); scan.Scan(); {
		fields := strings.Fields(scan.Text())
		if len(fields) > 1 && fields[0] == strconv.Itoa(int(group)) {
			reader, _ = strconv.Atoi(fields[1])
			return reader, true
		}
	}
	return 0, false
}

// TakenError says that somebody else reads a group.
type TakenError struct {
	Group  uint16
	Reader int // his netlink address: as a rule the number of his process
}

func (e *TakenError) Error() string {
	return fmt.Sprintf("group %d of reports has a reader already, which is most likely process %d, and the kernel gives it to one at a time", e.Group, e.Reader)
}

// Next waits for the next report until ctx is done. After ErrMissed it may be called again.
func (r *Reports) Next(ctx context.Context) (Report, error) {
	stop := r.s.until(ctx)
	defer stop()
	for len(r.pending) == 0 {
		n, err := r.s.receive(r.buf)
		switch {
		case ctx.Err() != nil:
			return Report{}, fmt.Errorf("await reports of packets: %w", ctx.Err())
		case errors.Is(err, unix.ENOBUFS):
			return Report{}, ErrMissed
		case err != nil:
			return Report{}, fmt.Errorf("await reports of packets: %w", err)
		}
		if _, err := each(r.buf[:n], func(h header, body []byte) (bool, error) { return false, r.take(h, body) }); err != nil {
			return Report{}, fmt.Errorf("read reports of packets: %w", err)
		}
	}
	out := r.pending[0]
	r.pending = r.pending[1:]
	return out, nil
}

// hookOf is the hook with a number of the kernel's, "" if there is none.
func hookOf(number uint8) nftable.Hook {
	for hook, n := range hooks {
		if n == uint32(number) {
			return hook
		}
	}
	return ""
}

// take reads one message. What is no report is ignored.
func (r *Reports) take(h header, body []byte) error {
	if h.typ != unix.NFNL_SUBSYS_ULOG<<8|logPacket {
		return nil
	}
	if len(body) < nfgenLen {
		return errTruncated
	}
	var out Report
	for a := range attrs(body[nfgenLen:]) {
		switch a.typ {
		case logHeader:
			if len(a.value) > 2 {
				out.Hook = hookOf(a.value[2])
			}
		case logIn:
			out.In = int(a.u32())
		case logOut:
			out.Out = int(a.u32())
		case logPayload:
			out.Packet = append([]byte(nil), a.value...)
		case logPrefix:
			out.Prefix = a.string()
		}
	}
	r.pending = append(r.pending, out)
	return nil
}
