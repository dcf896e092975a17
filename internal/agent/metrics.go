package agent

import (
	"context"
	"iter"
	"strings"
	"time"

	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/internal/health"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/reconcile"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
)

// Parts of being ready.
const (
	datastorePart = "datastore"
	dataplanePart = "dataplane"
	policyPart    = "policy"
)

func newPulse() *health.Pulse {
	return health.NewPulse(time.Now, health.Part{Name: datastorePart, Why: "read in full: etcd does not answer, or has not told everything"},
		health.Part{Name: dataplanePart, Why: "gone through once: the kernel is not known to be as it should be"},
		health.Part{Name: policyPart, Why: "in force: the kernel does not hold this node's policy, the log says why"})
}

// facts looks up what is asked for, from what the loop has left and from the feed.
func (a *Agent) facts() health.Facts {
	f := health.Facts{Problems: len(a.current()), LogErrors: int(a.logs.errors.Load()), LogsDropped: int(a.logs.dropped.Load())}
	if s := a.wanted.Load(); s != nil {
		f.Planned = census(*s)
	}
	snap, synced := a.feed.Snapshot()
	f.Synced, f.Connected, f.Revision, f.Lag = synced, a.feed.Connected(), snap.Rev, a.lag()
	f.Addresses = addressesOf(snap, a.node)
	f.LocalEndpoints, f.Endpoints, f.Hosts = count(snap.EndpointsOn(a.node)), count(snap.Endpoints()), count(snap.Nodes())
	f.Profiles, f.Tiers = count(snap.Profiles()), count(snap.Tiers())
	f.BGP, f.Paths = a.bgp.numbers(), a.probes.numbers()
	if a.cluster != nil {
		known, asked := a.cluster.Looked()
		f.Pods = &health.Pods{Known: known, Asked: asked}
	}
	n := a.guard.numbers()
	f.ActivePolicies, f.ActiveSelectors, f.ActiveStaged = n.policies, n.selectors, n.staged
	f.Matched = a.guard.tally.matched()
	f.StagedPolicies = count(snap.Objects(feed.StagedNetworkPolicies | feed.StagedGlobalNetworkPolicies | feed.StagedKubernetesNetworkPolicies))
	f.Policies, f.HostEndpoints = count(snap.Objects(feed.NetworkPolicies|feed.GlobalNetworkPolicies)), count(snap.Objects(feed.HostEndpoints))
	f.WireGuard = a.encrypting()
	return f
}

// encrypting is how WireGuard's devices fare, if that is to be told. What cannot be read is left out.
func (a *Agent) encrypting() (out []health.WireGuard) {
	if !a.wgMetrics.Load() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), lagTimeout)
	defer cancel()
	devices, err := a.wireguard.Status(ctx)
	if err != nil {
		a.log.Debug("read how WireGuard fares", "error", err)
		return nil
	}
	for _, d := range devices {
		w := health.WireGuard{Name: d.Dev.Name, PublicKey: d.Public.String(), Port: d.Port}
		for _, p := range d.Peers {
			w.Peers = append(w.Peers, health.WireGuardPeer{PublicKey: p.Key.String(), Endpoint: p.Endpoint, Received: p.Received, Sent: p.Sent, Handshake: p.Handshake})
		}
		out = append(out, w)
	}
	return out
}

// lagTimeout bounds how long somebody who asks for metrics waits for the feed, and for the kernel.
const lagTimeout = time.Second

// lag is how far the feed is behind etcd: since when it is cut off from it, or how long it takes until it has seen what etcd holds now.
func (a *Agent) lag() time.Duration {
	if stale, since := a.feed.Stale(); stale {
		return time.Since(since)
	}
	ctx, cancel := context.WithTimeout(context.Background(), lagTimeout)
	defer cancel()
	asked := time.Now()
	_ = a.catchUp(ctx) // a failure shows in how long it took
	return time.Since(asked)
}

// addressesOf counts what a node has of the pools: what it uses, wherever it is from, and what its own blocks have left.
func addressesOf(snap feed.Snapshot, node string) (n health.Addresses) {
	for _, e := range snap.Blocks() {
		host, affine := e.Value.Host()
		own := affine && host == node
		if own {
			n.Blocks++
			n.Free += len(e.Value.Unallocated)
		}
		for _, by := range ipam.Allocated(e.Value) {
			switch {
			case by.Secondary[api.AttrNode] != node:
			case own:
				n.InUse++
			default:
				n.Borrowed++
			}
		}
	}
	return n
}

func count[K, V any](all iter.Seq2[K, V]) (n int) {
	for range all {
		n++
	}
	return n
}

// wrote tells the metrics of one round of writing.
func (a *Agent) wrote(want kernel.State, done reconcile.Result, took time.Duration, err error) {
	changes := make(map[string]int, len(done.Tables))
	for table, n := range done.Tables {
		changes[string(table)] = n
	}
	a.metrics.Applied(took, changes, err != nil)
	a.wanted.Store(&want) // to be counted when somebody asks: a state is not changed once it is computed
}

// census counts a state.
func census(s kernel.State) health.Planned {
	p := health.Planned{Routes: len(s.Routes), Sets: map[string]int{}, Chains: map[health.ByTable]int{}, Rules: map[health.ByTable]int{}}
	devices := map[string]struct{}{}
	for _, r := range s.Routes {
		if r.Dev.Name != "" {
			devices[r.Dev.Name] = struct{}{}
		}
	}
	p.RouteDevices = len(devices)
	for k := range s.Sets {
		if k.Is6() {
			p.Sets["6"]++
		} else {
			p.Sets["4"]++
		}
	}
	for version, chains := range map[string]map[kernel.ChainKey]kernel.Chain{"4": s.Chains, "6": s.Chains6} {
		for k, c := range chains {
			at := health.ByTable{Version: version, Table: k.Table}
			p.Chains[at]++
			if c.Rules != "" {
				p.Rules[at] += strings.Count(c.Rules, "\n") + 1
			}
		}
	}
	return p
}
