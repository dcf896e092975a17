package ipam

import (
	"cmp"
	"fmt"
	"iter"
	"net/netip"
	"strings"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
	"github.com/muslin-cni/muslin/pkg/store"
)

// Allocated yields the held addresses of a block in order, each with its owner. Those that Windows nodes reserve for themselves
// are left out.
func Allocated(b *api.Block) iter.Seq2[netip.Addr, api.Attributes] {
	return func(yield func(netip.Addr, api.Attributes) bool) {
		for n := range block.Size(b.CIDR) {
			addr := block.Addr(b.CIDR, n)
			by, held := block.OwnerOf(b, addr)
			if !held || by.HandleID != nil && block.Reserved(*by.HandleID) {
				continue
			}
			if !yield(addr, by) {
				return
			}
		}
	}
}

// Holding is an address and who has it.
type Holding struct {
	Addr   netip.Addr
	Handle string            // "": nobody knows
	Attrs  map[string]string // api.AttrPod and the like; do not modify
}

// Holdings lists what Allocated yields.
func Holdings(b *api.Block) []Holding {
	var out []Holding
	for a, by := range Allocated(b) {
		h := Holding{Addr: a, Attrs: by.Secondary}
		if by.HandleID != nil {
			h.Handle = block.Handle(*by.HandleID)
		}
		out = append(out, h)
	}
	return out
}

// handleID is the ID of a stored handle.
func handleID(e store.Entry[api.Handle]) string { return strings.TrimPrefix(e.Key, api.HandlesRoot) }

// ownerText names an owner for a message.
func ownerText(by api.Attributes) string {
	s := by.Secondary
	var who string
	switch {
	case s[api.AttrType] != "":
		who = s[api.AttrType]
	case s[api.AttrPod] != "":
		who = fmt.Sprintf("pod %s/%s", s[api.AttrNamespace], s[api.AttrPod])
	case by.HandleID != nil:
		who = "handle " + block.Handle(*by.HandleID)
	default:
		who = "an owner without a name"
	}
	if s[api.AttrNode] != "" {
		who += " on node " + s[api.AttrNode]
	}
	return who
}

// ownerOf is a block's affinity, as Calico's old versions wrote it too; "" for nobody.
func ownerOf(b *api.Block) string {
	switch {
	case b.Affinity != nil:
		return *b.Affinity
	case b.HostAffinity != nil:
		return *b.HostAffinity
	}
	return ""
}

// ownerName is whose the block is, for a message.
func ownerName(b *api.Block) string {
	if host, ok := b.Host(); ok {
		return "node " + host
	}
	return cmp.Or(ownerOf(b), "nobody")
}
