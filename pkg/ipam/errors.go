package ipam

import (
	"errors"
	"fmt"
)

// The reasons of a Refusal, for callers to branch on.
var (
	ErrNotReady  = errors.New("the datastore is not ready") // as ClusterInformation says
	ErrNoNode    = errors.New("the node is not registered")
	ErrNotHolder = errors.New("the node's name is another machine's")
	ErrRequest   = errors.New("the request cannot be met as it is put")
	ErrNoPool    = errors.New("no pool serves the request")
	ErrNoAddress = errors.New("no address is left")
	ErrTaken     = errors.New("the address is somebody else's")
	ErrBusy      = errors.New("too many others change the same addresses")
)

// Refusal is a request that cannot be met as things stand. Nothing was changed.
type Refusal struct {
	Reason error  // one of the above
	Msg    string // what was found: objects and counts
	Remedy string // what to do about it
}

// Error is the message and the remedy.
func (r *Refusal) Error() string { return r.Msg + ": " + r.Remedy }

// Unwrap returns the reason.
func (r *Refusal) Unwrap() error { return r.Reason }

func refuse(reason error, remedy, format string, args ...any) error {
	return &Refusal{Reason: reason, Msg: fmt.Sprintf(format, args...), Remedy: remedy}
}
