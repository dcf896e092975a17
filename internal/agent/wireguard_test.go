package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/config"
	"github.com/muslin-cni/muslin/internal/startup"
	"github.com/muslin-cni/muslin/pkg/store"
)

// apiText is an API server that a test makes up.
type apiText string

func (a apiText) Get(_ context.Context, path string, into any) error {
	if path != apiSlices || a == "" {
		return errors.New("no answer")
	}
	return json.Unmarshal([]byte(a), into)
}

const apiEndpoints = `{"items": [{"addressType": "IPv4", "ports": [{"name": "https", "port": 6443}],
	"endpoints": [{"addresses": ["172.30.1.2"]}, {"addresses": ["172.30.1.3", "api.example"]}]}, {"ports": [{}], "endpoints": [{"addresses": ["172.30.1.4"]}]}]}`

// looking is servers whose questions a test answers.
func looking(endpoints []string, kube startup.Kubernetes, names map[string]string) *servers {
	s := newServers(store.Config{Endpoints: endpoints}, kube)
	s.host = func(_ context.Context, name string) ([]netip.Addr, error) {
		a, err := netip.ParseAddr(names[name])
		return []netip.Addr{a}[:min(1, len(names[name]))], err
	}
	return s
}

func (s *servers) text() string {
	var out []string
	for _, a := range s.addrs() {
		out = append(out, a.String())
	}
	return strings.Join(out, " ")
}

func TestServersAreFoundHoweverTheyAreNamed(t *testing.T) {
	s := looking([]string{"https://172.30.1.1:2379", "https://etcd.example:4001", "http://[fd00::9]"}, apiText(apiEndpoints), map[string]string{"etcd.example": "172.30.1.2"})
	if got := s.text(); got != "172.30.1.1:2379 172.30.1.1:2380 [fd00::9]:2379 [fd00::9]:2380" {
		t.Errorf("before a look: %s", got)
	}
	s.look(t.Context())
	const all = "172.30.1.1:2379 172.30.1.1:2380 172.30.1.2:4001 172.30.1.2:4002 172.30.1.2:6443 172.30.1.3:6443 [fd00::9]:2379 [fd00::9]:2380"
	if got := s.text(); got != all {
		t.Errorf("after it: %s", got)
	}
	<-s.changed()
	s.kube, s.host = apiText(""), func(context.Context, string) ([]netip.Addr, error) { return nil, errors.New("no answer") }
	s.look(t.Context())
	if got := s.text(); got != all || len(s.news) > 0 {
		t.Errorf("when nobody answers any more: %s, news %d", got, len(s.news))
	}
}

func TestServersThatDNSNamesAreFound(t *testing.T) {
	s := looking(nil, nil, map[string]string{"etcd-1.example": "172.30.1.1", "etcd-2.example": "172.30.1.2"})
	s.find = func(context.Context) ([]string, error) {
		return []string{"https://etcd-1.example:2379", "https://etcd-2.example:2379"}, nil
	}
	s.look(t.Context())
	s.find = func(context.Context) ([]string, error) { return nil, errors.New("no SRV records") }
	s.look(t.Context())
	if got := s.text(); got != "172.30.1.1:2379 172.30.1.1:2380 172.30.1.2:2379 172.30.1.2:2380" {
		t.Errorf("found are %s", got)
	}
}

func TestServersAreLookedForOnlyWhileHostsEncrypt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		s := looking(nil, nil, nil)
		s.find = func(context.Context) ([]string, error) {
			asked++
			return nil, fmt.Errorf("question %d", asked)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		s.begin(ctx, false)
		go func() { done <- s.run(ctx) }()
		var got []int
		step := func(hosts bool) {
			s.needed(hosts)
			synctest.Wait()
			got = append(got, asked)
		}
		step(false)
		step(true)
		step(true)
		step(false)
		s.begin(ctx, true)
		got = append(got, asked)
		if d := cmp.Diff([]int{0, 1, 1, 1, 2}, got); d != "" {
			t.Error(d)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// The server of a kubeconfig may be a balancer's address on a node, which the API servers do not name.
func TestServerOfAKubeconfigIsOneOfThem(t *testing.T) {
	srv := httptest.NewServer(http.NotFoundHandler())
	defer srv.Close()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{"apiVersion": "v1", "kind": "Config", "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
		"clusters": [{"name": "c", "cluster": {"server": %q}}], "users": [{"name": "u", "user": {}}]}`, srv.URL)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s := looking(nil, kubernetes(config.Node{Kubeconfig: file}, func(string) string { return "" }), nil)
	s.look(t.Context())
	if at := netip.MustParseAddrPort(strings.TrimPrefix(srv.URL, "http://")); !slices.Contains(s.addrs(), at) {
		t.Errorf("found are %s, want %v among them", s.text(), at)
	}
}
