package policy

import (
	"fmt"
	"strings"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/selector"
)

// want is what a set is to hold: the addresses, or the named ports, of all that a selector matches; or where a service is.
type want struct {
	id       SetID
	kind     SetKind
	sel      selector.Selector
	service  string // namespace/name; "": sel counts
	port     string // of kind Ports, where sel counts
	protocol uint8  // of the port; 0: any
}

func wantAddresses(sel selector.Selector) want {
	w := want{kind: Addresses, sel: sel}
	return w.named()
}

func wantPorts(sel selector.Selector, port string, protocol uint8) want {
	w := want{kind: Ports, sel: sel, port: port, protocol: protocol}
	return w.named()
}

func wantService(kind SetKind, namespace, name string) want {
	w := want{kind: kind, service: serviceKey(namespace, name)}
	return w.named()
}

func serviceKey(namespace, name string) string { return namespace + "/" + name }

func (w want) named() want {
	h := newDigest("set")
	h.number(uint64(w.kind)<<8 | uint64(w.protocol))
	for _, t := range []string{w.service, w.port, w.selectorText()} {
		h.text(t)
	}
	w.id = SetID(h.name())
	return w
}

func (w want) selectorText() string {
	if w.service != "" {
		return ""
	}
	return w.sel.String()
}

// set is the set without its members.
func (w want) set() *Set { return &Set{ID: w.id, Kind: w.kind, Text: w.text()} }

func (w want) text() string {
	switch {
	case w.service != "":
		return "service " + w.service
	case w.port == "":
		return w.sel.String()
	}
	protocol := ""
	if w.protocol != 0 {
		protocol = "/" + strings.ToLower(api.ProtocolNumbered(w.protocol).String())
	}
	return fmt.Sprintf("port %s%s of %s", w.port, protocol, w.sel)
}

// takes reports whether a named port of an endpoint is one of those that are asked for.
func (w want) takes(p NamedPort) bool {
	return p.Name == w.port && (w.protocol == 0 || w.protocol == p.Protocol)
}

// hasPorts reports whether the packets of a protocol have ports that rules may look at.
func hasPorts(protocol uint8) bool {
	return protocol == api.ProtoTCP || protocol == api.ProtoUDP || protocol == api.ProtoSCTP
}
