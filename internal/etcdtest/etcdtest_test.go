package etcdtest_test

import (
	"errors"
	"testing"

	"github.com/muslin-cni/muslin/internal/etcdtest"
	"github.com/muslin-cni/muslin/pkg/store"
)

func TestStopTakesEtcdAwayAndStartBringsItsDataBack(t *testing.T) {
	s := etcdtest.New(t)
	c := s.Store()
	var put store.Txn
	put.PutRaw("/a", []byte("1"), 0)
	if _, err := c.Commit(t.Context(), &put); err != nil {
		t.Fatal(err)
	}
	s.Stop()
	if _, _, err := c.Read(t.Context(), store.Range{Key: "/a"}); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("read with etcd stopped: error = %v, want ErrUnavailable", err)
	}
	s.Start()
	got, _, err := s.Store().Read(t.Context(), store.Range{Key: "/a"})
	if err != nil {
		t.Fatal(err)
	}
	if len(got[0]) != 1 || string(got[0][0].Value) != "1" {
		t.Errorf("after the restart /a holds %v, want 1", got[0])
	}
}
