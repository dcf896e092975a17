package cni

import (
	"errors"

	"github.com/muslin-cni/muslin/internal/attach"
)

// failure gives an error the code that CNI reports and a remedy. An error that has a code keeps it.
func failure(code uint, err error, remedy string) error {
	var told *attach.Error
	if errors.As(err, &told) {
		return err
	}
	return &attach.Error{Code: code, Msg: err.Error(), Details: remedy}
}

// unclean is the error of an ADD that could not be undone.
func unclean(cause, undo error) error {
	out := attach.Error{Code: attach.CodeInternal, Msg: cause.Error()}
	var told *attach.Error
	if errors.As(cause, &told) {
		out = *told
	}
	if out.Details != "" {
		out.Details += "; "
	}
	out.Details += "moreover, this ADD could not be undone, DEL will do it: " + undo.Error()
	return &out
}
