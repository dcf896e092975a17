package ctl_test

import (
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/internal/ctl/manifest"
	"github.com/muslin-cni/muslin/internal/etcdtest"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// unmeasured are kinds of which layout.md has no case.
func unmeasured() map[string]string {
	return map[string]string{
		"CalicoNodeStatus": `{"apiVersion":"projectcalico.org/v3","kind":"CalicoNodeStatus","metadata":{"name":"trial"},"spec":{"node":"n1","classes":["Agent","BGP","Routes"],"updatePeriodSeconds":10},
"status":{"lastUpdated":"2026-11-21T12:00:00Z","agent":{"birdV4":{"state":"Ready"},"birdV6":{}},"bgp":{"numberEstablishedV4":1,"numberNotEstablishedV4":0,"numberEstablishedV6":0,"numberNotEstablishedV6":0,
"peersV4":[{"peerIP":"10.0.0.2","type":"NodeMesh","state":"Established","since":"08:59:56"}]},
"routes":{"routesV4":[{"type":"FIB","destination":"10.1.0.0/26","gateway":"10.0.0.2","interface":"eth0","learnedFrom":{"sourceType":"NodeMesh","peerIP":"10.0.0.2"}}]}}}`,
		"StagedNetworkPolicy": `{"apiVersion":"projectcalico.org/v3","kind":"StagedNetworkPolicy","metadata":{"name":"trial"},"spec":{"order":10,"selector":"a == 'b'",
"ingress":[{"action":"Allow","protocol":"TCP","source":{"nets":["10.0.0.0/8"]},"destination":{"ports":[80,"90:99"]}}]}}`,
		"StagedKubernetesNetworkPolicy": `{"apiVersion":"projectcalico.org/v3","kind":"StagedKubernetesNetworkPolicy","metadata":{"name":"trial"},"spec":{"podSelector":{"matchLabels":{"a":"b"}},
"ingress":[{"ports":[{"protocol":"TCP","port":80,"endPort":90}],"from":[{"ipBlock":{"cidr":"10.0.0.0/8","except":["10.1.0.0/16"]}},{"namespaceSelector":{}}]}],"policyTypes":["Ingress"]}}`,
	}
}

// samples are one object of each kind that people write, as JSON or YAML.
func samples(t *testing.T) map[string]string {
	t.Helper()
	out := unmeasured()
	for _, c := range readLayout(t) {
		found, err := manifest.Decode(c.name, []byte(c.stdin))
		if err != nil || len(found) != 1 {
			continue // a patch
		}
		k := found[0].Object.KindOf()
		if _, known := out[k.Name]; !known && !k.ReadOnly {
			out[k.Name] = c.stdin
		}
	}
	for _, k := range api.Kinds() {
		if _, ok := out[k.Name]; !ok && !k.Hidden && !k.ReadOnly {
			t.Fatalf("no sample of %s", k.Name)
		}
	}
	return out
}

// foreign is what only a Go program would print.
var foreign = regexp.MustCompile(`0x[0-9a-f]{6}|<nil>|\{\{|&\{|%!|map\[`)

func TestEveryKindIsWrittenAndPrintedByEveryVerbUnderEachOfItsNames(t *testing.T) {
	etcd := etcdtest.New(t)
	env := map[string]string{"ETCD_ENDPOINTS": etcd.Endpoint()}
	all := samples(t)
	do := func(stdin string, args ...string) string {
		t.Helper()
		got := muslinctl(t, env, stdin, args...)
		if got.code != 0 {
			t.Errorf("%v: %+v", args, got)
		}
		if foreign.MatchString(got.stdout + got.stderr) {
			t.Errorf("%v prints Go: %s%s", args, got.stdout, got.stderr)
		}
		return got.stdout
	}
	do(all["Tier"], "apply", "-f", "-") // policies name it
	for _, kind := range slices.Sorted(maps.Keys(all)) {
		found, err := manifest.Decode(kind, []byte(all[kind]))
		if err != nil {
			t.Fatal(err)
		}
		o := found[0].Object
		namespace := []string{}
		if o.Meta().Namespace != "" {
			namespace = []string{"-n", o.Meta().Namespace}
		}
		on := func(args ...string) []string { return append(args, namespace...) }
		name := o.Meta().Name
		do(all[kind], "validate", "-f", "-")
		for _, word := range o.KindOf().Words() {
			do(all[kind], "apply", "-f", "-")
			if got := do("", on("get", word, name, "-o", "name")...); got != strings.ToLower(kind)+"/"+name+"\n" {
				t.Errorf("get %s: %q", word, got)
			}
			do("", on("label", word, name, "example.com/k=v")...)
			do("", on("patch", word, name, "-p", `{"metadata":{"annotations":{"example.com/a":"b"}}}`)...)
			if kind != "Tier" { // policies are in it
				do("", on("delete", word, name)...)
			}
		}
		do(all[kind], "apply", "-f", "-")
		for _, format := range []string{"", "wide", "yaml", "json", "name", "custom-columns=NAME", "jsonpath={.metadata}", "jsonpath={.items[*].spec}", "go-template={{range .}}{{.Kind}} {{.}}{{end}}",
			"go-template={{range .}}{{with .Items}}{{range .}}{{.Spec}} {{.ObjectMeta}} {{printf \"%v\" .Spec}}{{end}}{{end}}{{end}}"} {
			do("", on("get", kind, "-o", format)...)
			do("", on("get", kind, name, "-o", format, "--export")...)
		}

		// What get prints, apply takes back, and nothing is different then.
		for _, format := range []string{"yaml", "json"} {
			text := do("", on("get", kind, name, "-o", format)...)
			if got := muslinctl(t, env, text, "diff", "-f", "-"); got.code != 0 || got.stdout != "" {
				t.Errorf("%s as %s differs from itself: %+v", kind, format, got)
			}
			before := do("", on("get", kind, name, "-o", "jsonpath={.spec}")...)
			do(text, "replace", "-f", "-")
			if after := do("", on("get", kind, name, "-o", "jsonpath={.spec}")...); after != before {
				t.Errorf("%s is %s after replace, and was %s", kind, after, before)
			}
		}
	}
}

// strew puts a field that nobody knows into every object of a JSON tree, but for those whose keys are their user's, and counts them.
func strew(v any, n *int) {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			strew(e, n)
		}
	case map[string]any:
		for key, e := range v {
			if !slices.Contains([]string{"labels", "annotations", "matchLabels", "labelsToApply"}, key) {
				strew(e, n)
			}
		}
		*n++
		v["fromTheFuture"] = map[string]any{"number": *n, "list": []any{"a", 2.5}}
	}
}

// future is a strewn field as it is stored.
var future = regexp.MustCompile(`"fromTheFuture":\{"list":\["a",2\.5\],"number":\d+\}`)

func TestFieldsOfANewerWriterSurviveEveryVerbAtEveryDepth(t *testing.T) {
	etcd := etcdtest.New(t)
	env := map[string]string{"ETCD_ENDPOINTS": etcd.Endpoint()}
	all := samples(t)
	do := func(stdin string, args ...string) string {
		t.Helper()
		got := muslinctl(t, env, stdin, args...)
		if got.code != 0 {
			t.Errorf("%v: %+v", args, got)
		}
		return got.stdout
	}
	do(all["Tier"], "apply", "-f", "-") // policies name it
	client := etcd.Store()
	for _, kind := range slices.Sorted(maps.Keys(all)) {
		found, err := manifest.Decode(kind, []byte(all[kind]))
		if err != nil {
			t.Fatal(err)
		}
		m := found[0].Object.Meta()
		on := func(args ...string) []string {
			if m.Namespace != "" {
				return append(args, "-n", m.Namespace)
			}
			return args
		}
		do(all[kind], "apply", "-f", "-")
		if found[0].Object.KindOf().Namespaced && m.Namespace == "" {
			m.Namespace = "default"
		}
		key := api.KeyOf(found[0].Object)
		stored := func() store.KV {
			t.Helper()
			got, _, err := client.Read(t.Context(), store.Range{Key: key})
			if err != nil || len(got[0]) == 0 {
				t.Fatalf("%s: %v", key, err)
			}
			return got[0][0]
		}
		kv := stored()
		var tree any
		if err := json.Unmarshal(kv.Value, &tree); err != nil {
			t.Fatal(err)
		}
		var n int
		strew(tree, &n)
		raw, err := json.Marshal(tree)
		if err != nil {
			t.Fatal(err)
		}
		var txn store.Txn
		txn.PutRaw(key, raw, kv.Rev)
		if _, err := client.Commit(t.Context(), &txn); err != nil {
			t.Fatal(err)
		}
		want := future.FindAllString(string(raw), -1)
		slices.Sort(want)
		if len(want) != n || n < 3 {
			t.Fatalf("%s: %d of %d fields were strewn", kind, len(want), n)
		}
		check := func(after string) {
			t.Helper()
			got := future.FindAllString(string(stored().Value), -1)
			slices.Sort(got)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s after %s (-stored +left):\n%s", kind, after, diff)
			}
		}
		for _, format := range []string{"yaml", "json"} {
			text := do("", on("get", kind, m.Name, "-o", format)...)
			if got := strings.Count(text, "fromTheFuture"); got != n {
				t.Errorf("get %s -o %s prints %d of %d fields", kind, format, got, n)
			}
			do(text, "diff", "-f", "-")
			do(text, "apply", "-f", "-")
			check("apply of " + format)
			do(do("", on("get", kind, m.Name, "-o", format)...), "replace", "-f", "-")
			check("replace of " + format)
		}
		do("", on("label", kind, m.Name, "example.com/k=v", "--overwrite")...)
		check("label")
		do("", on("patch", kind, m.Name, "-p", `{"metadata":{"annotations":{"example.com/a":"b"}}}`)...)
		check("patch")

		// What is not stored so is no field of the future but a mistake.
		text := strings.Replace(do("", on("get", kind, m.Name, "-o", "yaml")...), "number: 1\n", "number: 1000\n", 1)
		if got := muslinctl(t, env, text, "apply", "-f", "-"); got.code != 1 || !strings.Contains(got.stderr, "fromTheFuture (field in document is not recognized") {
			t.Errorf("%s with another value: %+v", kind, got)
		}
		check("a refused apply")
	}
}
