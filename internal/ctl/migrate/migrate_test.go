package migrate_test

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/ctl/cli"
	"github.com/muslin-cni/muslin/internal/ctl/clitest"
	"github.com/muslin-cni/muslin/internal/ctl/migrate"
	"github.com/muslin-cni/muslin/internal/etcdtest"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

var update = flag.Bool("update", false, "rewrite what scripts compare with")

func TestMain(m *testing.M) { clitest.Main(m, migrate.Command) }

func TestGoldenScripts(t *testing.T) { clitest.Run(t, *update, nil) }

func connect(t *testing.T, s *etcdtest.Server) *store.Client {
	t.Helper()
	c, err := store.New(s.Config())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// run runs "datastore migrate ..." on the server.
func run(t *testing.T, s *etcdtest.Server, in string, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	c := migrate.Command(cli.Env{
		Program: "muslinctl", In: strings.NewReader(in), Out: &out, Err: &out, Now: time.Now,
		Connect: func(context.Context) (*store.Client, error) { return store.New(s.Config()) },
	})
	c.SilenceErrors, c.SilenceUsage = true, true
	c.SetArgs(append([]string{"migrate"}, args...))
	err := c.ExecuteContext(t.Context())
	return out.String(), err
}

// contents is all that the server holds.
func contents(t *testing.T, c *store.Client) map[string]string {
	t.Helper()
	kvs, _, err := c.ReadAll(t.Context(), 500, store.Range{Key: "/", Prefix: true})
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, kv := range kvs {
		out[kv.Key] = string(kv.Value)
	}
	return out
}

// fill writes keys: more than a transaction takes, with values that no encoder of ours would write.
func fill(t *testing.T, c *store.Client) {
	t.Helper()
	put := func(key, value string) {
		var txn store.Txn
		txn.PutRaw(key, []byte(value), 0)
		if _, err := c.Commit(t.Context(), &txn); err != nil {
			t.Fatal(err)
		}
	}
	put(cli.ClusterKey(), `{"spec": {"datastoreReady":false,"later":"<&>"},  "kind":"ClusterInformation"}`)
	for i := range 300 {
		put(fmt.Sprintf("%snet.%d", api.HandlesRoot, i), `{"block":{"10.0.0.0/30":1},"deleted":false}`)
	}
	put(api.ResourcesRoot+"tiers/pretty", "{\n  \"kind\": \"Tier\"\n}\n")
	put(api.ResourcesRoot+"tiers/bytes", "\xff\x00\r")
	put(api.HostsRoot+"node-1", "")
	put(api.IdentityKey("node-1"), `{"machineID":"m","nodeUID":"u"}`)
	big := `"` + strings.Repeat("x", 900<<10) + `"`
	put(api.BlocksRoot+"big-1", big)
	put(api.BlocksRoot+"big-2", big)
}

func TestImportOfAnExportRestoresEveryByte(t *testing.T) {
	from, to := etcdtest.New(t), etcdtest.New(t)
	source, target := connect(t, from), connect(t, to)
	fill(t, source)
	file, err := run(t, from, "", "export")
	if err != nil {
		t.Fatal(err)
	}
	said, err := run(t, to, file, "import", "-f", "-")
	if err != nil {
		t.Fatal(err)
	}
	if want := "Imported 307 keys.\nThe datastore is locked, as it was when it was exported: muslinctl datastore migrate unlock\n"; said != want {
		t.Errorf("import says %q, want %q", said, want)
	}
	if diff := cmp.Diff(contents(t, source), contents(t, target)); diff != "" {
		t.Errorf("import of an export (-source +target):\n%s", diff)
	}
	again, err := run(t, to, "", "export")
	if err != nil {
		t.Fatal(err)
	}
	if again != file {
		t.Error("an export of what was imported is not the file that was imported")
	}
}

func TestInterruptedImportIsRunAgain(t *testing.T) {
	from, to := etcdtest.New(t), etcdtest.New(t)
	source, target := connect(t, from), connect(t, to)
	fill(t, source)
	file, err := run(t, from, "", "export")
	if err != nil {
		t.Fatal(err)
	}
	// As after its first transactions: some keys are there, and no ClusterInformation.
	var txn store.Txn
	for i := range 100 {
		txn.PutRaw(fmt.Sprintf("%snet.%d", api.HandlesRoot, i), []byte(`{"block":{"10.0.0.0/30":1},"deleted":false}`), 0)
	}
	if _, err := target.Commit(t.Context(), &txn); err != nil {
		t.Fatal(err)
	}
	if said, err := run(t, to, file, "import", "-f", "-"); err != nil || !strings.HasPrefix(said, "Imported 207 keys.\n") {
		t.Fatalf("second import says %q, %v", said, err)
	}
	if diff := cmp.Diff(contents(t, source), contents(t, target)); diff != "" {
		t.Errorf("interrupted import, run again (-source +target):\n%s", diff)
	}
}

func TestEtcdAwayIsNamed(t *testing.T) {
	s := etcdtest.New(t)
	s.Stop()
	if said, err := run(t, s, "", "lock"); err == nil || said != "" || !strings.Contains(err.Error(), "etcd cannot be reached") {
		t.Errorf("lock without etcd says %q, %v", said, err)
	}
}
