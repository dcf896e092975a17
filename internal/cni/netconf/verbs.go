package netconf

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/members"
)

// PrevResult reads the result that CHECK is to hold the container to (CNI specification 1.1, "CHECK"). One that is missing is an
// error with code 7. Errors are *attach.Error.
func PrevResult(stdin []byte) (*types100.Result, error) {
	out, err := Chained(stdin)
	if out == nil && err == nil {
		return nil, &attach.Error{
			Code: attach.CodeBadConfig, Msg: `network configuration: key "prevResult" is missing`,
			Details: "CHECK needs the result of the container's ADD: the runtime passes it on",
		}
	}
	return out, err
}

// chained is what a configuration says of plugins that were called before.
type chained struct {
	CNIVersion string          `json:"cniVersion"`
	PrevResult json.RawMessage `json:"prevResult"`
}

// Members lists the part's keys.
func (c *chained) Members() []members.Member {
	return []members.Member{{Name: "cniVersion", Value: &c.CNIVersion, Empty: true}, {Name: "prevResult", Value: &c.PrevResult, Empty: true}}
}

// Chained reads the result of the plugins that the runtime called before ours; nil if there were none. Errors are *attach.Error.
func Chained(stdin []byte) (*types100.Result, error) {
	var conf chained
	if err := decode(stdin, &conf); err != nil {
		return nil, err
	}
	if len(conf.PrevResult) == 0 || string(conf.PrevResult) == "null" {
		return nil, nil
	}
	out, err := ReadResult(conf.CNIVersion, conf.PrevResult)
	if err != nil {
		return nil, &attach.Error{
			Code: attach.CodeDecode, Msg: `decode network configuration: key "prevResult": ` + err.Error(),
			Details: "it is the runtime's copy of the result of the plugins before this one, or of the container's ADD",
		}
	}
	return out, nil
}

// ReadResult reads a result of a CNI version, "" for the one that it names itself. No entry of its lists is nil.
func ReadResult(version string, raw []byte) (*types100.Result, error) {
	var lists struct{ Interfaces, IPs, Routes []*json.RawMessage }
	if json.Unmarshal(raw, &lists) == nil && slices.Contains(slices.Concat(lists.Interfaces, lists.IPs, lists.Routes), nil) {
		return nil, errors.New("read result: an interface, address or route is null") // the CNI library does not look
	}
	if version == "" {
		result, err := create.CreateFromBytes(raw)
		if err != nil {
			return nil, fmt.Errorf("read result: %w", err)
		}
		return types100.NewResultFromResult(result)
	}
	result, err := create.Create(version, raw)
	if err != nil {
		return nil, fmt.Errorf("read result: %w", err)
	}
	return types100.NewResultFromResult(result)
}

// ValidAttachments reads which attachments of the network live (CNI specification 1.1, "GC"). An empty list is one; where the key is
// missing the error has code 7: a caller who says nothing does not mean that nothing lives. Errors are *attach.Error.
func ValidAttachments(stdin []byte) ([]attach.Attachment, error) {
	var conf map[string]json.RawMessage
	if err := decode(stdin, &conf); err != nil {
		return nil, err
	}
	raw, ok := conf[validKey]
	if !ok {
		return nil, &attach.Error{
			Code: attach.CodeBadConfig, Msg: "network configuration: key \"" + validKey + "\" is missing",
			Details: "GC needs the list of the attachments that live, even if it is empty: the runtime passes it on",
		}
	}
	var listed []types.GCAttachment
	if err := json.Unmarshal(raw, &listed); err != nil {
		return nil, &attach.Error{Code: attach.CodeDecode, Msg: "decode network configuration: key \"" + validKey + "\": " + err.Error()}
	}
	out := make([]attach.Attachment, len(listed))
	for i, a := range listed {
		if a.ContainerID == "" {
			return nil, badKey(validKey, "holds an attachment without a containerID")
		}
		out[i] = attach.Attachment{ContainerID: a.ContainerID, IfName: a.IfName}
	}
	return out, nil
}

const validKey = "cni.dev/valid-attachments"
