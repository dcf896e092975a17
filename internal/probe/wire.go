package probe

import (
	"encoding/binary"
	"net/netip"
)

// A probe is a UDP datagram: "muslin" and the format's version, what it is, a token that the answer repeats, and zeros up to its size.
const (
	magic   = "muslin\x01"
	atKind  = len(magic)
	atToken = atKind + 1
	// HeaderSize is the length of a datagram without what fills it up, and so of every answer, in bytes.
	HeaderSize = atToken + 8
)

const (
	question byte = 1
	answer   byte = 2
)

// Question makes the header of a question.
func Question(token uint64) []byte { return header(question, token) }

// Reply makes the answer to a datagram, which is never longer than that. ok is false where it is no question: there is nothing to be said.
func Reply(datagram []byte) (b []byte, ok bool) {
	token, ok := parse(question, datagram)
	if !ok {
		return nil, false
	}
	return header(answer, token), true
}

// AnswersTo tells whether a datagram answers the question with that token.
func AnswersTo(token uint64, datagram []byte) bool {
	got, ok := parse(answer, datagram)
	return ok && got == token
}

func header(kind byte, token uint64) []byte {
	b := append(make([]byte, 0, HeaderSize), magic...)
	return binary.BigEndian.AppendUint64(append(b, kind), token)
}

func parse(kind byte, b []byte) (token uint64, ok bool) {
	if len(b) < HeaderSize || string(b[:atKind]) != magic || b[atKind] != kind {
		return 0, false
	}
	return binary.BigEndian.Uint64(b[atToken:]), true
}

// Overhead is what IP and UDP put around a datagram to an address, in bytes (RFC 791 without options, RFC 8200, RFC 768).
func Overhead(to netip.Addr) int {
	if to.Is6() {
		return 40 + 8
	}
	return 20 + 8
}
