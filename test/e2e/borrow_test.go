package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/internal/nettest"
)

// TestBorrowedAddressesWorkFromEverywhere has two blocks for three nodes: all that node-3 uses, its tunnel's address included, is
// out of the others' blocks.
func TestBorrowedAddressesWorkFromEverywhere(t *testing.T) {
	for _, c := range []struct {
		mode    lab.Mode
		subnets int
	}{{lab.Direct, 1}, {lab.CrossSubnet, 2}} {
		t.Run(string(c.mode), func(t *testing.T) {
			l := up(t, func(o *lab.Options) {
				o.Mode, o.Subnets = c.mode, c.subnets
				o.Pool, o.BlockSize = netip.MustParsePrefix("192.168.77.0/28"), 29
			})
			guests := without(t, l)
			if r := check(t, l); !r.OK {
				t.Errorf("these ways fail:\n%s", strings.Join(failing(r), "\n"))
			}
			pods, err := l.Pods()
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range pods {
				if p.Node != guests {
					continue
				}
				for _, node := range []string{"node-1", "node-2", "node-3"} {
					routes := run(t, l, node, "ip", "route", "show", p.Addr.String())
					local := strings.Contains(routes, "dev cali")
					if routes == "" || local != (node == guests) {
						t.Errorf("%s has for %s of %s: %q", node, p.Addr, guests, routes)
					}
				}
			}
			for _, p := range pods {
				if err := l.RemovePod(t.Context(), p.Name); err != nil {
					t.Error(err)
				}
			}
			nettest.Eventually(t, func() error {
				for _, node := range []string{"node-1", "node-2", "node-3"} {
					routes := run(t, l, node, "ip", "route")
					for _, p := range pods {
						if strings.Contains(routes, p.Addr.String()+" ") && !strings.Contains(routes, "blackhole "+p.Addr.String()) {
							return fmt.Errorf("%s still has a route for %s: %s", node, p.Addr, routes)
						}
					}
				}
				return nil
			})
			for key := range values(t, l, "/calico/ipam/v2/handle/") {
				if !strings.Contains(key, "tunnel-addr") {
					t.Errorf("%s is left", key)
				}
			}
		})
	}
}

// without is the one node that has no block.
func without(t *testing.T, l *lab.Lab) string {
	t.Helper()
	var found []string
	for _, node := range []string{"node-1", "node-2", "node-3"} {
		if len(keys(t, l, "/calico/ipam/v2/host/"+node+"/")) == 0 {
			found = append(found, node)
		}
	}
	if len(found) != 1 {
		t.Fatalf("these nodes have no block: %v; want one", found)
	}
	return found[0]
}
