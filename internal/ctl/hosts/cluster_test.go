package hosts

import (
	"strings"
	"testing"
	"time"

	"github.com/muslin-cni/muslin/internal/ctl/cli"
	"github.com/muslin-cni/muslin/internal/etcdtest"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

func TestClusterDiagsHoldWhatEtcdHoldsAndNoSecrets(t *testing.T) {
	c := etcdtest.New(t).Store()
	pool, peer := (*api.IPPool)(nil).KindOf().Key("", "p"), (*api.BGPPeer)(nil).KindOf().Key("", "b")
	var txn store.Txn
	for key, value := range map[string]string{
		pool:                        `{"kind":"IPPool","spec":{"cidr":"10.0.0.0/8"}}`,
		peer:                        `{"kind":"BGPPeer","metadata":{"annotations":{"example.com/password":"hunter2"}}}`,
		api.HandleKey("net.c1"):     `{"block":{}}`,
		api.IdentityKey("node-1"):   `{"machineID":"m"}`,
		api.Root + "felix/v2/other": "not collected",
	} {
		txn.PutRaw(key, []byte(value), 0)
	}
	if _, err := c.Commit(t.Context(), &txn); err != nil {
		t.Fatal(err)
	}
	path, err := clusterDiags(t.Context(), cli.Env{Now: func() time.Time { return time.Unix(0, 0) }}, c, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	got := unzip(t, path)
	for file, want := range map[string]string{
		"etcd/ippools.txt":    pool + ` {"kind":"IPPool","spec":{"cidr":"10.0.0.0/8"}}` + "\n",
		"etcd/bgppeers.txt":   peer,
		"etcd/addresses.txt":  api.HandleKey("net.c1") + " ",
		"etcd/identities.txt": api.IdentityKey("node-1") + ` {"machineID":"m"}`,
	} {
		if !strings.HasPrefix(got[file], want) {
			t.Errorf("%s is %q; want %q", file, got[file], want)
		}
	}
	for file, text := range got {
		if strings.Contains(text, "hunter2") || strings.Contains(text, "not collected") {
			t.Errorf("%s holds too much: %s", file, text)
		}
	}
}
