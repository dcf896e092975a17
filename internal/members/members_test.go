package members

import (
	"encoding/json"
	"errors"
	"net/netip"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"
)

type inner struct {
	Text  string   `json:"text"`
	Texts []string `json:"texts,omitempty"`
}

func (i *inner) Members() []Member {
	return []Member{{"text", &i.Text, true}, {"texts", &i.Texts, false}}
}

type outer struct {
	Name   string            `json:"name"`
	Count  int               `json:"count,omitempty"`
	Inner  inner             `json:"inner,omitzero"`
	Other  *inner            `json:"other,omitempty"`
	Addrs  []netip.Addr      `json:"addrs,omitempty"`
	Any    any               `json:"any,omitempty"`
	Labels map[string]string `json:"labels,omitempty"`
	Flag   bool              `json:"flag,omitempty"`
}

func (o *outer) Members() []Member {
	return []Member{
		{"name", &o.Name, true}, {"count", &o.Count, false}, {"inner", &o.Inner, false}, {"other", &o.Other, false}, {"addrs", &o.Addrs, false},
		{"any", &o.Any, false}, {"labels", &o.Labels, false}, {"flag", &o.Flag, false},
	}
}

// documents are read the same by both.
func documents() []string {
	return []string{
		`{}`, ` { "name" : "n" } `, `{"name":"a","name":"b"}`, `{"NAME":"n","Count":3}`, `{"name":null,"inner":null,"other":null}`,
		`{"inner":{"text":"t<>&\u00e9","texts":["a"]},"other":{"text":"o"},"unknown":{"a":[1,{"b":2}]}}`,
		`{"addrs":["10.0.0.1","fd00::1"],"any":{"a":1},"labels":{"k":"v"}}`, `null`, `{"addrs":[]}`, `{"addrs":["","::ffff:10.0.0.1",null],"any":"a"}`,
		`{"na\u006de":"n", "inner" : { "text" : "[{\"" , "texts" : [ ] } , "name2":"x"}`, `{"Name":"a","name":"b","NAME":"c"}`, "{\"name\":\"\u00e9\u2028\",\"count\":-0}",
		`{"flag":true,"count":-12,"addrs":["fe80::1%eth0<"]}`, `{"flag":null,"count":0}`,
	}
}

// broken are refused by both, in the same words but for the type's name.
func broken() []string {
	return []string{
		`{"count":"3"}`, `{"count":1.5}`, `{"name":7}`, `{"inner":{"text":1}}`, `{"inner":[]}`, `{"inner":"x"}`, `{"inner":true}`, `{"other":{"texts":"x"}}`,
		`{"addrs":["nonsense"]}`, `[]`, `"x"`, `7`, ``, `{`, `{"name"`, `{"name":`, `{"name":"x"`, `{"name":"x",}`, `{"name":"x"} {}`, `{"name":"x"}]`, `{name:1}`,
		`{"count":"3","name":"n","inner":{"text":[],"texts":["t"]},"flag":1}`, `{"count":99999999999999999999,"name":"n"}`, `{"flag":"true","other":{"text":"o"}}`,
		`{"count":"3","addrs":["nonsense"],"name":"n"}`, `{"count":1e2}`,
	}
}

var sameAddr = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func TestObjectsAreReadAndWrittenAsByTheirTags(t *testing.T) {
	for _, doc := range documents() {
		var want, got outer
		if err := json.Unmarshal([]byte(doc), &want); err != nil {
			t.Fatal(err)
		}
		if err := Decode([]byte(doc), got.Members()); err != nil {
			t.Errorf("%s: %v", doc, err)
		}
		if diff := cmp.Diff(want, got, sameAddr); diff != "" {
			t.Errorf("%s (-want +got):\n%s", doc, diff)
		}
		written, err := Encode(got.Members())
		if text, wantErr := json.Marshal(want); err != nil || wantErr != nil || string(written) != string(text) {
			t.Errorf("%s: written as %s, want %s (%v, %v)", doc, written, text, err, wantErr)
		}
	}
}

func TestWhatIsBrokenIsRefusedAsByTags(t *testing.T) {
	for _, doc := range broken() {
		var want, got outer
		wantErr, err := json.Unmarshal([]byte(doc), &want), Decode([]byte(doc), got.Members())
		if (err == nil) != (wantErr == nil) {
			t.Errorf("%s: error %v, want %v", doc, err, wantErr)
		}
		if diff := cmp.Diff(want, got, sameAddr); diff != "" {
			t.Errorf("%s: read in spite of it (-want +got):\n%s", doc, diff)
		}
		var wrong, wantWrong *json.UnmarshalTypeError
		if errors.As(wantErr, &wantWrong) && (!errors.As(err, &wrong) || wrong.Field != wantWrong.Field || wrong.Value != wantWrong.Value || wrong.Type.Kind() != wantWrong.Type.Kind()) {
			t.Errorf("%s: error %v, want %v", doc, err, wantErr)
		}
	}
}

func FuzzObjectsAreReadAsByTheirTags(f *testing.F) {
	for _, doc := range append(documents(), broken()...) {
		f.Add([]byte(doc))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		var want, got outer
		wantErr, err := json.Unmarshal(doc, &want), Decode(doc, got.Members())
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("%q: error %v, want %v", doc, err, wantErr)
		}
		if err == nil && !reflect.DeepEqual(want, got) {
			t.Errorf("%q: read %+v, want %+v", doc, got, want)
		}
	})
}
