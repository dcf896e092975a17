package agent

import (
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/internal/policy"
	"github.com/muslin-cni/muslin/pkg/api"
)

// kept are the etcd keys of what policy depends on and whose values cannot be read. True: an earlier version is known, and stays in force
// until the value is corrected or deleted. To take it for deleted, as Calico does, would open whatever it closes, by a slip of the pen or a writer of a newer
// release. An agent that starts later knows no earlier version, and has to do without: it says so as loudly as it can.
//
// Workloads' endpoints are not kept: what one is that cannot be read any more nobody knows, and its address may be another's by now.
type kept map[string]bool

// take tells whether a key of a snapshot is one of these, of which nothing is to be taken over. old is the snapshot before.
func (k kept) take(key string, old, snap feed.Snapshot, log *slog.Logger) bool {
	bad, unreadable := snap.BadAt(key)
	if !unreadable || !keeps(key) {
		delete(k, key)
		return false
	}
	earlier, before := k[key]
	k[key] = earlier || old.Object(key) != nil
	if !before && !k[key] {
		log.Error("POLICY IS NOT ENFORCED: it cannot be read, and no earlier version of it is known; correct it in etcd", "key", key, "error", bad.Err)
	}
	return true
}

// keeps tells whether a key is of a kind that policy depends on, but for workloads' endpoints.
func keeps(key string) bool {
	return policy.Concerns(key) && !strings.HasPrefix(key, (*api.WorkloadEndpoint)(nil).KindOf().Prefix())
}

// troubles says what has become of each.
func (k kept) troubles() (out []string) {
	for _, key := range slices.Sorted(maps.Keys(k)) {
		what := ": cannot be read, and no earlier version is known: IT IS NOT ENFORCED until it is corrected"
		if k[key] {
			what = ": cannot be read; the version before it stays in force until it is corrected"
		}
		out = append(out, strings.TrimPrefix(key, api.ResourcesRoot)+what)
	}
	return out
}
