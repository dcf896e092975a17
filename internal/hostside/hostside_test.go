package hostside

import "testing"

func TestNamesFollowTheReferenceVectors(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{InterfaceName("default", "nginx", "x"), "calic440f455693"},
		{InterfaceName("kube-system", "coredns-5d78c9869d-abcde", "x"), "cali4d5f75c480c"},
		{InterfaceName("", "", "hcx-0"), "calihcx-0"},
		{InterfaceName("", "", "0123456789abcdef"), "cali0123456789a"},
		{VTEPMAC("node1", false).String(), "66:f9:37:c3:7e:94"},
		{VTEPMAC("node1", true).String(), "66:0f:35:f2:60:df"},
		{VTEPMAC("hc-node1", false).String(), "66:fd:97:6d:26:82"},
	} {
		if c.got != c.want {
			t.Errorf("got %s, want %s", c.got, c.want)
		}
	}
}
