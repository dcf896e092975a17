package netconf

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/attach"
)

func TestNodesRangesTakeThePlaceOfCalicosWords(t *testing.T) {
	ranges := []netip.Prefix{netip.MustParsePrefix("fd09::/64"), netip.MustParsePrefix("10.9.0.0/24")}
	for _, c := range []struct{ ipam, want string }{
		{`{"subnet":"usePodCidr","type":"host-local"}`, `{"subnet":"10.9.0.0/24","type":"host-local"}`},
		{`{"ranges":[[{"gateway":"10.9.0.1","subnet":"usepodcidr"}],[{"subnet":"usePodCidrIPv6"}]],"type":"host-local"}`,
			`{"ranges":[[{"gateway":"10.9.0.1","subnet":"10.9.0.0/24"}],[{"subnet":"fd09::/64"}]],"type":"host-local"}`},
		{`{"ranges":[[{"subnet":"10.1.0.0/24"}],[{"subnet":"usePodCidrIPv6"}]],"type":"host-local"}`, `{"ranges":[[{"subnet":"10.1.0.0/24"}],[{"subnet":"fd09::/64"}]],"type":"host-local"}`},
		{`{"subnet":"10.1.0.0/24","type":"host-local"}`, ""},
	} {
		text := `{"ipam":` + c.ipam + `,"mtu":1450,"name":"n","type":"muslin"}`
		conf, err := Parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if conf.WantsPodCIDR() != (c.want != "") {
			t.Errorf("%s: asks for the node's ranges: %t", c.ipam, conf.WantsPodCIDR())
		}
		if c.want == "" {
			continue
		}
		got, err := WithPodCIDR([]byte(text), ranges)
		if diff := cmp.Diff(`{"ipam":`+c.want+`,"mtu":1450,"name":"n","type":"muslin"}`, string(got)); diff != "" || err != nil {
			t.Errorf("%v (-want +got):\n%s", err, diff)
		}
	}
	_, err := WithPodCIDR([]byte(`{"ipam":{"subnet":"usePodCidrIPv6"}}`), ranges[1:])
	var told *attach.Error
	if !errors.As(err, &told) || told.Code != attach.CodeBadConfig || !strings.Contains(told.Msg, "no range of that family") {
		t.Errorf("a node without IPv6: %v", err)
	}
}
