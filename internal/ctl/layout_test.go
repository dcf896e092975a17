package ctl_test

import (
	"bytes"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/ctl"
	"github.com/muslin-cni/muslin/internal/etcdtest"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// layoutCase is a command and what calicoctl put into etcd for it.
type layoutCase struct {
	name  string
	args  []string
	stdin string
	puts  []store.KV
}

// readLayout reads testdata/layout.md.
func readLayout(t *testing.T) (out []layoutCase) {
	t.Helper()
	text, err := os.ReadFile("testdata/layout.md")
	if err != nil {
		t.Fatal(err)
	}
	section := regexp.MustCompile("(?ms)^## ([^\n]+)\n```\n\\$ calicoctl ([^\n]+)\n<<EOF\n(.*?)^EOF\n(.*?)```$")
	for _, m := range section.FindAllStringSubmatch(string(text), -1) {
		c := layoutCase{name: m[1], args: strings.Fields(m[2]), stdin: m[3]}
		for line := range strings.Lines(m[4]) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
			c.puts = append(c.puts, store.KV{Key: key, Value: []byte(value)})
		}
		out = append(out, c)
	}
	if len(out) < 20 {
		t.Fatalf("testdata/layout.md has %d cases", len(out))
	}
	return out
}

// ownText is what every writer makes anew.
var ownText = regexp.MustCompile(`"(uid|creationTimestamp|clusterGUID)":"[^"]*"`)

// TestEveryKindIsStoredAsCalicoStoresIt runs the commands in order on one etcd and compares bytes.
func TestEveryKindIsStoredAsCalicoStoresIt(t *testing.T) {
	etcd := etcdtest.New(t)
	client := etcd.Store()
	seen := map[string]bool{}
	for _, c := range readLayout(t) {
		set := settings()
		var stdout, stderr bytes.Buffer
		set.Program, set.In, set.Out, set.Err = "calicoctl", strings.NewReader(c.stdin), &stdout, &stderr
		set.Env = func(name string) string {
			return map[string]string{"ETCD_ENDPOINTS": etcd.Endpoint()}[name]
		}
		if code := ctl.Run(t.Context(), set, c.args); code != 0 {
			t.Errorf("%s: exit %d: %s", c.name, code, &stderr)
			continue
		}
		for _, want := range c.puts {
			got, _, err := client.Read(t.Context(), store.Range{Key: want.Key})
			if err != nil {
				t.Fatal(err)
			}
			if len(got[0]) == 0 {
				t.Errorf("%s: %s is missing", c.name, want.Key)
				continue
			}
			same := func(b []byte) string { return ownText.ReplaceAllString(string(b), `"$1":"…"`) }
			if diff := cmp.Diff(same(want.Value), same(got[0][0].Value)); diff != "" {
				t.Errorf("%s: %s (-calicoctl +ours):\n%s", c.name, want.Key, diff)
			}
			seen[strings.Split(strings.TrimPrefix(want.Key, api.ResourcesRoot), "/")[0]] = true
		}
	}
	unmeasured := unmeasured()
	for _, k := range api.Kinds() {
		if _, known := unmeasured[k.Name]; !known && !k.Hidden && !seen[k.Plural] {
			t.Errorf("no case stores a %s", k.Name)
		}
	}
}
