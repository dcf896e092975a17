package addresses

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
	"github.com/muslin-cni/muslin/pkg/store"
)

// reportVersion is the version of the format of reports.
const reportVersion = 1

// report is what a check has found, for "ipam release --from-report" and for other programs.
type report struct {
	Version         int          `json:"version"`
	ClusterGUID     string       `json:"clusterGUID"`
	DatastoreLocked bool         `json:"datastoreLocked"`
	Revision        int64        `json:"revision"` // of etcd
	Allocations     []allocation `json:"allocations"`
	Problems        []problem    `json:"problems"`
}

// allocation is an address that is assigned.
type allocation struct {
	IP             string            `json:"ip"`
	Block          string            `json:"block"`
	Handle         string            `json:"handle,omitempty"`
	SequenceNumber uint64            `json:"sequenceNumber"`
	Attributes     map[string]string `json:"attributes,omitempty"`
	Users          []string          `json:"users,omitempty"` // etcd keys of the endpoints and nodes that have the address
	Leaked         bool              `json:"leaked"`          // a container's, and no endpoint has it
}

// problem is an ipam.Finding.
type problem struct {
	Kind      string       `json:"kind"`
	Text      string       `json:"text"`
	Remedy    string       `json:"remedy"`
	Keys      []string     `json:"keys"`
	Addresses []netip.Addr `json:"addresses,omitempty"`
}

func problemOf(f ipam.Finding) problem {
	return problem{string(f.Kind), f.Text, f.Remedy, f.Keys, f.Addrs}
}

func newReport(v ipam.View, findings []ipam.Finding, cluster store.Entry[api.ClusterInformation]) report {
	r := report{Version: reportVersion, Revision: v.Rev, Allocations: []allocation{}, Problems: []problem{}}
	if cluster.Exists() {
		r.ClusterGUID = cluster.Value.Spec.ClusterGUID
		r.DatastoreLocked = locked(cluster)
	}
	leaked := map[netip.Addr]bool{}
	for _, f := range findings {
		r.Problems = append(r.Problems, problemOf(f))
		for _, a := range f.Addrs {
			leaked[a] = leaked[a] || f.Kind == ipam.NoEndpoint
		}
	}
	users := usersOf(v)
	for _, b := range v.Blocks {
		for addr, by := range ipam.Allocated(b.Value) {
			a := allocation{
				IP: addr.String(), Block: b.Value.CIDR.String(), SequenceNumber: sequence(b.Value, addr),
				Attributes: by.Secondary, Users: users[addr], Leaked: leaked[addr],
			}
			if by.HandleID != nil {
				a.Handle = block.Handle(*by.HandleID)
			}
			r.Allocations = append(r.Allocations, a)
		}
	}
	return r
}

// usersOf lists which endpoints and nodes have which address.
func usersOf(v ipam.View) map[netip.Addr][]string {
	users := map[netip.Addr][]string{}
	for _, e := range v.Endpoints {
		for _, n := range e.Value.Spec.IPNetworks {
			users[n.Addr()] = append(users[n.Addr()], e.Key)
		}
	}
	for _, e := range v.Nodes {
		for _, t := range ipam.TunnelAddrs(e.Value) {
			users[t.Addr] = append(users[t.Addr], e.Key)
		}
	}
	return users
}

// sequence is the sequence number at which the address was assigned.
func sequence(b *api.Block, addr netip.Addr) uint64 {
	n, _ := block.Ordinal(b.CIDR, addr)
	return b.SequenceNumberForAllocation[strconv.Itoa(n)]
}

func locked(cluster store.Entry[api.ClusterInformation]) bool {
	ready := cluster.Value.Spec.DatastoreReady
	return ready != nil && !*ready
}

// write writes the report into a file, which it replaces.
func (r report) write(path string) error {
	raw, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, append(raw, '\n'), 0o600); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

func readReport(path string) (report, error) {
	var r report
	raw, err := os.ReadFile(path)
	if err != nil {
		return r, fmt.Errorf("read report: %w", err)
	}
	if err := json.Unmarshal(raw, &r); err != nil {
		return r, fmt.Errorf("read report %s: %w", path, err)
	}
	if r.Version != reportVersion {
		return r, fmt.Errorf("read report %s: it is of version %d: want %d, as ipam check -o writes it", path, r.Version, reportVersion)
	}
	return r, nil
}

// leaks are the leaked allocations that all reports have, with their handles and sequence numbers the same.
func leaks(reports []report) []allocation {
	var out []allocation
	for i, r := range reports {
		found := map[string]allocation{}
		for _, a := range r.Allocations {
			if a.Leaked {
				found[a.IP] = a
			}
		}
		if i == 0 {
			out = slices.Collect(maps.Values(found))
			continue
		}
		out = slices.DeleteFunc(out, func(a allocation) bool {
			b, ok := found[a.IP]
			return !ok || a.Handle != b.Handle || a.SequenceNumber != b.SequenceNumber
		})
	}
	slices.SortFunc(out, func(a, b allocation) int { return compareIP(a.IP, b.IP) })
	return out
}

// compareIP orders addresses as numbers; what is none comes first.
func compareIP(a, b string) int {
	x, _ := netip.ParseAddr(a) // the zero Addr if it is none
	y, _ := netip.ParseAddr(b)
	return x.Compare(y)
}
