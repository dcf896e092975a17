package lab

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Where Debian's FRR keeps its daemons, and where vtysh looks for them, so that `exec NAME -- vtysh` needs no options.
const (
	frrFolder     = "/usr/lib/frr/"
	frrRun        = "/run/frr/"
	frrConfigFile = frrRun + "bgpd.conf"
)

// frrDaemons starts zebra, which keeps what the kernel holds when it ends, and bgpd. vtysh wants the group.
func frrDaemons() []routerDaemon {
	common := []string{"-u", "root", "-g", "frrvty", "-P", "0", "--log", "stdout"}
	zebra := append([]string{frrFolder + "zebra", "-r", "-f", "/dev/null"}, common...)
	bgpd := append([]string{frrFolder + "bgpd", "-f", frrConfigFile}, common...)
	return []routerDaemon{{args: zebra, socket: frrRun + "zebra.vty"}, {args: bgpd, socket: frrRun + "bgpd.vty"}}
}

// frrConfig is what bgpd reads.
func frrConfig(s *state, r *Router) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	sessions := s.sessions(r)
	line("! Written by muslin-lab.")
	line("router bgp %d", r.Spec.AS)
	line(" bgp router-id %v", r.Addr)
	line(" no bgp default ipv4-unicast")
	line(" no bgp ebgp-requires-policy")
	line(" no bgp network import-check")
	line(" bgp graceful-restart")
	line(" bgp graceful-restart preserve-fw-state")
	line(" bgp bestpath as-path multipath-relax")
	if r.Spec.Cluster.IsValid() {
		line(" bgp cluster-id %v", r.Spec.Cluster)
	}
	for _, sess := range sessions {
		line(" neighbor %v remote-as %d", sess.peer, sess.as)
		line(" neighbor %v update-source %v", sess.peer, sess.own)
		line(" neighbor %v timers connect 2", sess.peer)
		if r.Spec.Hold > 0 {
			hold := r.Spec.Hold / time.Second
			line(" neighbor %v timers %d %d", sess.peer, max(1, hold/3), hold)
		}
		if !sess.internal {
			line(" neighbor %v ebgp-multihop 255", sess.peer)
		}
		if r.Spec.Password != "" {
			line(" neighbor %v password %s", sess.peer, r.Spec.Password)
		}
	}
	frrFamily(&b, r.Spec, sessions, false)
	if s.Options.DualStack {
		frrFamily(&b, r.Spec, sessions, true)
	}
	return b.String()
}

// frrFamily is what concerns the routes of one family.
func frrFamily(b *strings.Builder, spec RouterSpec, sessions []session, v6 bool) {
	line := func(format string, args ...any) { fmt.Fprintf(b, format+"\n", args...) }
	line(" address-family %s unicast", map[bool]string{false: "ipv4", true: "ipv6"}[v6])
	for _, p := range ofFamily(spec.Announce, v6) {
		line("  network %v", p)
	}
	line("  maximum-paths 8")
	for _, sess := range sessions {
		if isFamily(sess.peer, v6) {
			line("  neighbor %v activate", sess.peer)
		}
		if isFamily(sess.peer, v6) && sess.internal && spec.Cluster.IsValid() {
			line("  neighbor %v route-reflector-client", sess.peer)
		}
	}
	line(" exit-address-family")
}

func isFamily(a netip.Addr, v6 bool) bool { return a.Is6() == v6 }
