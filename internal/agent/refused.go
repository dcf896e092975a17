package agent

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/peering"
	"github.com/muslin-cni/muslin/internal/plan"
	"github.com/muslin-cni/muslin/internal/rtnl"
)

// refused takes out of an error what no second attempt would mend: that others' routes are in the place of ours, and that the kernel does not take what a
// peer has sent. Each is a problem for the operator, not a failed round: everything else has been made, and these are tried again whenever routes are
// looked at.
func refused(err error, learned *plan.Learned) (problems []string, rest error) {
	if joined, several := err.(interface{ Unwrap() []error }); several {
		var errs []error
		for _, e := range joined.Unwrap() {
			p, left := refused(e, learned)
			problems, errs = append(problems, p...), append(errs, left)
		}
		return problems, errors.Join(errs...)
	}
	var theirs *rtnl.OccupiedError
	var one *kernel.Failure[kernel.RouteKey]
	switch {
	case errors.As(err, &theirs):
		return []string{theirs.Error()}, nil
	case errors.As(err, &one) && (errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENETUNREACH)) && sent(learned, one.Key):
		return []string{fmt.Sprintf("BGP: the kernel does not take a route that peers have sent: %v; it is left out", err)}, nil
	}
	return nil, err
}

// sent tells whether a route is one that peers have sent.
func sent(l *plan.Learned, k kernel.RouteKey) bool {
	return l != nil && slices.ContainsFunc(l.Routes, func(r peering.KernelRoute) bool { return r.Dst == k.Dst && r.Metric == k.Metric })
}
