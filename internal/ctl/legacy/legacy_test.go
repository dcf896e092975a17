package legacy_test

import (
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/muslin-cni/muslin/internal/ctl/legacy"
	"github.com/muslin-cni/muslin/pkg/api"
)

// TestWhatIsPrintedCanBeApplied reads what the refusal says to write instead.
func TestWhatIsPrintedCanBeApplied(t *testing.T) {
	for _, c := range []struct{ then, now string }{
		{"kind: ipPool\nmetadata: {cidr: 192.168.0.0/16}\nspec: {ipip: {enabled: true}, nat-outgoing: true, disabled: true}", "ipipMode: Always"},
		{"kind: ipPool\nmetadata: {cidr: 'fd00::/48'}\nspec: {nat-outgoing: false}", "cidr: fd00::/48"},
		{"kind: bgpPeer\nmetadata: {scope: global, peerIP: 10.0.0.1}\nspec: {asNumber: 64512}", "asNumber: 64512"},
		{"kind: bgpPeer\nmetadata: {scope: node, node: n1, peerIP: 'fd00::1'}\nspec: {asNumber: '1.10'}", "node: n1"},
		{"kind: node\nmetadata: {name: n1}\nspec: {bgp: {ipv4Address: 10.0.0.1/24, asNumber: 64513}}", "ipv4Address: 10.0.0.1/24"},
	} {
		var document map[string]any
		if err := yaml.Unmarshal([]byte("apiVersion: v1\n"+c.then), &document); err != nil {
			t.Fatal(err)
		}
		err := legacy.Check(document)
		if err == nil {
			t.Errorf("%s is not refused", c.then)
			continue
		}
		_, text, _ := strings.Cut(err.Error(), "\n\n")
		if !strings.Contains(text, c.now) {
			t.Errorf("%s becomes\n%s; want %s", c.then, text, c.now)
		}
		raw, err := yaml.YAMLToJSON([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		for _, item := range api.Read(raw) {
			if item.Err != nil {
				t.Errorf("%s: %v", text, item.Err)
				continue
			}
			api.SetDefaults(item.Object)
			if err := api.Validate(item.Object); err != nil {
				t.Errorf("%s: %v", text, err)
			}
		}
	}
}

func TestOtherDocumentsAreNoneOfItsBusiness(t *testing.T) {
	for _, document := range []map[string]any{
		nil, {"kind": "Pod", "apiVersion": "v1"}, {"kind": "ipPool", "apiVersion": api.Version}, {"kind": 7.0, "apiVersion": "v1"},
	} {
		if err := legacy.Check(document); err != nil {
			t.Errorf("%v: %v", document, err)
		}
	}
}
