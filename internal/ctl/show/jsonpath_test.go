package show

import (
	"strings"
	"testing"

	"github.com/muslin-cni/muslin/pkg/api"
)

const tree = `{"kind":"IPPool","metadata":{"name":"a","labels":{"x.y/z":"1"}},"spec":{"cidr":"10.0.0.0/16","blockSize":26,"uses":["W","T"],
"conditions":[{"type":"A","on":true},{"type":"B","on":false}]}}`

func TestJSONPath(t *testing.T) {
	for _, c := range []struct{ template, want string }{
		{`{.spec.cidr}`, "10.0.0.0/16"},
		{`{$.spec.cidr} {@.metadata.name}`, "10.0.0.0/16 a"},
		{`cidr: {.spec.cidr}{"\t"}{'}'}`, "cidr: 10.0.0.0/16\t}"},
		{`{.spec.uses}`, `["W","T"]`},
		{`{.spec.uses[*]}`, "W T"},
		{`{.spec.uses[0]}{.spec.uses[-1]}{.spec.uses[7]}`, "WT"},
		{`{.metadata.labels['x.y/z']}{.metadata.labels.x\.y/z}`, "11"},
		{`{.spec.conditions[?(@.on==true)].type}`, "A"},
		{`{.spec.conditions[?(@.type!="A")].type}`, "B"},
		{`{.spec.conditions[?(@.none)].type}`, ""},
		{`{range .spec.conditions[*]}<{.type}>{end}`, "<A><B>"},
		{`{..type}`, "A B"},
		{`{.nothing.at.all}`, ""},
		{`{.metadata.*}`, `{"x.y/z":"1"} a`},
	} {
		p, err := New("jsonpath="+c.template, Settings{})
		if err != nil {
			t.Errorf("%s: %v", c.template, err)
			continue
		}
		var b strings.Builder
		if err := p.Print(&b, Result{Items: []Item{{Object: &api.IPPool{}, Text: []byte(tree)}}}); err != nil {
			t.Errorf("%s: %v", c.template, err)
		}
		if b.String() != c.want {
			t.Errorf("%s prints %q; want %q", c.template, b.String(), c.want)
		}
	}
}

func TestJSONPathThatMakesNoSenseIsRefused(t *testing.T) {
	for _, template := range []string{`{.spec`, `{range .x[*]}`, `{end}`, `{.x[}`, `{.x[a]}`, `{"x}`, `{name}`, `{.x[?(y==1)]}`} {
		if _, err := New("jsonpath="+template, Settings{}); err == nil {
			t.Errorf("%s is taken", template)
		}
	}
}

func FuzzJSONPath(f *testing.F) {
	for _, seed := range []string{`{.spec.cidr}`, `{range .spec.conditions[*]}{.type}{end}`, `{..type}`, `{.a[?(@.b=="c")]}`, `{"\n"}`, `{.x\.y}`} {
		f.Add(seed)
	}
	f.Fuzz(func(_ *testing.T, template string) {
		p, err := New("jsonpath="+template, Settings{})
		if err != nil {
			return
		}
		var b strings.Builder
		_ = p.Print(&b, Result{Items: []Item{{Object: &api.IPPool{}, Text: []byte(tree)}}})
	})
}
