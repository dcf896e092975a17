package wireguard

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/nettest"
)

func TestNoDeviceIsNoReasonToAskTheKernel(t *testing.T) {
	c := New(func(context.Context) ([]kernel.Dev, error) { return nil, nil })
	devices, err := c.Devices().List(t.Context())
	peers, err2 := c.Peers().List(t.Context())
	if err != nil || err2 != nil || len(devices)+len(peers) > 0 || c.client != nil {
		t.Errorf("%v, %v; %v, %v; client %v", devices, err, peers, err2, c.client)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func TestPeersAreWrittenAsTheyAreRead(t *testing.T) {
	want := kernel.Peer{Endpoint: netip.MustParseAddrPort("[fd01::2]:51821"), Allowed: "10.0.0.0/26,10.0.1.5/32,fd00::/122", KeepAlive: time.Minute}
	cfg, err := configOf(kernel.PublicKey{1}, &want)
	if err != nil {
		t.Fatal(err)
	}
	got := peerOf(wgtypes.Peer{Endpoint: cfg.Endpoint, AllowedIPs: cfg.AllowedIPs, PersistentKeepaliveInterval: *cfg.PersistentKeepaliveInterval})
	if got != want || !cfg.ReplaceAllowedIPs || cfg.Remove {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if cfg, err = configOf(kernel.PublicKey{1}, nil); err != nil || !cfg.Remove {
		t.Errorf("a peer that is to go: %+v, %v", cfg, err)
	}
}

func TestVMDevicesKeepTheirKeyAndPeersBecomeWhatIsAsked(t *testing.T) {
	nettest.Need(t, "wireguard")
	ns := nettest.New(t)
	ns.Exec("ip", "link", "add", "wireguard.cali", "type", "wireguard")
	dev := kernel.Dev{Name: "wireguard.cali", Index: ns.Index("wireguard.cali")}
	c := New(func(context.Context) ([]kernel.Dev, error) { return []kernel.Dev{dev}, nil })
	t.Cleanup(func() { _ = c.Close() })
	ns.Do(func() { // the first call opens the socket
		if have, err := c.Devices().List(t.Context()); err != nil || have[dev].Keyed {
			t.Errorf("a new device: %+v, %v", have, err)
		}
	})
	if _, known := c.Public(dev); known {
		t.Error("a device without a key has a public one")
	}
	want := kernel.WireGuard{Port: 51820, Mark: 1 << 31, Keyed: true, Threaded: false}
	become(t, c.Devices(), map[kernel.Dev]kernel.WireGuard{dev: want})
	key, known := c.Public(dev)
	want.Port, want.Mark = 51900, 1<<30
	become(t, c.Devices(), map[kernel.Dev]kernel.WireGuard{dev: want})
	if again, _ := c.Public(dev); !known || again != key {
		t.Errorf("with another port its key is %v and was %v", again, key)
	}
	peer := func(b byte) kernel.PeerKey { return kernel.PeerKey{Dev: dev, Key: kernel.PublicKey{b, 7, 7}} }
	at := netip.MustParseAddrPort("172.30.0.2:51820")
	become(t, c.Peers(), map[kernel.PeerKey]kernel.Peer{
		peer(1): {Endpoint: at, Allowed: "10.244.0.64/26,10.244.0.129/32"}, peer(2): {Endpoint: at, Allowed: "10.244.0.128/26", KeepAlive: 25 * time.Second},
	})
	status, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]Status{{Dev: dev, Public: key, Port: 51900, Peers: []PeerStatus{{Key: peer(1).Key, Endpoint: at}, {Key: peer(2).Key, Endpoint: at}}}}, status,
		cmpopts.EquateComparable(netip.AddrPort{})); d != "" {
		t.Errorf("status (-want +got):\n%s", d)
	}
	many := map[kernel.PeerKey]kernel.Peer{peer(2): {Endpoint: at, Allowed: ranges(3000)}} // more than one message holds
	become(t, c.Peers(), many)
	become(t, c.Peers(), map[kernel.PeerKey]kernel.Peer{})
	if out := strings.TrimSpace(key.String()); len(out) != 44 {
		t.Errorf("the key is %q", out)
	}
}

func ranges(n int) string {
	var out []netip.Prefix
	for i := range n {
		out = append(out, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 26))
	}
	return kernel.JoinPrefixes(out)
}

type table[K, V comparable] interface {
	List(context.Context) (map[K]V, error)
	Apply(context.Context, []kernel.Change[K, V]) error
}

// become applies the difference to want and checks that the kernel then holds exactly it.
func become[K, V comparable](t *testing.T, x table[K, V], want map[K]V) {
	t.Helper()
	have, err := x.List(t.Context())
	if err == nil {
		err = x.Apply(t.Context(), kernel.Diff(have, want))
	}
	if err == nil {
		have, err = x.List(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, have, cmpopts.EquateComparable(kernel.Peer{})); d != "" {
		t.Fatalf("want (-) and listed (+) differ:\n%s", d)
	}
}
