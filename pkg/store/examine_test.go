package store_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/muslin-cni/muslin/internal/authority"
	"github.com/muslin-cni/muslin/internal/etcdtest"
	"github.com/muslin-cni/muslin/pkg/store"
)

// examine asks the one endpoint of a configuration.
func examine(t *testing.T, cfg store.Config) store.Member {
	t.Helper()
	got, err := store.Examine(t.Context(), cfg)
	if err != nil || len(got) != 1 {
		t.Fatalf("%v, %v", got, err)
	}
	return got[0]
}

func TestExamineTellsHowAMemberFares(t *testing.T) {
	for name, etcd := range map[string]*etcdtest.Server{"plain": etcdtest.New(t), "TLS": etcdtest.NewTLS(t)} {
		m := examine(t, etcd.Config())
		if m.Err != nil || !m.Leader || m.Version == "" || m.Size == 0 || m.Took <= 0 || len(m.Wrong) > 0 || m.Endpoint != etcd.Endpoint() {
			t.Errorf("%s: %+v", name, m)
		}
		if off := m.Asked.Sub(m.Clock).Abs(); m.Clock.IsZero() || off > time.Minute {
			t.Errorf("%s: its clock shows %v at %v by the same clock", name, m.Clock, m.Asked)
		}
	}
}

func TestExamineLogsInAsEveryCallDoes(t *testing.T) {
	etcd := etcdtest.New(t)
	etcd.EnableAuth("calico", "secret", "/calico/")
	cfg := etcd.Config()
	cfg.Username, cfg.Password = "calico", "secret"
	if m := examine(t, cfg); m.Err != nil || !m.Leader {
		t.Errorf("%+v", m)
	}
	cfg.Password = "wrong"
	if m := examine(t, cfg); !errors.Is(m.Err, store.ErrUnauthorized) {
		t.Errorf("with another password: %+v", m)
	}
}

func TestExamineSaysWhyAMemberDoesNotAnswer(t *testing.T) {
	etcd := etcdtest.NewTLS(t)
	other, err := authority.New("stranger")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := other.Write(dir, other.Pair()); err != nil {
		t.Fatal(err)
	}
	cfg := etcd.Config()
	cfg.TLS.CAFile = filepath.Join(dir, authority.CAFile)
	if m := examine(t, cfg); !errors.Is(m.Err, store.ErrHandshake) || !strings.Contains(m.Err.Error(), "unknown authority") || !m.Clock.IsZero() {
		t.Errorf("with another authority: %+v", m)
	}
	etcd.Stop()
	if m := examine(t, etcd.Config()); !errors.Is(m.Err, store.ErrUnavailable) || !strings.Contains(m.Err.Error(), "connection refused") {
		t.Errorf("when it is stopped: %+v", m)
	}
}

func TestExamineReadsAClockThatIsWrong(t *testing.T) {
	const then = "Sat, 21 Nov 2020 12:00:00 GMT"
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Date", then) }))
	defer s.Close()
	m := examine(t, store.Config{Endpoints: []string{s.URL}, Timeout: 5 * time.Second})
	if m.Err == nil || m.Clock.Format(http.TimeFormat) != then || time.Since(m.Asked) > time.Minute {
		t.Errorf("%+v", m)
	}
}

func TestExamineRefusesSettingsThatMakeNoSense(t *testing.T) {
	if got, err := store.Examine(t.Context(), store.Config{}); err == nil {
		t.Errorf("no endpoints: %v", got)
	}
}
