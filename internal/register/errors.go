package register

import (
	"context"
	"errors"
	"fmt"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
)

// failed is an error as CNI reports it, with what it came from. It matches *attach.Error and whatever its cause matches.
type failed struct {
	cni   attach.Error
	cause error
}

func (f *failed) Error() string { return f.cni.Error() }

func (f *failed) Unwrap() []error { return []error{&f.cni, f.cause} }

// failure turns an error into what the runtime is told: the stage, the subject, what happened, and what to do.
func failure(stage, subject string, err error) error {
	var out attach.Error
	out.Msg = fmt.Sprintf("%s %s: %v", stage, subject, err)
	var told *attach.Error
	var refusal *ipam.Refusal
	var unreadable *store.UnreadableError
	switch {
	case errors.As(err, &told):
		out.Code = told.Code
		out.Msg = fmt.Sprintf("%s %s: %s", stage, subject, told.Msg)
		out.Details = told.Details
	case errors.As(err, &refusal):
		out.Code = codeOf(refusal.Reason)
		out.Msg = fmt.Sprintf("%s %s: %s", stage, subject, refusal.Msg)
		out.Details = refusal.Remedy
	case errors.Is(err, store.ErrUnknown):
		out.Code = attach.CodeDatastore
		out.Details = "it may have been done: repeat the ADD and it returns the same addresses, or call DEL and nothing stays behind"
	case errors.Is(err, store.ErrUnavailable):
		out.Code = attach.CodeDatastore
		out.Details = "nothing was changed; see whether etcd runs and can be reached from this host, then try again"
	case errors.Is(err, store.ErrUnauthorized):
		out.Code = attach.CodeDatastore
		out.Details = "nothing was changed; see the etcd user, password or certificate of this host"
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		out.Code = attach.CodeTryAgain
		out.Details = "nothing was changed; try again"
	case errors.As(err, &unreadable):
		out.Code = attach.CodeDatastore
		out.Details = "nothing was changed; " + correct(unreadable)
	default:
		out.Code = attach.CodeInternal
		out.Details = "nothing was changed"
	}
	return &failed{out, err}
}

// correct is the remedy for a value that cannot be read.
func correct(bad *store.UnreadableError) string {
	return "correct the value of " + bad.Key + ", or delete the key if it is of no use"
}

func codeOf(reason error) uint {
	for _, again := range []error{ipam.ErrNotReady, ipam.ErrNoNode, ipam.ErrBusy} {
		if errors.Is(reason, again) {
			return attach.CodeTryAgain
		}
	}
	switch {
	case errors.Is(reason, ipam.ErrRequest):
		return attach.CodeBadConfig
	case errors.Is(reason, ipam.ErrNotHolder):
		return attach.CodeNotAvailable
	}
	return attach.CodeNoAddress
}

// subject names the pod of a job, or its container.
func (j *job) subject() string {
	if s := j.endpoint.Spec; s.Pod != "" {
		return fmt.Sprintf("pod %s/%s (container %s)", j.endpoint.Metadata.Namespace, s.Pod, s.ContainerID)
	}
	return "container " + j.req.ContainerID
}
