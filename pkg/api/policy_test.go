package api_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/pkg/api"
)

func TestPolicyNamesAreReadAsTheirUsersGaveThem(t *testing.T) {
	const noted = `"annotations":{"projectcalico.org/metadata":"{\"name\":\"web\"}","mine":"1"}`
	for _, tc := range []struct {
		what, meta, tier, name string
		annotations            map[string]string
	}{
		{"annotation", `"name":"default.web",` + noted, "default", "web", map[string]string{"mine": "1"}},
		{"annotation of another tier", `"name":"sec.web","annotations":{"projectcalico.org/metadata":"{\"name\":\"sec.web\"}"}`, "sec", "sec.web", nil},
		{"old name", `"name":"default.web"`, "default", "web", nil},
		{"old name without tier", `"name":"default.web"`, "", "web", nil},
		{"old name of another tier", `"name":"default.web"`, "sec", "default.web", nil},
		{"plain name", `"name":"knp.default.web"`, "", "knp.default.web", nil},
		{"annotation that is none", `"name":"web","annotations":{"projectcalico.org/metadata":"{"}`, "default", "web", nil},
	} {
		raw := []byte(`{"metadata":{` + tc.meta + `},"spec":{"tier":"` + tc.tier + `"}}`)
		for _, kind := range []string{"NetworkPolicy", "GlobalNetworkPolicy", "StagedNetworkPolicy", "StagedGlobalNetworkPolicy"} {
			k, _ := api.Lookup(kind)
			o, err := k.Decode(raw)
			if err != nil {
				t.Fatal(err)
			}
			if o.Meta().Name != tc.name {
				t.Errorf("%s of %s: name %s, want %s", tc.what, kind, o.Meta().Name, tc.name)
			}
			if diff := cmp.Diff(tc.annotations, o.Meta().Annotations); diff != "" {
				t.Errorf("%s of %s: annotations (-want +got):\n%s", tc.what, kind, diff)
			}
			again, err := api.EncodeObject(o, nil)
			if err != nil || !strings.Contains(string(again), `"projectcalico.org/metadata":"{\"name\":\"`+tc.name+`\"}"`) {
				t.Errorf("%s of %s is stored as %s, %v", tc.what, kind, again, err)
			}
		}
	}
}

func TestPolicyTypesFollowTheRules(t *testing.T) {
	for _, tc := range []struct {
		spec string
		want []api.PolicyType
	}{
		{`{}`, []api.PolicyType{api.Ingress}},
		{`{"ingress":[{"action":"Allow"}]}`, []api.PolicyType{api.Ingress}},
		{`{"egress":[{"action":"Allow"}]}`, []api.PolicyType{api.Egress}},
		{`{"ingress":[{"action":"Allow"}],"egress":[{"action":"Allow"}]}`, []api.PolicyType{api.Ingress, api.Egress}},
		{`{"egress":[{"action":"Allow"}],"types":["Ingress"]}`, []api.PolicyType{api.Ingress}},
	} {
		np, err := api.Decode[api.NetworkPolicy]([]byte(`{"spec":` + tc.spec + `}`))
		if err != nil {
			t.Fatal(err)
		}
		gnp, err := api.Decode[api.GlobalNetworkPolicy]([]byte(`{"spec":` + tc.spec + `}`))
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(np.Spec.Types, tc.want) || !slices.Equal(gnp.Spec.Types, tc.want) || np.Spec.Tier != "default" ||
			np.Metadata.Labels[api.LabelTier] != "default" {
			t.Errorf("%s: types %v and %v, tier %q; want %v", tc.spec, np.Spec.Types, gnp.Spec.Types, np.Spec.Tier, tc.want)
		}
	}
}

func TestSettingDefaultsDoesNotTouchSharedLabels(t *testing.T) {
	shared := map[string]string{"a": "b"}
	p := &api.NetworkPolicy{}
	p.Metadata.Labels = shared
	api.SetDefaults(p)
	if len(shared) != 1 || len(p.Metadata.Labels) != 2 {
		t.Errorf("shared labels became %v, the policy's %v", shared, p.Metadata.Labels)
	}
}

func TestWorkloadEndpointIsStoredWithItsLabels(t *testing.T) {
	w := &api.WorkloadEndpoint{Spec: api.WorkloadEndpointSpec{Orchestrator: "k8s"}}
	w.Metadata.Namespace = "ns"
	raw, err := api.Encode(w, nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := `"labels":{"projectcalico.org/namespace":"ns","projectcalico.org/orchestrator":"k8s"}`; !strings.Contains(string(raw), want) {
		t.Errorf("%s, want %s", raw, want)
	}
	if w.Metadata.Labels != nil {
		t.Errorf("the value became %v", w.Metadata.Labels)
	}
}

func TestScalarsAreReadInEveryFormAndWrittenInOne(t *testing.T) {
	for in, want := range map[string]string{
		`"tcp"`: `"TCP"`, `"Icmpv6"`: `"ICMPv6"`, `6`: `6`, `"6"`: `6`, `"UDPLite"`: `"UDPLite"`, `"foo"`: `"foo"`, `-1`: "", `300`: "", `1.5`: "", `{}`: "", `true`: "",
	} {
		check(t, "protocol", in, want, func(r *api.Rule) any { return r.Protocol })
	}
	for in, want := range map[string]string{
		`[80,"81","8000:8010","web","9:9"]`: `[80,81,"8000:8010","web",9]`, `[70000]`: "", `["9:8"]`: "", `[-1]`: "", `["1:x"]`: "", `[1.5]`: "", `["a:b"]`: "",
	} {
		check(t, "ports", in, want, func(r *api.Rule) any { return r.Destination.Ports })
	}
	for in, want := range map[string]string{
		`64512`: `64512`, `"64512"`: `64512`, `"1.10"`: `65546`, `4294967295`: `4294967295`, `4294967296`: "", `"1.65536"`: "", `"x"`: "", `-1`: "",
	} {
		p, err := api.Decode[api.BGPPeer]([]byte(`{"spec":{"asNumber":` + in + `}}`))
		judge(t, "asNumber "+in, want, err, func() any { return p.Spec.ASNumber })
	}
}

func check(t *testing.T, field, in, want string, get func(*api.Rule) any) {
	t.Helper()
	at := `"` + field + `":` + in
	if field == "ports" {
		at = `"destination":{` + at + `}`
	}
	p, err := api.Decode[api.NetworkPolicy]([]byte(`{"spec":{"ingress":[{` + at + `}]}}`))
	judge(t, field+" "+in, want, err, func() any { return get(&p.Spec.Ingress[0]) })
}

// judge compares what was read with want, its JSON; "" means that reading fails.
func judge(t *testing.T, what, want string, err error, value func() any) {
	t.Helper()
	if (err != nil) != (want == "") {
		t.Errorf("%s: error %v", what, err)
		return
	}
	if err != nil {
		return
	}
	raw, err := json.Marshal(value())
	if err != nil || string(raw) != want {
		t.Errorf("%s is written as %s, %v; want %s", what, raw, err, want)
	}
}
