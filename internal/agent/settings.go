package agent

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/config"
	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/nftable"
	"github.com/muslin-cni/muslin/internal/plan"
	"github.com/muslin-cni/muslin/internal/reconcile"
	"github.com/muslin-cni/muslin/internal/ruleset"
	"github.com/muslin-cni/muslin/internal/startup"
	"github.com/muslin-cni/muslin/pkg/api"
)

// heeded is the settings that the agent works by. It belongs to the loop.
type heeded struct {
	config.Dataplane
	node, global *api.FelixConfiguration // that they were made from
	problems     []string
	known        bool // they were made at all

	prefixes prefixes

	ours   kernel.Ownership
	owned  bool // the doorways were told
	append bool // our rules stand last
}

// heed takes over what the snapshot says of the settings, before anything is listed or planned by them.
func (a *Agent) heed(snap feed.Snapshot) {
	s := &a.settled
	node, global := stored(snap, "node."+a.node, s.node), stored(snap, "default", s.global)
	if !s.known || s.node != node || s.global != global {
		s.node, s.global, s.known = node, global, true
		s.Dataplane, s.problems = config.Effective(config.Sources{Env: a.env, File: a.file, Node: node, Global: global})
		a.serve(s.Dataplane)
	}
	a.looks.set(s.Refresh, time.Now())
	a.servers.needed(s.WireGuard.Hosts)
	a.own(s.prefixes.heed(s.InterfacePrefixes, snap.Node(a.node).Value, a.monitor.Host()))
	if last := s.ChainInsertMode == "append"; last != s.append {
		s.append = last
		for _, c := range a.chains {
			c.Append(last)
		}
		a.kernel.MarkDirty(reconcile.Chains, reconcile.Chains6)
	}
}

// stored is the configuration of a name. One that cannot be read counts as it did before: what it says is not known, and the defaults
// would be a change.
func stored(snap feed.Snapshot, name string, before *api.FelixConfiguration) *api.FelixConfiguration {
	if _, bad := snap.BadAt(before.KindOf().Key("", name)); bad {
		return before
	}
	return snap.FelixConfig(name).Value
}

// serve opens and closes the ports for monitoring.
func (a *Agent) serve(d config.Dataplane) {
	a.pulse.Limit(d.Watchdog)
	a.metrics.Include(d.GoMetrics, d.ProcessMetrics)
	a.wgMetrics.Store(d.WireGuardMetrics)
	a.healthPort.Set(address(d.HealthEnabled, d.HealthHost, d.HealthPort))
	a.metricsPort.Set(address(d.MetricsEnabled, d.MetricsHost, d.MetricsPort))
}

func address(on bool, host string, port int) string {
	if !on {
		return ""
	}
	return net.JoinHostPort(strings.Trim(host, "[]"), strconv.Itoa(port))
}

// own tells the kernel's doorways what is ours. A protocol that our routes had before stays ours until none of them has it: it is
// written down, because settings change over a restart more often than not.
func (a *Agent) own(prefixes []string) {
	s := &a.settled
	now := kernel.Ownership{Protocol: s.RouteProtocol, Prefixes: prefixes, External: s.RemoveExternalRoutes}
	for _, p := range append(slices.Clone(s.ours.Former), s.ours.Protocol) {
		if p != 0 && !now.HasProtocol(p) {
			now.Former = append(now.Former, p)
		}
	}
	if s.owned && now.Equal(s.ours) {
		return
	}
	s.owned = true
	if err := a.writeProtocols(append(slices.Clone(now.Former), now.Protocol)); err != nil {
		a.log.Warn("write down the protocol of our routes", "error", err)
	}
	s.ours = now
	a.rtnl.Own(now)
	a.kernel.MarkDirty(reconcile.Routes, reconcile.Rules, reconcile.Neighs)
}

// settle forgets former protocols once the kernel was gone through without failure.
func (a *Agent) settle() {
	if len(a.settled.ours.Former) == 0 {
		return
	}
	a.settled.ours.Former = nil
	a.rtnl.Own(a.settled.ours)
	if err := a.writeProtocols([]int{a.settled.ours.Protocol}); err != nil {
		a.log.Warn("write down the protocol of our routes", "error", err)
	}
}

// protocolsFile holds, until the host starts anew and its routes are gone, the protocols that routes of ours may have.
func protocolsFile() string { return filepath.Join(filepath.Dir(attach.Socket), "route-protocols") }

func (a *Agent) writeProtocols(protocols []int) error {
	words := make([]string, len(protocols))
	for i, p := range protocols {
		words[i] = strconv.Itoa(p)
	}
	return startup.WriteFile(protocolsFile(), strings.Join(words, " "))
}

// readProtocols returns what writeProtocols has written, perhaps nothing.
func readProtocols() ([]int, error) {
	text, err := os.ReadFile(protocolsFile())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the protocols of our routes: %w", err)
	}
	var out []int
	for _, w := range strings.Fields(string(text)) {
		p, err := strconv.Atoi(w)
		if err != nil || p <= 0 || p > 255 {
			return nil, fmt.Errorf("read the protocols of our routes: %s: %q is none; remove the file", protocolsFile(), w)
		}
		out = append(out, p)
	}
	return out, nil
}

// settings are what the plan is computed by, and what is wrong with them.
func (a *Agent) settings() (plan.Settings, []string) {
	d := a.settled.Dataplane
	problems := slices.Concat(a.settled.problems, a.settled.prefixes.problems(), a.logs.set(d))
	if d.IptablesBackend != a.backend {
		problems = append(problems, fmt.Sprintf("iptablesBackend is now %s; restart the agent to change it from %s", d.IptablesBackend, a.backend))
	}
	return plan.Settings{
		Node: a.node, IPv6: d.IPv6Support, NoIPv6: a.noIPv6, NoIPIP: a.noIPIP, MTUIface: d.MTUIface,
		IPIPEnabled: d.IPIPEnabled, IPIPMTU: d.IPIPMTU, VXLANEnabled: d.VXLANEnabled, VXLANPort: uint16(d.VXLANPort), VXLANVNI: uint32(d.VXLANVNI),
		VXLANMTU: d.VXLANMTU, VXLANMTUV6: d.VXLANMTUV6, TunnelPeers: d.TunnelPeers,
		NATKeepHosts: d.NATExclusions == "ippoolsandhostips", NATAddress: d.NATAddress, NATPorts: d.NATPorts,
		Ours: a.settled.ours, AcceptMark: acceptMark(d), PodMetric4: d.PodMetric4, PodMetric6: d.PodMetric6,
		RouteSource: d.RouteSource, RouteSource6: d.RouteSource6, LeaveForwarding: !d.IPForwarding,
		Spoofing: spoofing(d), FloatingIPs: d.FloatingIPs, WireGuard: a.encryption(),
	}, problems
}

// encryption is what the plan is to know of WireGuard.
func (a *Agent) encryption() plan.WireGuard {
	d := a.settled.Dataplane
	w := d.WireGuard
	return plan.WireGuard{
		Enabled: w.Enabled, Enabled6: w.Enabled6, Device: w.Device, Device6: w.Device6, Port: uint16(w.Port), Port6: uint16(w.Port6),
		MTU: w.MTU, MTU6: w.MTU6, Table: w.Table(), Priority: w.Priority, Mark: ruleset.WireGuardMark(markMask(d)),
		KeepAlive: w.KeepAlive, Threaded: w.Threaded, Hosts: w.Hosts, Plain: a.cfg.Plaintext, Lacking: a.noWireGuard,
		Exempt: a.servers.addrs(), Own: ownPorts(d),
	}
}

// ownPorts are those on which this agent serves others.
func ownPorts(d config.Dataplane) (out []uint16) {
	if d.HealthEnabled {
		out = append(out, uint16(d.HealthPort))
	}
	if d.MetricsEnabled {
		out = append(out, uint16(d.MetricsPort))
	}
	return out
}

func spoofing(d config.Dataplane) bool { return d.Spoofing == "Any" }

func acceptMark(d config.Dataplane) uint32 {
	accept, _ := ruleset.Marks(markMask(d))
	return accept
}

func markMask(d config.Dataplane) uint32 { return cmp.Or(d.NftMarkMask, d.MarkMask) }

// logRate is how often at most in a second the kernel reports packets that policy denies or logs, for each rule.
const logRate = 10

// logAction is how often Log rules tell of packets; zero: as other rules do.
func logAction(d config.Dataplane) nftable.Limit {
	if d.LogRate.Packets == 0 {
		return nftable.Limit{}
	}
	return nftable.Limit{Rate: d.LogRate.Packets, Burst: uint32(d.LogBurst), Unit: nftable.LimitUnit(d.LogRate.Per / time.Second)}
}

// rules are the settings that the table of policy is laid out by.
func (a *Agent) rules(snap feed.Snapshot, t plan.Tunnels) ruleset.Settings {
	d := a.settled.Dataplane
	probePort, probePeers := a.probes.asked()
	toHost := map[string]ruleset.ToHost{"ACCEPT": ruleset.AcceptToHost, "RETURN": ruleset.ReturnToHost} // else it drops
	return ruleset.Settings{
		Prefixes: a.settled.ours.WorkloadPrefixes(), MarkMask: markMask(d), ToHost: toHost[d.EndpointToHost],
		Reject: cmp.Or(d.NftDenyAction, d.DenyAction) == "REJECT", KeepInvalid: d.KeepInvalid, MidStream: a.cfg.CutDenied,
		VXLAN: t.VXLAN, VXLAN6: t.VXLAN6, IPIP: t.IPIP, VXLANPort: uint16(d.VXLANPort), VXLANPeers: t.VXLANPeers, IPIPPeers: t.IPIPPeers,
		ProbePort: probePort, ProbePeers: probePeers,
		WireGuardPort: portIf(t.WireGuard, d.WireGuard.Port), WireGuardPort6: portIf(t.WireGuard6, d.WireGuard.Port6), WireGuardPeers: t.WireGuardPeers,
		WorkloadVXLAN: d.WorkloadVXLAN, WorkloadIPIP: d.WorkloadIPIP, Spoofing: spoofing(d),
		FailsafeIn: failsafes(d.FailsafeIn), FailsafeOut: failsafes(d.FailsafeOut), LogGroup: ruleset.LogGroup, LogRate: logRate,
		LogAction: logAction(d), Syslog: true, LogPrefix: d.LogPrefix + ": ",
		PodConnections: a.podConnections(), Pools: pooled(snap),
	}
}

// podConnections is how many connections a pod may have; 0: any number. What the kernel tracks at most is read each time, since kube-proxy sets it when it starts.
func (a *Agent) podConnections() uint32 {
	if a.cfg.PodFlows.Percent == 0 {
		return a.cfg.PodFlows.Number
	}
	most, err := a.mostFlows.Read()
	if err != nil {
		return 0 // it tracks nothing yet
	}
	return a.cfg.PodFlows.Of(uint32(min(most, math.MaxInt32)))
}

// pooled are the ranges of all pools.
func pooled(snap feed.Snapshot) (out []netip.Prefix) {
	for _, p := range snap.Pools() {
		if p.Value.Spec.CIDR.IsValid() {
			out = append(out, p.Value.Spec.CIDR)
		}
	}
	return out
}

// portIf is a port if it is used, else 0.
func portIf(used bool, port int) uint16 {
	if !used {
		return 0
	}
	return uint16(port)
}

func failsafes(ports []config.Failsafe) (out []ruleset.Failsafe) {
	for _, p := range ports {
		out = append(out, ruleset.Failsafe{Protocol: p.Protocol, Port: p.Port, Net: p.Net})
	}
	return out
}
