package rtnl

import "testing"

func TestDevicesAreSeenUntilTheyAreGone(t *testing.T) {
	h := newHost(t)
	seen := func(name string, want bool) {
		t.Helper()
		names, err := h.Names(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		exists, err := h.Exists(name)
		if err != nil {
			t.Fatal(err)
		}
		if names[name] != want || exists != want {
			t.Errorf("%s: listed %t, found %t; want %t", name, names[name], exists, want)
		}
	}
	seen("cali0", true)
	seen("lo", true)
	seen("cali1", false)
	h.NS.Exec("ip", "link", "del", "cali0")
	seen("cali0", false)
}
