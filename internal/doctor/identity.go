package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/pkg/api"
)

func identity(v View) []Finding {
	var l list
	if v.Node.Err != nil {
		l.add(Error, "name", "set NODENAME", "the node's name is not known: %v", v.Node.Err)
		return l
	}
	switch {
	case errors.Is(v.Machine.Err, fs.ErrPermission):
		l.unknown("machine", v.Machine.Err)
	case v.Machine.Err != nil:
		l.add(Error, "machine", "systemd-machine-id-setup, or set MUSLIN_MACHINE_ID_FILE", "%v", v.Machine.Err)
	}
	if v.Data.Err != nil {
		l.unknown("", v.Data.Err)
		return l
	}
	name := v.Node.Value
	object := "Node(" + name + ")"
	node := v.Data.Value.node(name)
	if node == nil {
		l.add(Error, object, "start the agent, which writes it; if the name is wrong set NODENAME", "is not in the datastore")
	}
	l.holder(v, node)
	if node == nil {
		return l
	}
	if v.Host.Err != nil {
		l.unknown(object, v.Host.Err)
		return l
	}
	for _, v6 := range []bool{false, true} {
		l.address(v, node, v6)
	}
	return l
}

// holder judges whose the node's name is.
func (l *list) holder(v View, node *api.Node) {
	record, object := v.Data.Value.Identity, api.IdentityKey(v.Node.Value)
	adopt := fmt.Sprintf("set another NODENAME here; or, if that machine is gone, `muslinctl node adopt %s` and restart the agent", v.Node.Value)
	switch {
	case v.Machine.Err != nil:
	case record == nil && node != nil:
		l.add(Warning, object, "start the agent, which takes the name", "nobody holds the node's name: a Node is there that was written by another program")
	case record == nil:
	case record.MachineID != v.Machine.Value && node != nil && record.NodeUID == node.Metadata.UID:
		l.add(Error, object, adopt, "the name belongs to machine %s, and this is machine %s: two machines have one name, or this one was installed anew", record.MachineID, v.Machine.Value)
	case record.MachineID != v.Machine.Value:
		l.add(Warning, object, "start the agent, which takes the name over", "the name belonged to machine %s, whose Node is gone", record.MachineID)
	case node != nil && record.NodeUID != node.Metadata.UID:
		l.add(Warning, object, "restart the agent, which writes it anew", "the Node was deleted and made again since the agent took the name")
	}
}

// address judges one address of the Node.
func (l *list) address(v View, node *api.Node, v6 bool) {
	name := node.Metadata.Name
	object, variable := "Node("+name+")", "IP"
	if v6 {
		variable = "IP6"
	}
	has, ok := node.Address(v6)
	if !ok {
		if !v6 {
			l.add(Warning, object, "set IP=autodetect and restart the agent", "has no IPv4 address: other nodes have no route to its pods")
		}
		return
	}
	for _, e := range v.Data.Value.IPAM.Nodes {
		if other, ok := e.Value.Address(v6); ok && e.Value.Metadata.Name != name && other.Addr() == has.Addr() {
			l.add(Error, object, fmt.Sprintf("correct %s or %[1]s_AUTODETECTION_METHOD on one of the two, or delete that Node if it is gone", variable),
				"has the address %v, which node %s has too", has.Addr(), e.Value.Metadata.Name)
		}
	}
	if _, up := v.Host.Value.Holder(has.Addr()); up {
		return
	}
	what := "no device of this host has it"
	if dev := holderOf(v.Host.Value, has.Addr()); dev != "" {
		what = "the device " + dev + " that has it is down"
	}
	l.add(Error, object, fmt.Sprintf("correct %s or %[1]s_AUTODETECTION_METHOD, or set the device up", variable), "its address is %v, and %s", has.Addr(), what)
}

func holderOf(h kernel.Host, a netip.Addr) string {
	for _, x := range h.Addrs {
		if x.Addr.Addr() == a {
			return x.Dev
		}
	}
	return ""
}
