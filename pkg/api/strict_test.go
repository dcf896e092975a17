package api_test

import (
	"errors"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/pkg/api"
)

func TestDocumentsHoldObjectsListsAndArrays(t *testing.T) {
	const pool = `{"kind":"IPPool","apiVersion":"projectcalico.org/v3","metadata":{"name":"p"},"spec":{"cidr":"10.0.0.0/16"}}`
	const node = `{"kind":"Node","apiVersion":"projectcalico.org/v3","metadata":{"name":"n"}}`
	const bad = `{"kind":"Node","apiVersion":"projectcalico.org/v3","sepc":{}}`
	for _, tc := range []struct {
		document string
		want     []string // path, and the object or the error
	}{
		{"", nil},
		{"null", nil},
		{pool, []string{": IPPool(p)"}},
		{`[` + pool + `,` + node + `]`, []string{"[0]: IPPool(p)", "[1]: Node(n)"}},
		{`{"kind":"IPPoolList","apiVersion":"projectcalico.org/v3","metadata":{"resourceVersion":"5"},"items":[` + pool + `]}`, []string{"items[0]: IPPool(p)"}},
		{`{"kind":"List","items":[` + bad + `,` + node + `,7]}`, []string{
			`items[0]: error with field sepc (field in document is not recognized or is in the wrong location; did you mean "spec"?)`, "items[1]: Node(n)",
			"items[2]: read object: want a JSON object and not a number"}},
		{`{"kind":"IPPoolList"}`, nil},
		{`{"kind":"IPPoolList","items":5}`, []string{"items: read items: want a list and not a number"}},
		{`{"kind":"Foo","apiVersion":"projectcalico.org/v3"}`, []string{": unknown resource type (Foo) and/or version (projectcalico.org/v3)"}},
		{`{"kind":"Pod","apiVersion":"v1"}`, []string{": unknown resource type (Pod) and/or version (v1)"}},
		{`{"kind":"IPPol","apiVersion":"projectcalico.org/v3"}`, []string{": unknown resource type (IPPol) and/or version (projectcalico.org/v3); did you mean IPPool?"}},
		{`{"kind":"IPPool","apiVersion":"v1"}`, []string{": unknown resource type (IPPool) and/or version (v1): want apiVersion projectcalico.org/v3"}},
		{`{}`, []string{": unknown resource type () and/or version (): it says no kind"}},
		{`7`, []string{": read object: want a JSON object and not a number"}},
		{`{"kind":`, []string{": read JSON: unexpected EOF"}},
		{pool + pool, []string{": read JSON: more than one value"}},
	} {
		var got []string
		for _, i := range api.Read([]byte(tc.document)) {
			if i.Err != nil {
				got = append(got, i.Path+": "+i.Err.Error())
			} else {
				got = append(got, i.Path+": "+api.Identify(i.Object))
			}
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.document, diff)
		}
	}
}

func TestEveryMistakeOfADocumentIsNamed(t *testing.T) {
	_, err := given(t, "GlobalNetworkPolicy", `
metadata: {name: [1], labels: {a: 1}, creationTimestamp: yesterday, ownerReferences: [], generation: 7, uuid: x}
spec:
  selectr: all()
  order: first
  types: Ingress
  doNotTrack: "true"
  ingress:
  - {action: 5, protocol: [], icmp: {type: 1.5}, source: {nets: [1], ports: [99999]}, destination: none}
  - null
  - allow
spc: {}
`)
	want := strings.TrimSpace(`
metadata.creationTimestamp = 'yesterday' (must be a time such as 2026-01-02T15:04:05Z)
metadata.labels.a = '1' (must be a string and not a number)
metadata.name (must be a string and not a list)
metadata.uuid (field in document is not recognized or is in the wrong location; did you mean "uid"?)
spc (field in document is not recognized or is in the wrong location; did you mean "spec"?)
spec.doNotTrack = 'true' (must be true or false and not a string)
spec.ingress[0].action = '5' (must be a string and not a number)
spec.ingress[0].destination = 'none' (must be an object and not a string)
spec.ingress[0].icmp.type = '1.5' (must be a whole number between -9223372036854775808 and 9223372036854775807)
spec.ingress[0].protocol = '[]' (must be a number or a string)
spec.ingress[0].source.nets[0] = '1' (must be a string and not a number)
spec.ingress[0].source.ports[0] = '99999' (must be a port between 0 and 65535, a range such as 8000:8010, or the name of a port)
spec.ingress[2] = 'allow' (must be an object and not a string)
spec.order = 'first' (must be a number and not a string)
spec.selectr (field in document is not recognized or is in the wrong location; did you mean "selector"?)
spec.types = 'Ingress' (must be a list and not a string)`)
	if diff := cmp.Diff(want, complaints(t, err)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestReadWantsTheKindThatIsAskedFor(t *testing.T) {
	pools, _ := api.Lookup("pools")
	for _, document := range []string{"", `[]`, `{"kind":"Node","apiVersion":"projectcalico.org/v3"}`, `{"kind":"Foo"}`} {
		if o, err := pools.Read([]byte(document)); err == nil {
			t.Errorf("%s reads as %s", document, api.Identify(o))
		}
	}
	var unknown *api.UnknownKindError
	if _, err := pools.Read([]byte(`{"kind":"Foo"}`)); !errors.As(err, &unknown) || unknown.Kind != "Foo" {
		t.Errorf("an unknown kind: %v", err)
	}
}

// TestWhatToolsPrintIsReadBack has what calicoctl printed for a pool, which people edit and apply.
func TestWhatToolsPrintIsReadBack(t *testing.T) {
	const printed = `apiVersion: projectcalico.org/v3
kind: IPPool
metadata:
  creationTimestamp: "2026-11-20T16:26:42Z"
  name: default-ipv4-ippool
  resourceVersion: "6"
  uid: 394e4879-9975-4e86-b07e-a5d08cbcafab
spec:
  allowedUses:
  - Workload
  - Tunnel
  assignmentMode: Automatic
  blockSize: 26
  cidr: 10.244.0.0/16
  ipipMode: Never
  natOutgoing: true
  nodeSelector: all()
  vxlanMode: Always
`
	o, err := given(t, "IPPool", printed)
	if err != nil {
		t.Fatal(err)
	}
	again, err := yaml.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(printed, string(again)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if _, err := given(t, "IPPool", "{metadata: {name: x, creationTimestamp: null}, spec: {cidr: 10.0.0.0/8}}"); err != nil {
		t.Errorf("creationTimestamp null: %v", err)
	}
}

// FuzzRead feeds any bytes to all that a document meets: what is read can be validated, written and read back.
func FuzzRead(f *testing.F) {
	for _, k := range api.Kinds() {
		for _, s := range samples(f, k.Name) {
			f.Add([]byte(s.Value))
		}
	}
	f.Add([]byte(`[{"kind":"List","items":[{"kind":"IPPool","apiVersion":"projectcalico.org/v3","spec":{"cidr":null}}]}]`))
	f.Fuzz(func(t *testing.T, document []byte) {
		for _, i := range api.Read(document) {
			var unknown *api.UnknownFieldsError
			if i.Err != nil && (i.Err.Error() == "" || (i.Object != nil) != errors.As(i.Err, &unknown)) {
				t.Fatalf("error %q with %v", i.Err, i.Object)
			}
			if i.Object == nil {
				continue
			}
			examine(t, i.Object)
		}
	})
}

// examine does to an object all that is ever done to one, and reads it back.
func examine(t *testing.T, o api.Object) {
	t.Helper()
	api.SetDefaults(o)
	valid := api.Validate(o) == nil
	for _, op := range []api.Op{api.OpCreate, api.OpUpdate, api.OpDelete} {
		_ = api.Permit(op, o)
	}
	_, _ = api.ValidateUpdate(o, api.Clone(o)), api.References(o)
	raw, err := api.EncodeObject(o, nil)
	if err != nil {
		t.Fatalf("%s cannot be written: %v", api.Identify(o), err)
	}
	again, err := o.KindOf().Decode(raw)
	if err != nil {
		t.Fatalf("%s does not read back: %v", raw, err)
	}
	if valid && api.KeyOf(again) != api.KeyOf(o) {
		t.Fatalf("%s is %s and reads back as %s", raw, api.KeyOf(o), api.KeyOf(again))
	}
	if second := api.Validate(again); valid && second != nil {
		t.Fatalf("%s was valid and reads back with %v", raw, second)
	}
}
