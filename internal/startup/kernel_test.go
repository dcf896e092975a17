package startup_test

import (
	"context"
	"log/slog"
	"net/netip"
	"testing"

	"github.com/muslin-cni/muslin/internal/etcdtest"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/internal/rtnl"
	"github.com/muslin-cni/muslin/internal/startup"
)

// realHost is a host with two networks, and what the agent would know of it.
type realHost struct {
	ns    *nettest.NS
	conn  *rtnl.Conn
	facts kernel.Host
}

func newHost(t *testing.T, commands ...[]string) *realHost {
	t.Helper()
	r := &realHost{ns: nettest.New(t)}
	other := nettest.New(t)
	for _, dev := range []string{"eth0", "eth1", "docker0"} {
		nettest.Pair(r.ns, dev, other, dev)
	}
	for _, c := range commands {
		r.ns.Exec(append([]string{"ip"}, c...)...)
	}
	r.ns.Do(func() {
		var err error
		if r.conn, err = rtnl.Open(); err != nil {
			t.Fatal(err)
		}
		m, err := rtnl.NewMonitor(t.Context(), r.conn, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		r.facts = m.Host()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := m.Run(ctx); err != nil { // which releases the socket
			t.Fatal(err)
		}
	})
	t.Cleanup(r.conn.Close)
	return r
}

func TestMethodsOnARealKernel(t *testing.T) {
	words := func(s ...string) []string { return s }
	host := newHost(t,
		words("addr", "add", "10.1.0.7/24", "dev", "eth0"), words("addr", "add", "10.2.0.7/24", "dev", "eth1"), words("addr", "add", "172.17.0.1/16", "dev", "docker0"),
		words("-6", "addr", "add", "fd00:1::7/64", "dev", "eth0", "nodad"), words("-6", "addr", "add", "fd00:2::7/64", "dev", "eth1", "nodad"),
		words("route", "add", "default", "via", "10.1.0.1", "metric", "50"), words("route", "add", "default", "via", "10.2.0.1", "metric", "100"),
		words("-6", "route", "add", "default", "via", "fd00:2::1"), words("route", "add", "192.0.2.0/24", "via", "10.2.0.1"),
	)
	srv := etcdtest.New(t)
	for _, c := range []struct {
		detection
		v6 bool
	}{
		{detection{method: "first-found", want: "10.1.0.7/24"}, false}, // by the smaller metric
		{detection{method: "first-found", want: "fd00:2::7/64"}, true},
		{detection{method: "skip-interface=eth0", want: "10.2.0.7/24"}, false},
		{detection{method: "interface=docker0", want: "172.17.0.1/16"}, false},
		{detection{method: "cidr=10.2.0.0/16", want: "10.2.0.7/24"}, false},
		{detection{method: "can-reach=192.0.2.1", want: "10.2.0.7/24"}, false},
		{detection{method: "can-reach=198.51.100.1", want: "10.1.0.7/24"}, false},
		{detection{method: "can-reach=2001:db8::1", want: "fd00:2::7/64"}, true},
		{detection{method: "can-reach=router.example.com", want: "10.2.0.7/24"}, false},
		{detection{method: "can-reach=127.0.0.9", err: "from 127.0.0.1, which is no address for other nodes"}, false},
		{detection{method: "can-reach=2001:db8::1", err: "is no IPv4 address"}, false},
		{detection{method: "can-reach=", err: "names no address"}, false},
	} {
		c.ip = "autodetect"
		host.ns.Do(func() {
			got, err := c.run(t, srv, c.v6, host.facts, func(d *startup.Deps) {
				d.Default = host.conn.DefaultDevices
				d.Resolve = func(context.Context, string, string) ([]netip.Addr, error) {
					return []netip.Addr{netip.MustParseAddr("192.0.2.9")}, nil
				}
			})
			c.check(t, got, err)
		})
	}
}

func TestEqualDefaultRoutesTellNothingApart(t *testing.T) {
	words := func(s ...string) []string { return s }
	host := newHost(t,
		words("addr", "add", "10.1.0.7/24", "dev", "eth0"), words("addr", "add", "10.2.0.7/24", "dev", "eth1"),
		words("route", "add", "default", "nexthop", "via", "10.1.0.1", "nexthop", "via", "10.2.0.1"),
	)
	c := detection{ip: "autodetect", method: "first-found", err: "eth1 10.2.0.7/24, eth0 10.1.0.7/24; say which by IP="}
	got, err := c.run(t, etcdtest.New(t), false, host.facts, func(d *startup.Deps) { d.Default = host.conn.DefaultDevices })
	c.check(t, got, err)
}
