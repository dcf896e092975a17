package api

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// usualEndpoint is one as ADDs of pods write it.
func usualEndpoint() *WorkloadEndpoint {
	w := &WorkloadEndpoint{Spec: WorkloadEndpointSpec{
		Orchestrator: "k8s", Node: "node-1", ContainerID: "0123456789abcdef", Pod: "web-1", Endpoint: "eth0", ServiceAccountName: "default",
		IPNetworks: []Prefix{HostPrefix(netip.MustParseAddr("10.244.7.7")), HostPrefix(netip.MustParseAddr("fd00::7"))},
		Profiles:   []string{"kns.default", "ksa.default.default"}, InterfaceName: "cali0ef24b0", MAC: "ca:fe:1d:52:bb:e9",
		Ports: []WEPort{{Name: "http", Protocol: ProtocolNamed("TCP"), Port: 80}, {Name: "dns", Protocol: ProtocolNamed("UDP"), Port: 53, HostPort: 53, HostIP: "10.0.0.1"}},
	}}
	w.Metadata = ObjectMeta{
		Name: WorkloadEndpointName(w.Spec), GenerateName: "web-", Namespace: "default", UID: "a33ce680-0537-44b5-af70-bf04a02409c3",
		CreationTimestamp: time.Date(2026, 11, 20, 16, 21, 15, 0, time.UTC), Labels: map[string]string{"app": "web"}, Annotations: map[string]string{"a": "b"},
	}
	return w
}

// endpointSeeds are endpoints in the usual form and in others.
func endpointSeeds(t testing.TB) (out []string) {
	gone := time.Date(2026, 11, 21, 5, 0, 0, 1, time.FixedZone("", 3600))
	odd, unusual, bare := usualEndpoint(), usualEndpoint(), &WorkloadEndpoint{}
	odd.Metadata.Labels = map[string]string{"ä": "<", "": "\n"}
	unusual.Metadata.DeletionTimestamp, unusual.Spec.IPNATs = &gone, []IPNAT{{InternalIP: "10.244.7.7", ExternalIP: "1.2.3.4"}}
	unusual.Spec.Ports[0].Protocol = Protocol{Number: 6}
	for _, w := range []*WorkloadEndpoint{usualEndpoint(), odd, unusual, bare} {
		raw, err := encodeByJSON(w)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, string(raw))
	}
	head := endpointHead
	return append(out, ``, `{}`, `null`, head+`},"spec":{}}`, head+`"uid":"","labels":{},"annotations":{"a":"b","a":"c"}},"spec":{"ipNetworks":[],"profiles":[],"ports":[]}}`,
		head+`"name":"a","creationTimestamp":null},"spec":{"node":"n","ipNetworks":["10.0.0.1","","10.0.0.2/24"],"mac":"x"}}`,
		head+`"creationTimestamp":"0001-01-01T00:00:00Z"},"spec":{"ports":[{"name":"a","protocol":"6","port":65535,"hostPort":65536,"hostIP":""}]}}`,
		head+`"creationTimestamp":"2026-11-20T16:21:15.5+01:00"},"spec":{"ports":[{"name":"a","protocol":"tcp","port":1,"hostPort":0,"hostIP":"x"}],"more":1}}`,
		head+`"labels":{"b":"1","a":"2"}},"spec":{"mac":"x","node":"n"}}`, `{"kind":"Node","apiVersion":"projectcalico.org/v3","metadata":{},"spec":{}}`)
}

// encodeByJSON is Encode without the endpoints' own writer.
func encodeByJSON(w *WorkloadEndpoint) ([]byte, error) {
	c := *w
	return encode(&c, nil)
}

// FuzzEndpointCodec holds the endpoints' own reader and writer against encoding/json, the reader also where it may share with another endpoint.
func FuzzEndpointCodec(f *testing.F) {
	seeds := endpointSeeds(f)
	for _, s := range seeds {
		f.Add([]byte(s), []byte(seeds[0]))
		f.Add([]byte(s), []byte(s))
	}
	f.Fuzz(func(t *testing.T, raw, other []byte) {
		var like WorkloadEndpoint
		_ = like.readUsual(other, nil) // what could not be read is empty
		heldAgainstJSON(t, raw, (*WorkloadEndpoint).appendUsual, func(w *WorkloadEndpoint) bool { return w.readUsual(raw, &like) },
			func(w *WorkloadEndpoint) error { return decode(w, raw) }, encodeByJSON)
	})
}

func TestUsualEndpointsTakeTheShortWay(t *testing.T) {
	w := usualEndpoint()
	raw, ok := w.appendUsual(nil)
	if !ok {
		t.Fatal("an endpoint as ADDs write it is not written by its own writer")
	}
	if len(w.Metadata.Labels) != 1 {
		t.Errorf("writing it has changed it: labels %v", w.Metadata.Labels)
	}
	got, whole, err := DecodeLike[WorkloadEndpoint](raw, nil)
	if err != nil || !whole {
		t.Fatalf("not read by its own reader: whole: %t, error %v: %s", whole, err, raw)
	}
	w.toStored()
	w.TypeMeta = TypeMeta{Kind: "WorkloadEndpoint", APIVersion: Version}
	if diff := cmp.Diff(w, got, sameBlock()...); diff != "" {
		t.Errorf("not what was written (-want +got):\n%s", diff)
	}
}

func TestFieldsOfEndpointsThatFewPodsHaveAreKept(t *testing.T) {
	raw := []byte(endpointHead + `"name":"a"},"spec":{"node":"n","more":{"x":1}}}`)
	got, whole, err := DecodeLike[WorkloadEndpoint](raw, nil)
	if err != nil || whole {
		t.Fatalf("whole: %t, error %v", whole, err)
	}
	got.Spec.MAC = "x"
	out, err := Encode(got, raw)
	if err != nil {
		t.Fatal(err)
	}
	var spec struct{ Spec map[string]any }
	if err := json.Unmarshal(out, &spec); err != nil || spec.Spec["more"] == nil {
		t.Errorf("%s, %v: the field that we do not know is lost", out, err)
	}
}

func TestEndpointsOfAKindShareTheirLabels(t *testing.T) {
	raw, err := Encode(usualEndpoint(), nil)
	if err != nil {
		t.Fatal(err)
	}
	first, _, err := DecodeLike[WorkloadEndpoint](raw, nil)
	if err != nil {
		t.Fatal(err)
	}
	got, whole, err := DecodeLike(raw, first)
	if err != nil || !whole {
		t.Fatalf("whole: %t, error %v", whole, err)
	}
	got.Metadata.Labels["one"] = "map"
	if first.Metadata.Labels["one"] != "map" {
		t.Error("two endpoints have the same labels in two maps")
	}
}

func BenchmarkEndpoint(b *testing.B) {
	w := usualEndpoint()
	raw, err := Encode(w, nil)
	if err != nil {
		b.Fatal(err)
	}
	like, err := Decode[WorkloadEndpoint](raw)
	if err != nil {
		b.Fatal(err)
	}
	for name, f := range map[string]func() error{
		"decode":      func() error { _, err := Decode[WorkloadEndpoint](raw); return err },
		"decode-like": func() error { _, _, err := DecodeLike(raw, like); return err },
		"encode":      func() error { _, err := Encode(w, nil); return err },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := f(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
