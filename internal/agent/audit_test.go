package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/attachlock"
	"github.com/muslin-cni/muslin/internal/etcdtest"
	"github.com/muslin-cni/muslin/internal/feed"
	"github.com/muslin-cni/muslin/internal/nettest"
	"github.com/muslin-cni/muslin/internal/register"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
)

// host is a node with a real etcd and made-up links, whose audit a test runs by hand.
type host struct {
	t     *testing.T
	etcd  *etcdtest.Server
	c     *store.Client
	feed  *feed.Feed
	h     *register.Handler
	audit *audit
	links map[string]bool
	clock time.Time
	log   *strings.Builder
}

func newHost(t *testing.T) *host {
	t.Helper()
	srv := etcdtest.New(t)
	h := &host{t: t, etcd: srv, c: srv.Store(), links: map[string]bool{}, clock: time.Now(), log: &strings.Builder{}}
	h.put(ipam.ClusterKey(), `{"kind":"ClusterInformation","metadata":{"name":"default"},"spec":{"datastoreReady":true}}`)
	for _, node := range []string{"node-1", "node-2"} {
		h.put(api.ResourcesRoot+"nodes/"+node, fmt.Sprintf(`{"kind":"Node","metadata":{"name":%q,"uid":"u"},"spec":{}}`, node))
	}
	h.put(api.IdentityKey("node-1"), `{"machineID":"m1","nodeUID":"u"}`)
	h.put(api.ResourcesRoot+"ippools/pool", `{"kind":"IPPool","metadata":{"name":"pool"},"spec":{"cidr":"10.0.0.0/24","blockSize":30}}`)
	h.follow()
	log := slog.New(slog.NewTextHandler(h.log, nil))
	h.h = h.handler("node-1")
	h.audit = &audit{AuditDeps: AuditDeps{
		Node: "node-1", Locks: t.TempDir(), Free: h.h.FreeOrphan, Log: log,
		Links:  func(context.Context) (map[string]bool, error) { return maps.Clone(h.links), nil },
		Linked: func(name string) (bool, error) { return h.links[name], nil },
		Now:    func() time.Time { return h.clock },
		Picture: func(ctx context.Context) (feed.Snapshot, bool, error) {
			a := &Agent{store: h.c, feed: h.feed}
			if err := a.catchUp(ctx); err != nil {
				return feed.Snapshot{}, false, err
			}
			s, ok := h.feed.Snapshot()
			return s, ok && frozen(s, "node-1", "m1") == "", nil
		},
		GiveUp: func(ctx context.Context, u ipam.Unused) error {
			_, err := ipam.ReturnBlock(ctx, h.c, u)
			return err
		},
	}}
	return h
}

func (h *host) handler(node string) *register.Handler {
	return register.New(register.Config{Client: h.c, Node: node, Machine: "m1"})
}

func (h *host) follow() {
	h.feed = feed.New(h.c, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		if err := h.feed.Run(ctx); !errors.Is(err, context.Canceled) {
			h.t.Errorf("feed: %v", err)
		}
	})
	h.t.Cleanup(done.Wait)
	h.t.Cleanup(cancel)
	h.caughtUp()
}

func (h *host) caughtUp() {
	h.t.Helper()
	rev, err := h.c.Revision(h.ctx())
	if err != nil {
		h.t.Fatal(err)
	}
	if err := h.feed.WaitFor(h.ctx(), rev); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) ctx() context.Context {
	ctx, cancel := context.WithTimeout(h.t.Context(), 20*time.Second)
	h.t.Cleanup(cancel)
	return ctx
}

func (h *host) put(key, value string) {
	h.t.Helper()
	if _, err := h.etcd.Etcd().Put(h.ctx(), key, value); err != nil {
		h.t.Fatal(err)
	}
}

func podRequest(pod string) attach.Request {
	return attach.Request{Network: "net", ContainerID: "c-" + pod, IfName: "eth0", HostIf: "cali" + pod, MAC: "02:00:00:00:00:01", Pod: attach.Pod{Namespace: "default", Name: pod}}
}

// add attaches a pod by a handler, as if its interface had been made, and returns its address.
func (h *host) add(by *register.Handler, pod string) netip.Addr {
	h.t.Helper()
	reply, err := by.Add(h.ctx(), podRequest(pod))
	if err != nil {
		h.t.Fatal(err)
	}
	h.links["cali"+pod] = true
	return reply.Addrs[0]
}

func (h *host) del(pod string) {
	h.t.Helper()
	if err := h.h.Del(h.ctx(), podRequest(pod)); err != nil {
		h.t.Fatal(err)
	}
}

// look runs the audit once, which must succeed.
func (h *host) look() {
	h.t.Helper()
	if !h.audit.look(h.ctx()) {
		h.t.Fatalf("the look failed:\n%s", h.log)
	}
}

func (h *host) view() ipam.View {
	h.t.Helper()
	v, err := ipam.LoadView(h.ctx(), h.c)
	if err != nil {
		h.t.Fatal(err)
	}
	return v
}

// want fails the test unless these pods, and no others, have endpoints.
func (h *host) want(pods ...string) {
	h.t.Helper()
	var got []string
	for _, e := range h.view().Endpoints {
		got = append(got, e.Value.Spec.Pod)
	}
	slices.Sort(got)
	if d := cmp.Diff(pods, got); d != "" {
		h.t.Errorf("endpoints (-want +got):\n%s\n%s", d, h.log)
	}
}

// sound fails the test if the audit of all addresses finds anything but these kinds.
func (h *host) sound(but ...ipam.FindingKind) {
	h.t.Helper()
	for _, f := range ipam.Audit(h.view()) {
		if !slices.Contains(but, f.Kind) {
			h.t.Error(f)
		}
	}
}

func TestPodWithoutInterfaceIsFreedAtStartAndNoOther(t *testing.T) {
	h := newHost(t)
	h.add(h.h, "alive")
	gone := h.add(h.h, "gone")
	delete(h.links, "caligone")
	h.add(h.handler("node-2"), "elsewhere")
	delete(h.links, "calielsewhere")
	h.put(api.ResourcesRoot+"workloadendpoints/default/node--1-k8s-foreign-eth0", // addresses by host-local
		`{"kind":"WorkloadEndpoint","metadata":{"name":"node--1-k8s-foreign-eth0","namespace":"default"},"spec":{"orchestrator":"k8s","node":"node-1","pod":"foreign","containerID":"x","endpoint":"eth0","ipNetworks":["192.0.2.1/32"],"interfaceName":"califoreign"}}`)
	h.put(api.ResourcesRoot+"workloadendpoints/default/node--1-other-o-eth0",
		`{"kind":"WorkloadEndpoint","metadata":{"name":"node--1-other-o-eth0","namespace":"default"},"spec":{"orchestrator":"other","node":"node-1","pod":"other","endpoint":"eth0","interfaceName":"tap0"}}`)
	unclaimed, err := h.h.Allocate(h.ctx(), attach.Request{Network: "bridged", ContainerID: "b", IfName: "eth0"})
	if err != nil {
		t.Fatal(err)
	}
	h.look()
	h.want("alive", "elsewhere", "other")
	h.sound(ipam.NoEndpoint)
	log := h.log.String()
	if !strings.Contains(log, "pod=gone") || !strings.Contains(log, "container=c-gone") || !strings.Contains(log, gone.String()) {
		t.Errorf("the correction is not logged:\n%s", log)
	}
	if !strings.Contains(log, "count=1") || !strings.Contains(log, unclaimed[0].Addr().String()) {
		t.Errorf("the address without endpoint is not said:\n%s", log)
	}
	h.look()
	if n := strings.Count(h.log.String(), "without an endpoint"); n != 1 {
		t.Errorf("the address without endpoint was said %d times", n)
	}
}

func TestRebootFreesEveryPod(t *testing.T) {
	h := newHost(t)
	var pods []string
	for i := range 9 {
		pods = append(pods, fmt.Sprint("p", i))
		h.add(h.h, pods[i])
	}
	h.want(pods...)
	clear(h.links)
	h.look()
	h.want()
	h.sound()
	if v := h.view(); len(v.Handles) > 0 {
		t.Errorf("%d handles are left", len(v.Handles))
	}
}

func TestPodWhoseLockIsHeldIsNotJudged(t *testing.T) {
	h := newHost(t)
	h.add(h.h, "busy")
	delete(h.links, "calibusy")
	lock, err := attachlock.Acquire(h.ctx(), h.audit.Locks, "calibusy")
	if err != nil {
		t.Fatal(err)
	}
	h.look()
	h.want("busy")
	lock.Release()
	h.look()
	h.want()
}

func TestInterfaceThatVanishesLaterMustBeMissingTwice(t *testing.T) {
	h := newHost(t)
	h.add(h.h, "a")
	h.add(h.h, "b")
	h.look()
	delete(h.links, "calia")
	delete(h.links, "calib")
	h.look()
	h.want("a", "b")
	h.links["calib"] = true
	h.look()
	h.want("b")
	delete(h.links, "calib")
	h.look()
	h.want("b")
	h.look()
	h.want()
}

// What etcd had received before it fell silent may be done when it speaks again, also after the DEL.
func TestAuditLooksSoonAfterACommandWhoseOutcomeIsUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		looks, doubts, up := 0, make(chan struct{}, 1), make(chan struct{})
		a := &audit{doubts: doubts, AuditDeps: AuditDeps{
			Log:     slog.New(slog.DiscardHandler),
			Links:   func(context.Context) (map[string]bool, error) { looks++; return nil, nil },
			Picture: func(context.Context) (feed.Snapshot, bool, error) { return feed.Snapshot{}, false, nil },
		}}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		done := make(chan error)
		go func() { done <- a.run(ctx, up) }()
		close(up)
		after := func(d time.Duration, want int) {
			t.Helper()
			time.Sleep(d)
			synctest.Wait()
			if looks != want {
				t.Errorf("%d looks, want %d", looks, want)
			}
		}
		after(0, 1)
		after(auditInterval/2, 1)
		doubts <- struct{}{}
		after(doubtInterval, 2)
		doubts <- struct{}{} // another puts none off
		after(doubtInterval, 3)
		after(doubtLooks*doubtInterval, 3+doubtLooks)
		after(auditInterval-time.Second, 3+doubtLooks)
		after(auditInterval/2, 4+doubtLooks)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestNothingIsFreedWithoutEtcd(t *testing.T) {
	h := newHost(t)
	h.add(h.h, "a")
	h.caughtUp()
	clear(h.links)
	h.etcd.Stop()
	if h.audit.look(h.ctx()) {
		t.Error("a look without etcd succeeded")
	}
	if len(h.audit.missing) > 0 || h.audit.looked {
		t.Error("pods were judged without etcd")
	}
	h.etcd.Start()
	h.links["calia"] = true
	nettest.Eventually(t, func() error {
		if !h.audit.look(h.ctx()) {
			return errors.New("the look fails though etcd is back")
		}
		return nil
	})
	h.want("a")
}

func TestPodThatIsAddedMeanwhileIsNotFreed(t *testing.T) {
	for _, finished := range []bool{false, true} {
		t.Run(fmt.Sprintf("finished %t", finished), func(t *testing.T) {
			h := newHost(t)
			picture := h.audit.Picture
			h.audit.Picture = func(ctx context.Context) (feed.Snapshot, bool, error) { // the links have been listed by now
				lock, err := attachlock.Acquire(ctx, h.audit.Locks, "calinew")
				if err != nil {
					t.Fatal(err)
				}
				h.add(h.handler("node-1"), "new") // the module's door
				if finished {
					lock.Release()
				} else {
					delete(h.links, "calinew")
					t.Cleanup(lock.Release)
				}
				return picture(ctx)
			}
			h.look()
			h.want("new")
			h.sound()
		})
	}
}

func TestWhatChangedSinceItWasJudgedIsNotFreed(t *testing.T) {
	h := newHost(t)
	h.add(h.h, "a")
	h.add(h.h, "b")
	h.caughtUp()
	old, _ := h.feed.Snapshot()
	h.audit.Picture = func(context.Context) (feed.Snapshot, bool, error) { return old, true, nil }
	h.del("a")
	again := podRequest("a")
	again.ContainerID = "another"
	if _, err := h.h.Add(h.ctx(), again); err != nil {
		t.Fatal(err)
	}
	h.del("b")
	clear(h.links)
	h.look()
	h.want("a")
	h.sound()
}

func TestMachineThatLostItsNameFreesAndAddsNothing(t *testing.T) {
	h := newHost(t)
	h.add(h.h, "a")
	h.caughtUp()
	old, _ := h.feed.Snapshot()
	h.put(api.IdentityKey("node-1"), `{"machineID":"m2","nodeUID":"u"}`)
	clear(h.links)
	h.caughtUp()
	h.audit.Picture = func(context.Context) (feed.Snapshot, bool, error) { return old, true, nil } // does not know it yet
	if h.audit.look(h.ctx()) {
		t.Error("a look under another machine's name succeeded")
	}
	h.want("a")
	for name, by := range map[string]*register.Handler{
		"from etcd": h.h,
		"from memory": register.New(register.Config{
			Client: h.c, Node: "node-1", Machine: "m1", Source: func() register.Source { return register.Picture(old) },
		}),
	} {
		_, err := by.Add(h.ctx(), podRequest("late"))
		var told *attach.Error
		if !errors.As(err, &told) || told.Code != attach.CodeNotAvailable || !strings.Contains(told.Msg, "belongs to machine m2") || !strings.Contains(told.Details, "adopt") {
			t.Errorf("an ADD %s: %v", name, err)
		}
	}
	h.del("a") // its own pod's
	h.want()
	h.sound()
}

func TestOtherInterfaceOfAContainerKeepsItsAddress(t *testing.T) {
	h := newHost(t)
	first := podRequest("two")
	if _, err := h.h.Add(h.ctx(), first); err != nil {
		t.Fatal(err)
	}
	second := first
	second.IfName, second.HostIf = "eth1", "calitwo1"
	if _, err := h.h.Add(h.ctx(), second); err != nil { // of one network: the two share the handle
		t.Fatal(err)
	}
	h.links["calitwo"] = true
	h.look()
	h.want("two", "two")
	clear(h.links)
	h.look()
	h.look()
	h.want()
	h.sound()
}

func TestPodOfABlockThatCannotBeReadIsNotJudged(t *testing.T) {
	h := newHost(t)
	a := h.add(h.h, "a")
	cidr := netip.PrefixFrom(a, 30).Masked()
	whole, err := store.Get[api.Block](h.ctx(), h.c, api.BlockKey(cidr))
	if err != nil {
		t.Fatal(err)
	}
	readable, err := api.Encode(whole.Value, whole.Raw())
	if err != nil {
		t.Fatal(err)
	}
	h.put(api.BlockKey(cidr), "{")
	clear(h.links)
	h.look()
	h.want("a")
	h.put(api.BlockKey(cidr), string(readable))
	h.look()
	h.look()
	h.want()
	h.sound()
}

func TestBlockThatStaysEmptyIsGivenBackButForTheLast(t *testing.T) {
	h := newHost(t)
	blocks := func(want int) {
		t.Helper()
		if got := len(h.view().Blocks); got != want {
			t.Errorf("%d blocks, want %d\n%s", got, want, h.log)
		}
	}
	for i := range 9 { // of four addresses each
		h.add(h.h, fmt.Sprint("p", i))
	}
	for i := range 9 {
		h.del(fmt.Sprint("p", i))
	}
	h.look()
	blocks(3)
	h.clock = h.clock.Add(emptyGrace / 2)
	used := h.add(h.h, "between")
	h.del("between")
	h.look()
	h.clock = h.clock.Add(emptyGrace/2 + time.Second)
	h.look()
	blocks(1)
	if left := h.view().Blocks[0].Value.CIDR; !left.Contains(used) {
		t.Errorf("%v is left, and %v was used last", left, used)
	}
	h.clock = h.clock.Add(2 * emptyGrace)
	h.look()
	blocks(1)
	h.sound()
}

// TestBlocksOfACrowdAreGivenBackAndNoPodIsHarmed has many pods come and go on a node that has every block, while another node borrows of one.
func TestBlocksOfACrowdAreGivenBackAndNoPodIsHarmed(t *testing.T) {
	h := newHost(t)
	h.put(api.ResourcesRoot+"ippools/pool", `{"kind":"IPPool","metadata":{"name":"pool"},"spec":{"cidr":"10.0.0.0/26","blockSize":30}}`)
	h.put(api.IPAMConfigKey, `{"strict_affinity":false,"auto_allocate_blocks":true,"maxBlocksPerHost":16}`)
	const pods = 63 // one less than the pool has addresses
	for n := range pods {
		h.add(h.h, fmt.Sprint("p", n))
	}
	guests := h.handler("node-2")
	guest := h.add(guests, "guest")
	for n := range pods {
		delete(h.links, fmt.Sprint("calip", n))
		h.del(fmt.Sprint("p", n))
	}
	h.caughtUp()
	h.look()
	h.clock = h.clock.Add(emptyGrace)
	h.look()
	var left []netip.Prefix
	for _, b := range h.view().Blocks {
		left = append(left, b.Value.CIDR)
	}
	if len(left) != 1 || !left[0].Contains(guest) {
		t.Errorf("blocks %v are left, want the one of the guest %v", left, guest)
	}
	h.want("guest")
	h.sound()
	if again := h.add(h.h, "again"); again == guest {
		t.Errorf("%v is given twice", again)
	}
	if got := h.add(guests, "guest"); got != guest {
		t.Errorf("the guest has %v, and had %v", got, guest)
	}
	h.sound()
}
