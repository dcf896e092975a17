package lab

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Where Debian's BIRD and its client meet, so that `exec NAME -- birdc show protocols` needs no options.
const (
	birdConfigFile = "/run/bird/bird.conf"
	birdSocket     = "/run/bird/bird.ctl"
)

// birdDaemons starts BIRD, which recovers gracefully if it ran before, as Calico's always does.
func birdDaemons(again bool) []routerDaemon {
	args := []string{"bird", "-f", "-c", birdConfigFile}
	if again {
		args = append(args, "-R")
	}
	return []routerDaemon{{args: args, socket: birdSocket}}
}

// birdFamily is what differs between IPv4 and IPv6 in BIRD's configuration.
type birdFamily struct {
	name   string // ipv4
	digit  string // 4
	blocks []netip.Prefix
	pool   netip.Prefix
}

// birdConfig is what BIRD reads.
func birdConfig(s *state, r *Router) string {
	families := []birdFamily{{name: "ipv4", digit: "4", pool: s.Options.Pool, blocks: ofFamily(r.Blocks, false)}}
	if s.Options.DualStack {
		families = append(families, birdFamily{name: "ipv6", digit: "6", pool: s.Options.Pool6, blocks: ofFamily(r.Blocks, true)})
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# Written by muslin-lab.\nlog stderr all;\nrouter id %v;\nprotocol device { scan time 2; }\n", r.Addr)
	for _, f := range families {
		if r.Spec.CalicoNode {
			f.calicoNode(&b)
		} else {
			f.router(&b, r.Spec)
		}
	}
	for _, sess := range s.sessions(r) {
		fmt.Fprintf(&b, "protocol bgp %s from peer%s { neighbor %v as %d; source address %v;", sess.name, digitOf(sess.peer), sess.peer, sess.as, sess.own)
		if sess.passive {
			b.WriteString(" passive on;")
		}
		if sess.internal && r.Spec.Cluster.IsValid() {
			fmt.Fprintf(&b, " rr client; rr cluster id %v;", r.Spec.Cluster)
		}
		if r.Spec.Password != "" {
			fmt.Fprintf(&b, " password %q;", r.Spec.Password)
		}
		if r.Spec.Hold > 0 {
			fmt.Fprintf(&b, " hold time %d;", r.Spec.Hold/time.Second)
		}
		b.WriteString(" }\n")
	}
	return strings.ReplaceAll(b.String(), "LOCALAS", fmt.Sprint(uint32(r.Spec.AS)))
}

func digitOf(a netip.Addr) string {
	if a.Is6() {
		return "6"
	}
	return "4"
}

func ofFamily(prefixes []netip.Prefix, v6 bool) (out []netip.Prefix) {
	for _, p := range prefixes {
		if p.Addr().Is6() == v6 {
			out = append(out, p)
		}
	}
	return out
}

// calicoNode is what Calico gives BIRD in a cluster whose pools have no tunnels: blocks are aggregated, what else is in the pools passes, and
// the local preference says the metric 1024.
func (f birdFamily) calicoNode(b *strings.Builder) {
	fmt.Fprintf(b, "protocol direct direct%s { %s; interface -\"cali*\", -\"kube-ipvs*\", \"*\"; }\n", f.digit, f.name)
	fmt.Fprintf(b, "protocol kernel kernel%s { persist; learn; scan time 2; merge paths on; graceful restart; metric 1024; %s { import all; export where source ~ [RTS_BGP, RTS_STATIC]; }; }\n", f.digit, f.name)
	fmt.Fprintf(b, "protocol static blocks%s { %s;", f.digit, f.name)
	for _, block := range f.blocks {
		fmt.Fprintf(b, " route %v blackhole;", block)
	}
	fmt.Fprintf(b, " }\nfilter announce%s {\n", f.digit)
	for _, block := range f.blocks {
		fmt.Fprintf(b, "  if net = %v then { bgp_local_pref = 2147482623; accept; }\n  if net ~ [ %v+ ] then reject;\n", block, block)
	}
	fmt.Fprintf(b, "  if net ~ [ %v+ ] then accept;\n  reject;\n}\n", f.pool)
	fmt.Fprintf(b, "template bgp peer%s { local as LOCALAS; multihop; connect delay time 2; connect retry time 5; error wait time 5,30;\n"+
		"  graceful restart; graceful restart time 120; %s { import all; export filter announce%s; add paths on; gateway recursive; }; }\n", f.digit, f.name, f.digit)
}

// router is what a router in a data centre may have: it announces its networks, passes on what it learns, and forwards by it.
func (f birdFamily) router(b *strings.Builder, spec RouterSpec) {
	fmt.Fprintf(b, "protocol direct direct%s { %s; interface -\"lo\", \"*\"; }\n", f.digit, f.name) // its networks are on lo, and static routes stand for them
	fmt.Fprintf(b, "protocol kernel kernel%s { persist; learn; scan time 2; merge paths on; graceful restart; %s { import all; export where source = RTS_BGP; }; }\n", f.digit, f.name)
	fmt.Fprintf(b, "protocol static networks%s { %s;", f.digit, f.name)
	for _, p := range ofFamily(spec.Announce, f.digit == "6") {
		fmt.Fprintf(b, " route %v blackhole;", p)
	}
	fmt.Fprintf(b, " }\ntemplate bgp peer%s { local as LOCALAS; multihop; connect delay time 1; connect retry time 2; error wait time 1,5;\n"+
		"  graceful restart; %s { import all; export where source ~ [RTS_BGP, RTS_STATIC]; gateway recursive; }; }\n", f.digit, f.name)
}
