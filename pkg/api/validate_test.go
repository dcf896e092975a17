package api_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/pkg/api"
)

// given is an object as a person writes it, in YAML without kind and apiVersion, with its defaults set.
func given(t testing.TB, kind, text string) (api.Object, error) {
	t.Helper()
	k, ok := api.Lookup(kind)
	if !ok {
		t.Fatalf("no kind %s", kind)
	}
	var object map[string]any
	if err := yaml.Unmarshal([]byte(text), &object); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	object["kind"], object["apiVersion"] = k.Name, api.Version
	if object["metadata"] == nil && k.Namespaced {
		object["metadata"] = map[string]string{"name": "x", "namespace": "ns"}
	} else if object["metadata"] == nil {
		object["metadata"] = map[string]string{"name": "default"}
	}
	raw, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	o, err := k.Read(raw)
	if err == nil {
		api.SetDefaults(o)
	}
	return o, err
}

// complaints are the bad fields of an error, one a line.
func complaints(t testing.TB, err error) string {
	t.Helper()
	if err == nil {
		return ""
	}
	var invalid *api.InvalidError
	if !errors.As(err, &invalid) {
		return err.Error()
	}
	var out []string
	for _, f := range invalid.Fields {
		out = append(out, f.Error())
	}
	return strings.Join(out, "\n")
}

// TestValidation reads testdata/validation.yaml: per kind a list of cases, each with what is given and the complaints that begin its
// lines; no complaints for what is valid.
func TestValidation(t *testing.T) {
	raw, err := os.ReadFile("testdata/validation.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var cases map[string][]struct {
		Given any      `json:"given"`
		Bad   []string `json:"bad"`
	}
	if err := yaml.UnmarshalStrict(raw, &cases); err != nil {
		t.Fatal(err)
	}
	for _, k := range api.Kinds() {
		if len(cases[k.Name]) == 0 && k.Name != "LiveMigration" {
			t.Errorf("no cases for %s", k.Name)
		}
	}
	for kind, list := range cases {
		for _, tc := range list {
			text, err := yaml.Marshal(tc.Given)
			if err != nil {
				t.Fatal(err)
			}
			o, err := given(t, kind, string(text))
			if err == nil {
				err = api.Validate(o)
			}
			var want string
			for i, b := range tc.Bad {
				want += fmt.Sprintf("%d: %s\n", i, b)
			}
			var got string
			for i, line := range strings.Split(complaints(t, err), "\n") {
				if i < len(tc.Bad) && strings.HasPrefix(line, tc.Bad[i]) {
					line = tc.Bad[i]
				}
				if line != "" {
					got += fmt.Sprintf("%d: %s\n", i, line)
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s\n%s(-want +got):\n%s", kind, text, diff)
			}
		}
	}
}

func TestStoredValuesAreValid(t *testing.T) {
	for _, k := range api.Kinds() {
		for _, s := range samples(t, k.Name) {
			o, err := k.Decode(s.Value)
			if err != nil {
				t.Fatal(err)
			}
			if err := api.Validate(o); err != nil {
				t.Errorf("%s: %v", s.Key, err)
			}
			strict, err := k.Read(s.Value)
			if err != nil {
				t.Errorf("%s read as a document: %v", s.Key, err)
				continue
			}
			if _, err := api.EncodeObject(strict, nil); err != nil {
				t.Errorf("%s: %v", s.Key, err)
			}
		}
	}
}

func TestWhatCannotChange(t *testing.T) {
	for _, tc := range []struct{ kind, old, now, want string }{
		{"IPPool", `spec: {cidr: 10.0.0.0/16}`, `spec: {cidr: 10.1.0.0/16}`, "spec.cidr = '10.1.0.0/16' (IPPool CIDR cannot be modified)"},
		{"IPPool", `spec: {cidr: 10.0.0.0/16}`, `spec: {cidr: 10.0.0.0/16, blockSize: 27}`, "spec.blockSize = '27' (IPPool BlockSize cannot be modified)"},
		{"IPPool", `spec: {cidr: 10.0.0.0/16, allowedUses: [LoadBalancer]}`, `spec: {cidr: 10.0.0.0/16}`,
			"spec.allowedUses = '[Workload Tunnel]' (a LoadBalancer pool cannot be given another use)"},
		{"IPPool", `spec: {cidr: 10.0.0.0/16}`, `spec: {cidr: 10.0.0.0/16, disabled: true, natOutgoing: true}`, ""},
		{"Tier", `{metadata: {name: default}, spec: {order: 1000000}}`, `{metadata: {name: default}, spec: {order: 5}}`,
			"spec.order = '5' (default tier order must be 1e+06)"},
		{"Tier", `{metadata: {name: mine}, spec: {order: 1}}`, `{metadata: {name: mine}, spec: {order: 5, defaultAction: Pass}}`, ""},
	} {
		old, err := given(t, tc.kind, tc.old)
		if err != nil {
			t.Fatal(err)
		}
		now, err := given(t, tc.kind, tc.now)
		if err != nil {
			t.Fatal(err)
		}
		api.Created(now, "uid", now.Meta().CreationTimestamp.AddDate(2020, 0, 0))
		now.Meta().ResourceVersion = "7"
		if got := complaints(t, api.ValidateUpdate(now, old)); got != tc.want {
			t.Errorf("%s to %s: %s; want %s", tc.old, tc.now, got, tc.want)
		}
	}
}

func TestUpdateNeedsWhatTiesItToTheStoredObject(t *testing.T) {
	o, err := given(t, "NetworkSet", "spec: {}")
	if err != nil {
		t.Fatal(err)
	}
	const reason = " (field must be set for an Update request)"
	want := "metadata.resourceVersion" + reason + "\nmetadata.creationTimestamp" + reason + "\nmetadata.uid" + reason
	if got := complaints(t, api.ValidateUpdate(o, o)); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if err := api.ValidateUpdate(o, &api.Node{}); !strings.Contains(complaints(t, err), "cannot replace a Node") {
		t.Errorf("a set in the place of a Node: %v", err)
	}
	o.Meta().ResourceVersion = "7"
	if got, want := complaints(t, api.ValidateCreate(o)), "metadata.resourceVersion = '7' (field must not be set for a Create request)"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestWhatIsNeverDone(t *testing.T) {
	named := func(o api.Object, namespace, name string) api.Object {
		o.Meta().Namespace, o.Meta().Name = namespace, name
		return o
	}
	for _, tc := range []struct {
		op   api.Op
		o    api.Object
		want string
	}{
		{api.OpDelete, named(&api.Tier{}, "", "default"), "operation Delete is not supported on Tier(default): Cannot delete default tier"},
		{api.OpDelete, named(&api.Tier{}, "", "kube-admin"), "operation Delete is not supported on Tier(kube-admin): Cannot delete kube-admin tier"},
		{api.OpDelete, named(&api.Tier{}, "", "mine"), ""},
		{api.OpUpdate, named(&api.Tier{}, "", "default"), ""},
		{api.OpCreate, named(&api.NetworkPolicy{}, "ns", "knp.default.x"),
			"operation Create is not supported on NetworkPolicy(ns/knp.default.x): kubernetes network policies must be managed through the kubernetes API"},
		{api.OpDelete, named(&api.Profile{}, "", api.DefaultAllowProfile),
			"operation Delete is not supported on Profile(projectcalico-default-allow): the profile is built in"},
		{api.OpDelete, named(&api.Profile{}, "", "kns.default"), ""},
	} {
		got := ""
		if err := api.Permit(tc.op, tc.o); err != nil {
			got = err.Error()
		}
		if got != tc.want {
			t.Errorf("%s, want %s", got, tc.want)
		}
	}
}

func TestReferencesNameTheirFields(t *testing.T) {
	p, err := given(t, "NetworkPolicy", "spec: {tier: sec}")
	if err != nil {
		t.Fatal(err)
	}
	b, err := given(t, "BGPPeer", "spec: {peerIP: 10.0.0.1, filters: [a, b]}")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range append(api.References(p), api.References(b)...) {
		got = append(got, r.Path+" "+r.Kind.Name+" "+r.Name)
	}
	if diff := cmp.Diff([]string{"spec.tier Tier sec", "spec.filters[0] BGPFilter a", "spec.filters[1] BGPFilter b"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if r := api.References(&api.Node{}); r != nil {
		t.Errorf("a Node refers to %v", r)
	}
}

func TestPoolsThatOverlapAreNamed(t *testing.T) {
	pool := func(name, cidr string) *api.IPPool {
		o, err := given(t, "IPPool", fmt.Sprintf("{metadata: {name: %s}, spec: {cidr: %q}}", name, cidr))
		if err != nil {
			t.Fatal(err)
		}
		return o.(*api.IPPool)
	}
	others := []*api.IPPool{pool("bad", "10.244.0.0/16"), pool("six", "fd00::/64"), pool("default-ipv4-ippool", "10.244.0.0/16"), {}}
	err := pool("bad", "10.244.128.0/20").Overlapping(others)
	const want = "error with field spec.cidr = '10.244.128.0/20' (IPPool(bad) CIDR overlaps with IPPool(default-ipv4-ippool) CIDR 10.244.0.0/16)"
	if err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	if err := pool("good", "10.245.0.0/16").Overlapping(others); err != nil {
		t.Errorf("pools apart: %v", err)
	}
}

func TestSettingsOfAddressManagementKeepTheirMeaning(t *testing.T) {
	for _, raw := range []string{`{"auto_allocate_blocks":true,"kubeVirtVMAddressPersistence":"Enabled"}`,
		`{"strict_affinity":true,"auto_allocate_blocks":true,"maxBlocksPerHost":5,"kubeVirtVMAddressPersistence":"Disabled"}`} {
		c, err := api.Decode[api.IPAMConfig]([]byte(raw))
		if err != nil {
			t.Fatal(err)
		}
		seen := api.NewIPAMConfiguration(*c)
		if err := api.Validate(seen); err != nil {
			t.Errorf("%s: %v", raw, err)
		}
		stored := seen.Stored()
		if again, err := json.Marshal(stored); err != nil || string(again) != raw {
			t.Errorf("%s is stored again as %s, %v", raw, again, err)
		}
	}
}
