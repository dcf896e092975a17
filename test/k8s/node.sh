# node.sh is the first process of a node, in network, mount, PID, UTS and IPC namespaces of its own. It makes what a freshly booted host has, and then keeps the
# node's services running. Its end is the node's; the keeper boots it again then, with all that it has on disk.
#
# The keeper sets NODE, IP, IP6, GATEWAY, GATEWAY6, STATE (the node's folder, its disk), KUBERNETES, IMAGES, PKI, PROXY_MODE and CLUSTER_DNS.
set -eu

# The control-group namespace begins where its maker is, so a node moves into its groups first. /proc is still the machine's: its self is our number outside.
if [ "${1:-}" != moved ]; then
	read -r outside _ </proc/self/stat
	while read -r _ dir; do echo 0 >"$dir/cgroup.procs"; done <"$STATE/groups"
	read -r _ <&3 # the network device is plugged in
	exec 3<&-
	echo "$outside" >"$STATE/pid"
	exec unshare --cgroup bash "$0" moved
fi

network() {
	hostname "$NODE"
	sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.eth0.accept_dad=0
	ip link set lo up
	ip link set eth0 up
	ip address add "$IP/24" dev eth0
	ip address add "$IP6/64" dev eth0 nodad
	ip route add default via "$GATEWAY"
	ip -6 route add default via "$GATEWAY6"
	sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
	# The API server's way to pods leads over the first node. Answers must come back that way, or that node would take the connections for broken ones.
	iptables -t nat -A POSTROUTING -s "$GATEWAY" -o vxlan+ -j MASQUERADE
	ip6tables -t nat -A POSTROUTING -s "$GATEWAY6" -o vxlan+ -j MASQUERADE
}

# root makes a root file system in memory: the machine's /usr, read-only, and everything else its own. What containers write lies on disk.
root() {
	mount --make-rprivate /
	mount -t tmpfs -o mode=755 tmpfs "$STATE/root"
	cd "$STATE/root"
	mkdir -p usr etc/cni/net.d etc/containerd var/lib/{containerd,kubelet,cni,calico} var/log var/tmp run/lock tmp proc sys dev root opt/cni/bin machine
	mkdir -p kubernetes images node pki
	chmod 1777 tmp var/tmp
	ln -s /run var/run
	mount --rbind /usr usr
	mount -o remount,bind,ro usr
	for dir in bin sbin lib lib64; do ln -s usr/$dir $dir; done
	for file in passwd group nsswitch.conf alternatives protocols services ld.so.cache ethertypes xtables.conf iproute2 ssl; do
		[ ! -e "/etc/$file" ] || cp -a "/etc/$file" etc/
	done
	echo "$NODE" >etc/hostname
	printf '127.0.0.1 localhost\n%s %s\n' "$IP" "$NODE" >etc/hosts
	echo "nameserver $GATEWAY" >etc/resolv.conf
	[ -s "$STATE/machine-id" ] || tr -d - </proc/sys/kernel/random/uuid >"$STATE/machine-id"
	cp "$STATE/machine-id" etc/machine-id
	mount --rbind /dev dev
	mount --make-rslave dev
	mount -t proc proc proc
	mount -t sysfs sysfs sys
	mount -t tmpfs -o mode=755 tmpfs run
	mkdir run/lock
	for dir in lib/calico lib/containerd lib/kubelet log; do mount --bind "$STATE/var/$dir" "var/$dir"; done
	mount --bind "$STATE/cni-conf" etc/cni/net.d
	mount --bind "$STATE/cni-bin" opt/cni/bin
	mount --bind "$KUBERNETES" kubernetes
	mount --bind "$IMAGES" images
	mount --bind "$STATE" node
	mount --bind "$PKI" pki
}

groups() {
	mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
	while read -r controllers _; do
		name=${controllers#name=}
		mkdir "sys/fs/cgroup/$name"
		[ "$name" = "$controllers" ] || controllers=none,$controllers
		mount -t cgroup -o "$controllers" cgroup "sys/fs/cgroup/$name"
	done <node/groups
}

# The kubelet writes these settings of the whole machine. Here it writes files.
settings() {
	mkdir run/sysctl
	for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
		path=${setting%=*}
		echo "${setting#*=}" >"run/sysctl/${path//\//-}"
		mount --bind "run/sysctl/${path//\//-}" "proc/sys/$path"
	done
}

network
root
groups
settings
pivot_root . machine
cd /
umount -l /machine
rmdir /machine
mount --make-rshared / # as kubelet and containers expect
export PATH=/usr/sbin:/usr/bin:/sbin:/bin:/kubernetes HOME=/root

# Without CAP_SYS_RESOURCE nobody may lower an oom_score_adj, hence restrict_oom_score_adj here and oomScoreAdj: 0 below.
cat >/etc/containerd/config.toml <<T
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.10.1"
  stream_server_address = "127.0.0.1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
T

# The disk is the whole machine's: nothing is accounted or evicted by it.
cat >/etc/kubelet.yaml <<T
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: /pki/ca.crt}
authorization: {mode: Webhook}
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
clusterDomain: cluster.local
clusterDNS: [$CLUSTER_DNS]
resolvConf: /etc/resolv.conf
localStorageCapacityIsolation: false
evictionHard: {memory.available: 50Mi, nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%"}
imageGCHighThresholdPercent: 100
syncFrequency: 10s
nodeStatusUpdateFrequency: 5s
T

# Its settings of connection tracking are the whole machine's too, hence the zeros.
cat >/etc/kube-proxy.yaml <<T
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: $PROXY_MODE
oomScoreAdj: 0
clientConnection: {kubeconfig: /node/kube-proxy.conf}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
T

# service NAME COMMAND: from now on it runs, and runs again when it has ended. Its process is in /run/services/NAME.pid.
declare -A services running
service() {
	local name=$1
	shift
	services[$name]=$*
}

mkdir /run/services
keep_services() {
	local name
	for name in "${!services[@]}"; do
		if [ -n "${running[$name]:-}" ] && kill -0 "${running[$name]}" 2>/dev/null; then continue; fi
		setsid ${services[$name]} >>"/node/log/$name.log" 2>&1 &
		running[$name]=$!
		echo $! >"/run/services/$name.pid"
	done
}

service containerd containerd
keep_services
until ctr version >/dev/null 2>&1; do sleep 0.2; done
if [ ! -e /var/lib/containerd/imported ]; then # a new disk
	for image in /images/*.tar /node/images/*.tar; do
		[ ! -e "$image" ] || ctr -n k8s.io images import --snapshotter overlayfs "$image"
	done
	touch /var/lib/containerd/imported
fi
service kubelet kubelet --config=/etc/kubelet.yaml --kubeconfig=/node/kubelet.conf "--hostname-override=$NODE" "--node-ip=$IP,$IP6" --v=2
service kube-proxy kube-proxy --config=/etc/kube-proxy.yaml "--hostname-override=$NODE" --v=2
set +e
while :; do
	keep_services
	sleep 0.5
done
