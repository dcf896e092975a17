package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/muslin-cni/muslin/internal/lab"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam/block"
)

const (
	endpointsRoot = api.ResourcesRoot + "workloadendpoints/"
	clusterKey    = api.ResourcesRoot + "clusterinformations/default"
)

// An etcd of three members loses some of them, fills, and lets nobody in; then what it holds is wrong.
func TestDoctorFindsWhatAilsEtcdAndItsBooks(t *testing.T) {
	p := onePatient(t, func(o *lab.Options) { o.Members, o.EtcdQuota = 3, 12<<20 })
	p.suffersAll(t, p.ofMembers())
	t.Run("who is not root", func(t *testing.T) { p.notRoot(t) })
	t.Run("in a container", func(t *testing.T) { p.contained(t) })
	t.Run("a host without Muslin", func(t *testing.T) { p.bare(t) })
	t.Run("an etcd that does not answer, and a file that hangs", func(t *testing.T) { p.hangs(t) })
	p.isWell(t)
	for _, node := range []string{"node-1", "node-2"} { // nobody heals what follows
		must(t, p.l.StopAgent(t.Context(), node))
	}
	p.suffersAll(t, p.ofPools())
	p.suffersAll(t, p.ofAddresses(t))
	t.Run("an etcd that is slow, and another's clock", func(t *testing.T) { p.farAway(t) })
	t.Run("nonsense in etcd", func(t *testing.T) { p.nonsense(t) })
	for _, node := range []string{"node-1", "node-2"} {
		must(t, p.l.StartAgent(t.Context(), node))
	}
	p.isWell(t)
}

func (p patient) ofMembers() []illness {
	kill := func(members ...int) func(t *testing.T) {
		return func(t *testing.T) {
			for _, m := range members {
				must(t, p.l.SignalEtcd(t.Context(), m, unix.SIGKILL))
			}
		}
	}
	start := func(t *testing.T) { must(t, p.l.StartEtcd(t.Context())) }
	drain := func(t *testing.T) { put(t, p.l, "/filler/", emptied) }
	cluster := p.keeps(clusterKey)
	return []illness{
		{"one member is away", kill(1), []string{"warning etcd: http://172.30.0.2:2379: does not answer"}, start},
		{"two members are away", kill(1, 2), []string{"error etcd: http://172.30.0.1:2379: it knows no leader: there is no quorum", "warning etcd: http://172.30.0.3:2379: does not answer", "error etcd: data: endpoints answer, but nothing can be read", "unknown routes: : not known while etcd cannot be read <- etcd"}, start},
		{"etcd is nearly full", func(t *testing.T) { put(t, p.l, "/filler/", filled) }, []string{"warning etcd: http://172.30.0.1:2379: it is nearly full: 1"}, drain},
		{"etcd is full", func(t *testing.T) { put(t, p.l, "/filler/", brimful) }, []string{"error etcd: http://172.30.0.1:2379: alarm NOSPACE: it is full ("}, drain},
		{"etcd lets nobody in", func(t *testing.T) { put(t, p.l, "/", guarded) }, []string{"error etcd: http://172.30.0.1:2379: does not answer: etcd refused our credentials", "unknown identity: : not known while etcd cannot be read <- etcd"}, func(t *testing.T) { put(t, p.l, "/", unguarded) }},
		{"etcd lost what makes it a cluster's", func(t *testing.T) { cluster(t); put(t, p.l, clusterKey, gone) }, []string{"error etcd: ClusterInformation(default): is not there: etcd lost its data or never had any"}, cluster},
	}
}

// ofPools are pools that run out, in the order of their getting worse: two blocks of 64 addresses, one of each node.
func (p patient) ofPools() []illness {
	const tiny = api.ResourcesRoot + "ippools/tiny"
	pools, books := p.keeps(api.ResourcesRoot+"ippools/"), p.keeps(api.IPAMRoot)
	mend := func(t *testing.T) { pools(t); books(t) }
	limit := func(t *testing.T, c api.IPAMConfig) {
		c.AutoAllocateBlocks = true
		raw, err := api.Encode(&c, nil)
		must(t, err)
		put(t, p.l, api.IPAMConfigKey, string(raw))
	}
	with := func(others bool, ours, theirs int, strict bool) func(t *testing.T) {
		return func(t *testing.T) {
			mend(t) // the first call takes down what there is
			amend(t, p.l, poolKey, "IPPool", map[string]any{"disabled": !others})
			put(t, p.l, tiny, `{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{"name":"tiny"},"spec":{"cidr":"10.88.0.0/25","vxlanMode":"Always","ipipMode":"Never","blockSize":26,"nodeSelector":"all()"}}`)
			p.block(t, "10.88.0.0/26", "node-1", 64-ours)
			p.block(t, "10.88.0.64/26", "node-2", 64-theirs)
			limit(t, api.IPAMConfig{StrictAffinity: strict})
		}
	}
	return []illness{
		{"no pool serves the node", func(t *testing.T) { mend(t); amend(t, p.l, poolKey, "IPPool", map[string]any{"disabled": true}) }, []string{"error blocks: pools: no enabled pool serves this node"}, mend},
		{"a pool is nearly full", with(false, 2, 2, false), []string{"warning blocks: pool tiny: 97% of its addresses are in use"}, mend},
		{"a node without a free block", with(false, 0, 20, false), []string{"warning blocks: pool tiny: all its blocks are claimed, and this node's are full: new pods borrow addresses from other nodes' blocks (20 are free)"}, mend},
		{"a pool is exhausted, another is not", with(true, 0, 20, true), []string{"warning blocks: pool tiny: is exhausted; other pools have room"}, mend},
		{"all pools are exhausted", with(false, 0, 20, true), []string{"error blocks: pool tiny: is exhausted: new pods of this node get no address"}, mend},
		{"a node may have no more blocks", func(t *testing.T) {
			mend(t)
			for key, text := range values(t, p.l, api.BlocksRoot) {
				if strings.Contains(text, `"host:node-1"`) {
					p.fill(t, key, text, 0)
				}
			}
			limit(t, api.IPAMConfig{MaxBlocksPerHost: 1})
		}, []string{"error blocks: maxBlocksPerHost: the node has 1 block, as many as it may have, and all are full"}, mend},
	}
}

// ofAddresses are books that do not add up.
func (p patient) ofAddresses(t *testing.T) []illness {
	books, endpoints := p.keeps(api.IPAMRoot), p.keeps(endpointsRoot)
	ours, key := blockOf(t, p.l, "node-1"), ""
	for k := range values(t, p.l, endpointsRoot) {
		if strings.Contains(k, "node--1-k8s-b1") {
			key = k
		}
	}
	addr := pod(t, p.l, "b1").Addr.String()
	blockKey := api.BlockKey(netip.MustParsePrefix(ours))
	return []illness{
		{"an address leaked", func(t *testing.T) { endpoints(t); put(t, p.l, key, gone) }, []string{"warning blocks: no-endpoint: " + addr}, endpoints},
		{"an endpoint has an address that nobody gave it", func(t *testing.T) {
			endpoints(t)
			put(t, p.l, key, strings.ReplaceAll(values(t, p.l, key)[key], addr+"/32", "192.168.3.3/32"))
		}, []string{"error blocks: no-allocation: pod default/b1 on node node-1 has the address 192.168.3.3"}, endpoints},
		{"a block that cannot be read", func(t *testing.T) { books(t); put(t, p.l, blockKey, "{") }, []string{"error blocks: unreadable: "}, books},
	}
}

// block writes a node's block into etcd, with so many addresses given away.
func (p patient) block(t *testing.T, cidr, host string, used int) {
	t.Helper()
	b, err := block.New(netip.MustParsePrefix(cidr), host, time.Now())
	must(t, err)
	raw, err := api.Encode(b, nil)
	must(t, err)
	put(t, p.l, api.AffinityKey(host, b.CIDR), `{"state":"confirmed","deleted":false}`)
	p.fill(t, api.BlockKey(b.CIDR), string(raw), block.Size(b.CIDR)-used)
}

// fill gives a block's addresses away until so many are left.
func (p patient) fill(t *testing.T, key, text string, left int) {
	t.Helper()
	var b api.Block
	decode(t, key, text, &b)
	id := "filler-" + strings.ReplaceAll(b.CIDR.Addr().String(), ".", "-")
	got, full := block.Assign(&b, block.Free(&b)-left, block.Owner{HandleID: id, Attrs: map[string]string{api.AttrType: "x", api.AttrNode: "node-1"}})
	raw, err := api.Encode(full, nil)
	must(t, err)
	handle, err := api.Encode(&api.Handle{Block: map[string]int{b.CIDR.String(): len(got)}}, nil)
	must(t, err)
	put(t, p.l, api.HandleKey(id), string(handle))
	put(t, p.l, key, string(raw))
}

// farAway has the doctor reach etcd by somebody who takes his time, and whose clock is wrong.
func (p patient) farAway(t *testing.T) {
	far := p.relay(t)
	q := p
	q.env = []string{"ETCD_ENDPOINTS=http://" + far.addr}
	at := "etcd: http://" + far.addr + ": "
	for _, c := range []struct {
		delay, off time.Duration
		want       []string
	}{
		{200 * time.Millisecond, 20 * time.Second, []string{"warning " + at + "it took ", "warning etcd: data: a read by all members took ", "warning " + at + "its clock is ", " ahead of this host's"}},
		{1050 * time.Millisecond, -time.Hour, []string{"error " + at + "it took ", "error " + at + "its clock is ", " behind this host's"}},
	} {
		far.delay.Store(int64(c.delay))
		far.off.Store(int64(c.off))
		q.finds(t, c.want...)
		far.delay.Store(0)
		far.off.Store(0)
		q.findsNoMore(t, c.want)
	}
}

// relay is a way to etcd that can be made slow, and that says another time.
type relay struct {
	addr       string
	delay, off atomic.Int64 // nanoseconds: of each answer, and between the clocks
}

func (p patient) relay(t *testing.T) *relay {
	t.Helper()
	r := &relay{}
	var door net.Listener
	must(t, p.l.Within("fabric", func() (err error) { door, err = net.Listen("tcp4", "172.30.0.1:0"); return err }))
	r.addr = door.Addr().String()
	t.Cleanup(func() { _ = door.Close() })
	go func() {
		for {
			conn, err := door.Accept()
			if err != nil {
				return
			}
			go r.pass(conn, func() (c net.Conn, err error) {
				err = p.l.Within("fabric", func() (err error) { c, err = net.Dial("tcp4", "172.30.0.1:2379"); return err })
				return c, err
			})
		}
	}()
	return r
}

// pass answers the question for the time itself, and passes everything else on.
func (r *relay) pass(conn net.Conn, dial func() (net.Conn, error)) {
	defer func() { _ = conn.Close() }()
	in := bufio.NewReader(conn)
	if head, err := in.Peek(4); err != nil || string(head) == "GET " {
		body, date := "{}", time.Now().Add(time.Duration(r.off.Load())).UTC().Format(http.TimeFormat)
		_, _ = fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nDate: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", date, len(body), body)
		return
	}
	far, err := dial()
	if err != nil {
		return
	}
	defer func() { _ = far.Close() }()
	go func() { _, _ = io.Copy(far, in); _ = far.Close() }()
	type answer struct {
		text []byte
		due  time.Time
	}
	answers := make(chan answer, 1000)
	go func() {
		defer close(answers)
		for {
			buf := make([]byte, 64<<10)
			n, err := far.Read(buf)
			answers <- answer{buf[:n], time.Now().Add(time.Duration(r.delay.Load()))}
			if err != nil {
				return
			}
		}
	}()
	for a := range answers {
		<-time.After(time.Until(a.due))
		if _, err := conn.Write(a.text); err != nil {
			_ = far.Close() // and what it still says is nobody's
		}
	}
}

// nonsense puts what is no JSON, and what is JSON of nothing, under every key that the doctor reads: each is named, or is nobody's, and nothing else is in its way.
func (p patient) nonsense(t *testing.T) {
	c := p.etcd(t)
	var read []string
	kept := map[string]string{}
	for _, prefix := range []string{api.IPAMRoot, "/muslin/v1/nodes/", api.ResourcesRoot + "nodes/", api.ResourcesRoot + "ippools/", endpointsRoot, api.ResourcesRoot + "felixconfigurations/", clusterKey} {
		for key, value := range values(t, p.l, prefix) {
			kept[key] = value
			read = append(read, key)
		}
	}
	write := func(value func(key string) string) {
		for _, key := range read {
			_, err := c.Put(t.Context(), key, value(key))
			must(t, err)
		}
	}
	all := func(value string) { write(func(string) string { return value }) }
	all("{")
	p.finds(t, "error etcd: "+clusterKey+": cannot be read", "error etcd: /muslin/v1/nodes/node-1: cannot be read", "error identity: Node(node-1): is not in the datastore", "error blocks: unreadable: ")
	for _, value := range []string{"{}", "null", "[]", `""`, `{"spec":{}}`} {
		all(value)
		if lines, code := p.findings(t); code == nil {
			t.Errorf("with %s everywhere nothing is wrong: %s", value, strings.Join(lines, "\n"))
		}
	}
	write(func(key string) string { return kept[key] })
}

// etcd is a client of the first member.
func (p patient) etcd(t *testing.T) *clientv3.Client {
	t.Helper()
	dial := func(context.Context, string) (c net.Conn, err error) {
		err = p.l.Within("fabric", func() (err error) { c, err = net.Dial("tcp4", "172.30.0.1:2379"); return err })
		return c, err
	}
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{labEtcd}, DialOptions: []grpc.DialOption{grpc.WithContextDialer(dial)}, Logger: zap.NewNop()})
	must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// notRoot sees little, says so, and takes nothing for wrong for that.
func (p patient) notRoot(t *testing.T) {
	p.sh(t, "mkdir -m 755 /run/nobodys; install -m 755 "+p.bin+"/muslinctl /run/nobodys/")
	defer p.sh(t, "rm -r /run/nobodys")
	q := p
	q.run = []string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--no-new-privs", "/run/nobodys/muslinctl"}
	q.finds(t, "unknown agent: : not known: this command must run as root", "unknown kernel: iptables: not known: ", "unknown interference: nftables: not known: ", "unknown cni: 10-muslin.conflist: not known: ")
	lines, _ := q.findings(t)
	for _, l := range lines {
		if strings.HasPrefix(l, "error ") {
			t.Errorf("for want of rights: %s", l)
		}
	}
	var out, errs bytes.Buffer
	cmd := lab.Command{Args: slices.Concat(q.run, []string{"doctor", "--only=expiry"}), Stdout: &out, Stderr: &errs}
	if err := p.l.Exec(t.Context(), "node-1", cmd); err != nil || !strings.Contains(errs.String(), "does not run as root") {
		t.Errorf("%v: %s", err, errs.String())
	}
}

// contained looks from a root of its own, in which there is nothing but the command, and the host below a folder.
func (p patient) contained(t *testing.T) {
	const root = "/run/image"
	p.sh(t, "mkdir -p "+root+"/host "+root+"/proc "+root+"/dev; cp "+p.bin+"/muslinctl "+root+"; mount --rbind / "+root+"/host; mount --rbind /proc "+root+"/proc; mount --rbind /dev "+root+"/dev")
	c := p
	c.run, c.args = []string{"unshare", "--mount", "chroot", root, "/muslinctl"}, []string{"--root=/host"}
	c.isWell(t)
	p.sh(t, "iptables-legacy -t nat -N KUBE-SERVICES; echo '{' >/etc/cni/net.d/00-broken.conflist")
	c.finds(t, "warning kernel: iptables: both backends hold rules: legacy KUBE-SERVICES", "error cni: 00-broken.conflist: is no network configuration")
	p.sh(t, "iptables-legacy -t nat -X KUBE-SERVICES; rm /etc/cni/net.d/00-broken.conflist; umount -l "+root+"/host "+root+"/proc "+root+"/dev; rm -r "+root)
}

// bare is the doctor on a host that never had Muslin: the lab's fabric, whose files are the machine's.
func (p patient) bare(t *testing.T) {
	q := p
	q.where, q.args = "outside", []string{"--root=" + t.TempDir()}
	lines, code := q.findings(t)
	if code == nil || missing(lines, "error identity: Node(outside): is not in the datastore") && missing(lines, "error etcd: ") || missing(lines, "error agent: muslin-node: does not run") || missing(lines, "error cni: configurations: none is ours") || missing(lines, "unknown kernel: features: not known: the kernel says nowhere what it has") {
		t.Errorf("exit %v:\n%s", code, strings.Join(lines, "\n"))
	}
}

// hangs has a way to etcd on which packets vanish, and a certificate that is a pipe: all else is found, by one run that ends.
func (p patient) hangs(t *testing.T) {
	const list = "/etc/cni/net.d/10-muslin.conflist"
	p.sh(t, "mkfifo /run/pipe; cp "+list+" /run/saved; sed -i 's#\"etcd_endpoints\": \"[^\"]*\"#\"etcd_endpoints\": \"https://172.30.0.1:2379\", \"etcd_cert_file\": \"/run/pipe\"#' "+list+
		"; nft add table ip hole; nft add chain ip hole out '{ type filter hook output priority 0; }'; nft add rule ip hole out tcp dport 2379 drop; ip link add cni0 type bridge")
	lines, code := p.findings(t)
	for _, want := range []string{"error etcd: http://172.30.0.1:2379: does not answer: ", "unknown certificates: : not known: it was given up after ", "unknown blocks: : not known while etcd cannot be read <- etcd", "warning leftovers: cni0"} {
		if missing(lines, want) {
			t.Errorf("exit %v, and %q is not found in\n%s", code, want, strings.Join(lines, "\n"))
		}
	}
	p.sh(t, "nft delete table ip hole; ip link del cni0; cp /run/saved "+list+"; rm /run/pipe")
}
