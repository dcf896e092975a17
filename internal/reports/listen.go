package reports

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"github.com/muslin-cni/muslin/internal/nft"
)

// Listen begins to listen to what the agent behind the socket at path hands on. Where none runs it reads the group itself, in the
// namespace of the calling thread. The error is a *nft.TakenError if somebody else reads the group.
func Listen(ctx context.Context, path string, group uint16) (Source, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nft.OpenReports(group)
	}
	if err != nil {
		return nil, fmt.Errorf("ask the agent for reports of packets: %w", err)
	}
	return &heard{c: c, in: json.NewDecoder(bufio.NewReader(c))}, nil
}

// ErrAgentGone says that the agent that handed reports on has ended. Listen may be called again.
var ErrAgentGone = errors.New("the agent has ended, and hands on no reports of packets")

// heard is what the agent hands on.
type heard struct {
	c  net.Conn
	in *json.Decoder
}

// Close ends the listening.
func (h *heard) Close() error { return h.c.Close() }

// Next waits for the next report until ctx is done. After nft.ErrMissed it may be called again.
func (h *heard) Next(ctx context.Context) (nft.Report, error) {
	stop := context.AfterFunc(ctx, func() { _ = h.c.Close() })
	defer stop()
	var m message
	err := h.in.Decode(&m)
	switch {
	case ctx.Err() != nil:
		return nft.Report{}, fmt.Errorf("await reports of packets: %w", ctx.Err())
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return nft.Report{}, ErrAgentGone
	case err != nil:
		return nft.Report{}, fmt.Errorf("await reports of packets: %w", err)
	case m.Error != "":
		return nft.Report{}, errors.New(m.Error)
	case m.Missed || m.Report == nil:
		return nft.Report{}, nft.ErrMissed
	}
	return *m.Report, nil
}
