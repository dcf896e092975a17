package e2e

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/muslin-cni/muslin/internal/lab"
)

// dockersRules are what Docker 27 writes for two bridges: it drops what is forwarded and nobody accepts, and keeps bridges apart.
const dockersRules = `*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A FORWARD -o docker1 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker1 -j DOCKER
-A FORWARD -i docker1 ! -o docker1 -j ACCEPT
-A FORWARD -i docker1 -o docker1 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -i docker1 ! -o docker1 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -o docker1 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
`

// proxysRules are what kube-proxy writes, with one service at an address and a port, of one pod: masquerading by a mark of its own, and in FORWARD what it
// accepts by that and by connection.
const proxysRules = `*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-SVC-WEB - [0:0]
:KUBE-SEP-WEB - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-SERVICES -d %[1]s/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-WEB
-A KUBE-SVC-WEB -j KUBE-SEP-WEB
-A KUBE-SEP-WEB -s %[2]s/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-WEB -p tcp -m tcp -j DNAT --to-destination %[2]s:80
COMMIT
*filter
:KUBE-FORWARD - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
-I FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-I FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-I OUTPUT -j KUBE-FIREWALL
-I INPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
`

// TestPolicyHoldsBesideDockersAndKubeProxysRules has rules of both in iptables, above ours and below: what policy accepts arrives though FORWARD drops, also by a
// service; what it denies does not, though kube-proxy accepts; and what is no pod's fares as Docker says.
func TestPolicyHoldsBesideDockersAndKubeProxysRules(t *testing.T) {
	service := netip.MustParseAddr("10.96.0.80")
	l := up(t, func(o *lab.Options) { o.Nodes, o.Mode = 2, lab.VXLAN })
	addPodOf(t, l, lab.PodSpec{Name: "web", Node: "node-1", Labels: map[string]string{"app": "web"}})
	addPodOf(t, l, lab.PodSpec{Name: "client", Node: "node-1", Labels: map[string]string{"role": "client"}})
	listenTCP(t, l, "web", 80)
	listenTCP(t, l, "a1", 80)
	// A container behind docker0, and one behind another bridge of Docker's.
	run(t, l, "node-1", "sh", "-ec", `
		for n in 0 1; do
			ip link add docker$n type bridge && ip addr add 172.17.$n.1/24 dev docker$n && ip link set docker$n up
			ip netns add container$n
			ip link add dc$n type veth peer name eth0 netns container$n && ip link set dc$n master docker$n up
			ip -n container$n addr add 172.17.$n.2/24 dev eth0 && ip -n container$n link set eth0 up && ip -n container$n route add default via 172.17.$n.1
		done`)
	contained := func(target string) string { // by ping, from the container behind docker0
		return "ip netns exec container0 ping -c1 -W1 " + target
	}
	expect := func(what, command string, open bool) {
		t.Helper()
		if _, err := try(t, l, "node-1", "sh", "-c", command); (err == nil) != open {
			t.Errorf("%s: %v, want open %t", what, err, open)
		}
	}
	expect("between bridges, without Docker's rules", contained("172.17.1.2"), true)
	load := func(rules string) {
		t.Helper()
		run(t, l, "node-1", "sh", "-ec", "iptables-restore --noflush <<'RULES'\n"+rules+"RULES\n")
	}
	load(dockersRules)
	load(fmt.Sprintf(proxysRules, service, pod(t, l, "web").Addr))
	for _, again := range []string{"", "after a restart of the agent: "} {
		ways(t, l, again+"FORWARD drops", reach{"client", "web", 80, true}, reach{"b2", "web", 80, true}, reach{"web", "a1", 80, true})
		if r := check(t, l); !r.OK {
			t.Errorf("%sthese ways fail: %v", again, failing(r))
		}
		becomes(t, again+"by the service, without policy", true, podOpener(l, "client"), service, 80)
		policy(t, l, "web", `"selector": "app == 'web'", "types": ["Ingress", "Egress"], "ingress": [{"action": "Allow", "source": {"selector": "role == 'client'"}}]`)
		ways(t, l, again+"with policy", reach{"client", "web", 80, true}, reach{"b2", "web", 80, false}, reach{"web", "a1", 80, false})
		becomes(t, again+"by the service, as policy allows", true, podOpener(l, "client"), service, 80)
		becomes(t, again+"by the service, as policy denies", false, podOpener(l, "b1"), service, 80)
		expect(again+"from a container to a pod that policy closes", contained(pod(t, l, "web").Addr.String()), false)
		expect(again+"from a container to another pod", contained(pod(t, l, "a1").Addr.String()), true)
		expect(again+"between bridges, which Docker drops", contained("172.17.1.2"), false)
		remove(t, l, "networkpolicies/default/default.web")
		if err := l.KillAgent(t.Context(), "node-1"); err != nil {
			t.Fatal(err)
		}
		if err := l.StartAgent(t.Context(), "node-1"); err != nil {
			t.Fatal(err)
		}
	}
}
