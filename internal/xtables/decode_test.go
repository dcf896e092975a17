package xtables

import (
	"testing"

	"github.com/vishvananda/netlink/nl"
)

func TestEmptyAttributesAreNoReasonToPanic(t *testing.T) {
	header := make([]byte, nl.SizeofNfgenmsg)
	for _, kind := range []int{nl.IPSET_ATTR_FAMILY, nl.IPSET_ATTR_TYPENAME, nl.IPSET_ATTR_SETNAME} {
		sets := map[string]found{}
		decodeSet(append(header, nl.NewRtAttr(kind, nil).Serialize()...), sets)
		if len(sets) != 1 || sets[""].kind != "" || sets[""].family != 0 {
			t.Errorf("attribute %d without a value gives %+v", kind, sets)
		}
	}
	if p, ok := decodeElement(nl.NewRtAttr(nl.IPSET_ATTR_CIDR, nil).Serialize()); ok {
		t.Errorf("an element without an address is %v", p)
	}
}
