package rtnl

import (
	"context"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/internal/kernel"
)

// DefaultDevices names the devices of the main table's default routes of a family, those of the smallest metric only, in the order of the
// alphabet. A route over several devices at once names none.
func (c *Conn) DefaultDevices(ctx context.Context, v6 bool) ([]string, error) {
	var best []route
	err := c.Routes().all(ctx, func(r route) {
		fits := r.key.Table == 0 && r.key.Dst.Bits() == 0 && r.key.Dst.Addr().Is6() == v6 && r.val.Type == kernel.Unicast && r.val.Dev.Name != ""
		if !fits || len(best) > 0 && r.key.Metric > best[0].key.Metric {
			return
		}
		if len(best) > 0 && r.key.Metric < best[0].key.Metric {
			best = best[:0]
		}
		best = append(best, r)
	})
	var out []string
	for _, r := range best {
		out = append(out, r.val.Dev.Name)
	}
	slices.SortFunc(out, strings.Compare)
	return slices.Compact(out), err
}
