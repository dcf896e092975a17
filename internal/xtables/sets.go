package xtables

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/fault"
	"github.com/muslin-cni/muslin/internal/kernel"
)

const (
	setType     = "hash:net"
	setRevision = 1       // of the type; nothing that later ones add is used
	maxElements = 1 << 20 // as in Calico's sets
	tempPrefix  = "cali4t"

	socketTimeout = 10 * time.Second // for one answer of the kernel, which takes microseconds
)

// Sets is the table of our ipsets of both families. Their mark is the name's prefix, which also says which family a set is of; the
// temporary sets of Calico's agent count as ours. It may be used by any goroutine. The requests are encoded here, with the library's primitives: its own ipset functions write every
// attribute that is newer than them to the standard logger.
type Sets struct {
	sockets map[int]*nl.SocketHandle
}

// OpenSets opens the ipsets of the namespace that the calling thread is in.
func OpenSets() (*Sets, error) {
	s, err := nl.Subscribe(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open netfilter socket: %w", err)
	}
	limit := unix.NsecToTimeval(socketTimeout.Nanoseconds())
	if err := errors.Join(s.SetSendTimeout(&limit), s.SetReceiveTimeout(&limit)); err != nil {
		s.Close()
		return nil, fmt.Errorf("set netfilter timeout: %w", err)
	}
	return &Sets{sockets: map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: {Socket: s}}}, nil
}

// Close releases the socket.
func (s *Sets) Close() { s.sockets[unix.NETLINK_NETFILTER].Close() }

// List returns our sets. One of another type than ours is listed with its type as content, so that it equals no wanted one.
func (s *Sets) List(ctx context.Context) (map[kernel.SetKey]kernel.Set, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("list ipsets: %w", err)
	}
	found, err := s.dump()
	if err != nil {
		return nil, fmt.Errorf("list ipsets: %w", err)
	}
	out := map[kernel.SetKey]kernel.Set{}
	for name, f := range found {
		k := kernel.SetKey(name)
		switch {
		case !ourSet(name):
		case f.kind != setType || f.family != familyOf(k):
			out[k] = kernel.Set{Members: "type " + f.kind}
		default:
			out[k] = kernel.Set{Members: join(f.members)}
		}
	}
	return out, nil
}

func ourSet(name string) bool {
	return strings.HasPrefix(name, kernel.SetPrefix) || strings.HasPrefix(name, kernel.Set6Prefix) || strings.HasPrefix(name, tempPrefix)
}

// familyOf is the family that a set is made with.
func familyOf(k kernel.SetKey) uint8 {
	if k.Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// Same tells whether two contents are the same prefixes, however they are sorted.
func (s *Sets) Same(_ kernel.SetKey, have, want kernel.Set) bool {
	if have == want {
		return true
	}
	a, errA := split(have)
	b, errB := split(want)
	return errA == nil && errB == nil && maps.Equal(a, b)
}

// Apply makes, changes and destroys sets. A set is changed element by element, additions first, so that it never lacks what stays
// in it. A set that a rule still refers to cannot be destroyed: that is an error which goes away with the rule.
func (s *Sets) Apply(ctx context.Context, changes []kernel.Change[kernel.SetKey, kernel.Set]) error {
	return kernel.Each(changes, func(c kernel.Change[kernel.SetKey, kernel.Set]) error {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("change ipset %s: %w", c.Key, err)
		}
		if c.New == nil {
			return s.destroy(c.Key)
		}
		return s.put(c.Key, *c.New)
	})
}

func (s *Sets) put(name kernel.SetKey, set kernel.Set) error {
	want, err := split(set)
	if err != nil {
		return fmt.Errorf("fill ipset %s: %w", name, err)
	}
	for p := range want {
		if p.Addr().Is6() != name.Is6() {
			return fmt.Errorf("fill ipset %s: %v is of the other family", name, p)
		}
	}
	have, err := s.open(name)
	if err != nil {
		return err
	}
	for _, p := range sorted(want) {
		if have[p] {
			continue
		}
		if err := s.element(nl.IPSET_CMD_ADD, name, p); err != nil {
			return fmt.Errorf("add %v to ipset %s: %w", p, name, err)
		}
		if err := fault.At(fault.ApplyMemberPut); err != nil {
			return err
		}
	}
	for _, p := range sorted(have) {
		if want[p] {
			continue
		}
		if err := s.element(nl.IPSET_CMD_DEL, name, p); err != nil {
			return fmt.Errorf("remove %v from ipset %s: %w", p, name, err)
		}
		if err := fault.At(fault.ApplyMemberGone); err != nil {
			return err
		}
	}
	return nil
}

// open makes sure that a set of our type exists, and returns what is in it.
func (s *Sets) open(name kernel.SetKey) (map[netip.Prefix]bool, error) {
	all, err := s.dump(nameAttr(name))
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("read ipset %s: %w", name, err)
	}
	found, exists := all[string(name)]
	if exists && found.kind == setType && found.family == familyOf(name) {
		return found.members, nil
	}
	if exists {
		if err := s.destroy(name); err != nil {
			return nil, fmt.Errorf("replace ipset of type %s: %w", found.kind, err)
		}
	}
	if err := s.create(name); err != nil {
		return nil, err
	}
	return nil, fault.At(fault.ApplySetMade)
}

func nameAttr(name kernel.SetKey) *nl.RtAttr {
	return nl.NewRtAttr(nl.IPSET_ATTR_SETNAME, nl.ZeroTerminated(string(name)))
}

func (s *Sets) create(name kernel.SetKey) error {
	data := nl.NewRtAttr(nl.IPSET_ATTR_DATA|int(nl.NLA_F_NESTED), nil)
	data.AddChild(&nl.Uint32Attribute{Type: nl.IPSET_ATTR_MAXELEM | nl.NLA_F_NET_BYTEORDER, Value: maxElements})
	_, err := s.execute(nl.IPSET_CMD_CREATE, unix.NLM_F_EXCL,
		nameAttr(name),
		nl.NewRtAttr(nl.IPSET_ATTR_TYPENAME, nl.ZeroTerminated(setType)),
		nl.NewRtAttr(nl.IPSET_ATTR_REVISION, nl.Uint8Attr(setRevision)),
		nl.NewRtAttr(nl.IPSET_ATTR_FAMILY, nl.Uint8Attr(familyOf(name))),
		data)
	if err != nil {
		return fmt.Errorf("create ipset %s: %w", name, err)
	}
	return nil
}

func (s *Sets) destroy(name kernel.SetKey) error {
	_, err := s.execute(nl.IPSET_CMD_DESTROY, 0, nameAttr(name))
	switch {
	case err == nil || errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, nl.IPSetError(nl.IPSET_ERR_BUSY)):
		return fmt.Errorf("destroy ipset %s: a rule still refers to it; `%s-save | grep %s` shows which: %w", name, plainOf(name), name, err)
	default:
		return fmt.Errorf("destroy ipset %s: %w", name, err)
	}
}

// plainOf is the program whose rules refer to a set.
func plainOf(name kernel.SetKey) string {
	if name.Is6() {
		return plain6
	}
	return plain
}

// element adds or removes one prefix. It is no error if that has been done before.
func (s *Sets) element(cmd int, name kernel.SetKey, p netip.Prefix) error {
	kind := nl.IPSET_ATTR_IPADDR_IPV4
	if p.Addr().Is6() {
		kind = nl.IPSET_ATTR_IPADDR_IPV6
	}
	ip := nl.NewRtAttr(nl.IPSET_ATTR_IP|int(nl.NLA_F_NESTED), nil)
	ip.AddRtAttr(kind|int(nl.NLA_F_NET_BYTEORDER), p.Addr().AsSlice())
	data := nl.NewRtAttr(nl.IPSET_ATTR_DATA|int(nl.NLA_F_NESTED), nil)
	data.AddChild(ip)
	data.AddRtAttr(nl.IPSET_ATTR_CIDR, nl.Uint8Attr(uint8(p.Bits())))
	_, err := s.execute(cmd, 0, nameAttr(name), data)
	if errors.Is(err, nl.IPSetError(nl.IPSET_ERR_EXIST)) {
		return nil
	}
	return err
}

// found is a set as the kernel describes it.
type found struct {
	kind    string
	family  uint8
	members map[netip.Prefix]bool
}

// dump lists all sets, or with a SETNAME attribute one.
func (s *Sets) dump(attrs ...nl.NetlinkRequestData) (map[string]found, error) {
	msgs, err := s.execute(nl.IPSET_CMD_LIST, 0, attrs...)
	if err != nil {
		return nil, err
	}
	out := map[string]found{}
	for _, m := range msgs {
		decodeSet(m, out)
	}
	return out, nil
}

// decodeSet adds what a message says to the sets. A set with many elements takes several messages, and only the first of them
// names its type.
func decodeSet(m []byte, sets map[string]found) {
	if len(m) < nl.SizeofNfgenmsg {
		return
	}
	var name string
	f := found{members: map[netip.Prefix]bool{}}
	for a := range nl.ParseAttributes(m[nl.SizeofNfgenmsg:]) {
		switch a.Type {
		case nl.IPSET_ATTR_SETNAME:
			name = strings.TrimRight(string(a.Value), "\x00")
		case nl.IPSET_ATTR_TYPENAME:
			f.kind = strings.TrimRight(string(a.Value), "\x00")
		case nl.IPSET_ATTR_FAMILY:
			f.family = octet(a.Value)
		case nl.IPSET_ATTR_ADT | nl.NLA_F_NESTED:
			for e := range nl.ParseAttributes(a.Value) {
				if p, ok := decodeElement(e.Value); ok {
					f.members[p] = true
				}
			}
		}
	}
	if before, ok := sets[name]; ok {
		maps.Copy(before.members, f.members)
		return
	}
	sets[name] = f
}

func decodeElement(data []byte) (netip.Prefix, bool) {
	var ip netip.Addr
	bits := -1 // a single address
	for a := range nl.ParseAttributes(data) {
		switch a.Type {
		case nl.IPSET_ATTR_IP | nl.NLA_F_NESTED:
			for x := range nl.ParseAttributes(a.Value) {
				ip, _ = netip.AddrFromSlice(x.Value)
			}
		case nl.IPSET_ATTR_CIDR:
			bits = int(octet(a.Value))
		}
	}
	if bits < 0 {
		bits = ip.BitLen()
	}
	p := netip.PrefixFrom(ip, bits)
	return p, p.IsValid()
}

// octet is an attribute of one byte; 0 if it is empty.
func octet(value []byte) byte {
	if len(value) == 0 {
		return 0
	}
	return value[0]
}

// execute sends one request of the ipset protocol (linux/netfilter/ipset/ip_set.h) and returns the answers.
func (s *Sets) execute(cmd, flags int, attrs ...nl.NetlinkRequestData) ([][]byte, error) {
	req := &nl.NetlinkRequest{
		NlMsghdr: unix.NlMsghdr{
			Len:   unix.SizeofNlMsghdr,
			Type:  uint16(cmd | unix.NFNL_SUBSYS_IPSET<<8),
			Flags: uint16(nl.GetIpsetFlags(cmd) | flags),
		},
		Sockets: s.sockets,
	}
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_INET, Version: nl.NFNETLINK_V0})
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_PROTOCOL, nl.Uint8Attr(nl.IPSET_PROTOCOL)))
	for _, a := range attrs {
		req.AddData(a)
	}
	msgs, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	var errno syscall.Errno
	switch {
	case errors.As(err, &errno) && errno >= nl.IPSET_ERR_PRIVATE:
		return nil, nl.IPSetError(errno)
	case errno == unix.EINVAL && cmd == nl.IPSET_CMD_LIST:
		return nil, fmt.Errorf("the kernel has no ipsets; load the module with `modprobe ip_set_hash_net`: %w", err)
	}
	return msgs, err
}

// split reads a set's content.
func split(s kernel.Set) (map[netip.Prefix]bool, error) {
	out := map[netip.Prefix]bool{}
	if s.Members == "" {
		return out, nil
	}
	for text := range strings.SplitSeq(s.Members, ",") {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, err
		}
		out[p.Masked()] = true
	}
	return out, nil
}

func join(members map[netip.Prefix]bool) string {
	list := sorted(members)
	out := make([]string, len(list))
	for i, p := range list {
		out[i] = p.String()
	}
	return strings.Join(out, ",")
}

func sorted(members map[netip.Prefix]bool) []netip.Prefix {
	return slices.SortedFunc(maps.Keys(members), netip.Prefix.Compare)
}
