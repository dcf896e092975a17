package netconf

import (
	"errors"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/muslin-cni/muslin/internal/attach"
)

// AsCNI turns an error into the runtime's form (CNI specification 1.1, "Error"): an *attach.Error keeps its code and remedy, any other is
// internal. The result is nil or a *types.Error.
func AsCNI(err error) error {
	if err == nil {
		return nil
	}
	var told *attach.Error
	if errors.As(err, &told) {
		return types.NewError(told.Code, told.Msg, told.Details)
	}
	return types.NewError(attach.CodeInternal, err.Error(), "")
}
