// Package lab runs many nodes on one machine, one network, mount and UTS namespace each, joined by a fabric that holds etcd.
//
//	node-1   node-2  …  node-N     eth0 172.30.<subnet>.<n>/24, default route to the fabric; agent, CNI plugin and pods inside
//	   |        |          |
//	 br-1     br-2 …     br-1      fabric: one bridge a subnet, a router between them that knows no pod routes, etcd on 172.30.0.1
//	              |
//	           outside             172.30.254.1/24, a host that no pod address can be routed back from
//
// Goals, and how each is met:
//
//  1. The machine's own namespaces stay as they are. Every veth pair is made with both ends in the lab's namespaces, every
//     mount in a mount namespace of a node, every sysctl in a network namespace of the lab.
//  2. A node sees only its own state. Its holder process gives it /run, /etc/cni, /var/lib/calico, /var/lib/cni, /sys and
//     /etc/machine-id of its own; the rest of the file system is the machine's.
//  3. Down always works: after kill -9 of anything, twice, on half a lab. Every process that the lab starts carries the lab's
//     random id in its environment, so that exactly those are ended, whatever became of the recorded state.
//  4. Nothing here knows how the agent or the plugin work: they are programs in a folder, called as kubelet and systemd would.
//
// The state lives in a folder, and every method reads it anew under a lock, so that several processes may use one lab.
package lab
