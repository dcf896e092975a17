package health

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func get(t *testing.T, h http.Handler, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, http.NoBody))
	return w.Code, w.Body.String()
}

func TestReadyOnceEveryPartHasHappened(t *testing.T) {
	p := NewPulse(time.Now, Part{"a", "begun"}, Part{"b", "done"})
	p.Ready("b")
	if code, body := get(t, p.Handler(), "/readiness"); code != 503 || body != "a: not yet begun\n" {
		t.Errorf("half of it: %d %q", code, body)
	}
	p.Ready("a")
	if code, body := get(t, p.Handler(), "/readiness"); code != 200 || body != "ready\n" {
		t.Errorf("all of it: %d %q", code, body)
	}
	if code, _ := get(t, p.Handler(), "/else"); code != 404 {
		t.Errorf("another path: %d", code)
	}
}

func TestConditionsSayWhatIsWrongAndChangeNothingElse(t *testing.T) {
	wrong := "10.0.0.2: Active\n"
	p := NewPulse(time.Now)
	h := p.Handler(Condition{Name: "peers", Wrong: func() string { return wrong }, Well: "all are there"})
	if code, body := get(t, h, "/peers"); code != 503 || body != wrong {
		t.Errorf("%d %q", code, body)
	}
	if code, _ := get(t, h, "/readiness"); code != 200 {
		t.Errorf("a condition makes the node not ready: %d", code)
	}
	wrong = ""
	if code, body := get(t, h, "/peers"); code != 200 || body != "all are there\n" {
		t.Errorf("%d %q", code, body)
	}
}

func TestLivesWhileNoRoundTakesTooLong(t *testing.T) {
	now := time.Unix(0, 0)
	p := NewPulse(func() time.Time { return now })
	code := func() int {
		c, _ := get(t, p.Handler(), "/liveness")
		return c
	}
	p.Limit(time.Minute)
	now = now.Add(time.Hour) // idle
	if code() != 200 {
		t.Error("an idle agent counts as stuck")
	}
	p.Begin()
	now = now.Add(61 * time.Second)
	if code() != 503 {
		t.Error("a round of 61 s does not count as stuck")
	}
	p.Limit(0)
	if code() != 200 {
		t.Error("without a limit a round counts as stuck")
	}
	p.Limit(time.Minute)
	p.End()
	if code() != 200 {
		t.Error("a round that has ended counts as stuck")
	}
}

// notes is a log that may be read while it is written.
type notes struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (n *notes) Write(p []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.b.Write(p)
}

func (n *notes) count(text string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return strings.Count(n.b.String(), text)
}

func until(t *testing.T, good func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := good()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatal(err)
		case <-tick.C:
		}
	}
}

func TestPortOpensMovesAndCloses(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	log := &notes{}
	p := NewPort("tests", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "here") }), slog.New(slog.NewTextHandler(log, nil)))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	addr := taken.Addr().String()
	ask := func() error {
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Second}
		resp, err := client.Get("http://" + addr)
		if err != nil {
			return err
		}
		defer func() { _ = resp.Body.Close() }()
		if body, _ := io.ReadAll(resp.Body); string(body) != "here" {
			return errors.New("another answer: " + string(body))
		}
		return nil
	}

	p.Set(addr)
	until(t, func() error {
		if n := log.count("port not opened"); n != 1 {
			return errors.New("that the port is taken was not said")
		}
		return nil
	})
	_ = taken.Close()
	p.Set("") // asking anew spares the test the wait
	p.Set(addr)
	p.Set("")
	p.Set(addr)
	until(t, ask)
	p.Set("")
	until(t, func() error {
		if ask() == nil {
			return errors.New("the port is open still")
		}
		return nil
	})
	p.Set(addr)
	until(t, ask)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if ask() == nil {
		t.Error("the port is open after the end")
	}
}

// TestStrangersTakeNoMoreThanTheyMay opens connections that say nothing, and one that says too much.
func TestStrangersTakeNoMoreThanTheyMay(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	p := NewPort("tests", http.NotFoundHandler(), slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	p.Set(addr)
	var open []net.Conn
	dial := func() (c net.Conn, err error) {
		if c, err = net.Dial("tcp", addr); err == nil {
			open = append(open, c)
			err = c.SetDeadline(time.Now().Add(20 * time.Second))
		}
		return c, err
	}
	until(t, func() error { _, err := dial(); return err })
	for len(open) < mostConnections {
		if _, err := dial(); err != nil {
			t.Fatal(err)
		}
	}
	over, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if _, err := over.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) || time.Since(began) > headerTimeout {
		t.Errorf("one connection more than may be stays open for %v: %v", time.Since(began), err)
	}
	for _, c := range open {
		_ = c.Close()
	}
	until(t, func() error {
		c, err := dial()
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(c, "GET / HTTP/1.0\r\nX: %s\r\n\r\n", strings.Repeat("x", 2*mostHeader))
		text, _ := io.ReadAll(c)
		if err == nil && !strings.Contains(string(text), "431") {
			err = fmt.Errorf("a header of %d bytes is answered by %q", 2*mostHeader, text)
		}
		return err
	})
}

func TestPortThatIsTakenIsTriedAgainAndSaidOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &notes{}
		p := NewPort("tests", http.NotFoundHandler(), slog.New(slog.NewTextHandler(log, nil)))
		ctx, cancel := context.WithTimeout(t.Context(), 10*retryInterval)
		defer cancel()
		p.Set("192.0.2.1:1") // an address of nobody's
		if err := p.Run(ctx); err != nil {
			t.Error(err)
		}
		if n := log.count("port not opened"); n != 1 {
			t.Errorf("said %d times", n)
		}
	})
}

func TestMetricsTellWhatIsKnown(t *testing.T) {
	devices := []WireGuard{{Name: "wireguard.cali", PublicKey: "A=", Port: 51820, Peers: []WireGuardPeer{
		{PublicKey: "B=", Endpoint: netip.MustParseAddrPort("172.30.1.2:51820"), Received: 148, Sent: 92, Handshake: time.Unix(1700000000, 5)}, {PublicKey: "C="}}}}
	m := NewMetrics("n1", func() Facts {
		return Facts{WireGuard: devices, Pods: &Pods{Known: 9, Asked: 2}, LocalEndpoints: 3, Hosts: 2, Connected: true, Synced: true, Problems: 1, Lag: 1500 * time.Millisecond, Addresses: Addresses{Blocks: 2, InUse: 40, Borrowed: 1, Free: 88}, Planned: Planned{
			Routes: 7, Sets: map[string]int{"4": 2, "6": 1}, Chains: map[ByTable]int{{"4", "nat"}: 2}, Rules: map[ByTable]int{{"4", "nat"}: 5}}}
	})
	m.Applied(time.Second, map[string]int{"routes": 4}, true)
	m.Request("add", time.Millisecond, errors.New("no"))
	m.Stage("etcd", time.Second)
	_, body := get(t, m.Handler(), "/metrics")
	for _, want := range []string{
		`felix_host{host="n1"} 1`, "felix_active_local_endpoints 3", "felix_cluster_num_hosts 2", "felix_resync_state 3", "muslin_problems 1", "felix_route_table_num_routes 7",
		`felix_ipsets_calico{ip_version="6"} 1`, "felix_ipsets_total 3", `felix_iptables_rules{ip_version="4",table="nat"} 5`, "felix_int_dataplane_failures 1",
		"felix_int_dataplane_apply_time_seconds_sum 1", `muslin_kernel_changes_total{table="routes"} 4`, `muslin_request_seconds_count{result="error",verb="add"} 1`,
		`muslin_add_stage_seconds_count{stage="etcd"} 1`, "muslin_datastore_lag_seconds 1.5", "muslin_node_blocks 2", "muslin_node_addresses_in_use 40",
		"muslin_node_addresses_borrowed 1", "muslin_node_addresses_free 88",
		`wireguard_meta{hostname="n1",interface_name="wireguard.cali",listening_port="51820",public_key="A="} 1`,
		`wireguard_bytes_rcvd{hostname="n1",peer_endpoint="172.30.1.2:51820",peer_key="B=",public_key="A="} 148`,
		`wireguard_bytes_sent{hostname="n1",peer_endpoint="172.30.1.2:51820",peer_key="B=",public_key="A="} 92`,
		`wireguard_latest_handshake_seconds{hostname="n1",peer_endpoint="172.30.1.2:51820",peer_key="B=",public_key="A="} 1.7e+09`,
		`wireguard_latest_handshake_seconds{hostname="n1",peer_endpoint="",peer_key="C=",public_key="A="} 0`,
		`muslin_pod_facts_total{from="memory"} 9`, `muslin_pod_facts_total{from="api-server"} 2`,
	} {
		if !strings.Contains(body, want+"\n") {
			t.Errorf("there is no %q in\n%s", want, body)
		}
	}
	if strings.Contains(body, "go_goroutines") {
		t.Error("the runtime's metrics are there though nobody included them")
	}
	m.Include(true, true)
	if _, body := get(t, m.Handler(), "/metrics"); !strings.Contains(body, "go_goroutines") || !strings.Contains(body, "process_") {
		t.Error("the runtime's and the process's metrics are not there")
	}
}
