package api_test

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/muslin-cni/muslin/pkg/api"
)

// FuzzStored feeds any bytes to all that the stored value of each kind meets: nothing that can be read breaks whoever works with it.
func FuzzStored(f *testing.F) {
	for _, k := range api.Kinds() {
		for _, s := range samples(f, k.Name) {
			f.Add([]byte(s.Value))
		}
	}
	f.Add([]byte(`{"metadata":{"labels":{"":null}},"spec":null,"status":{}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, k := range api.Kinds() {
			o, err := k.Decode(raw)
			if err != nil {
				continue
			}
			if _, err := api.Text(o, raw); err != nil {
				t.Fatalf("%s: %s cannot be printed: %v", k.Name, raw, err)
			}
			examine(t, o)
		}
	})
}

// FuzzPolicyName feeds any name to policies, which are stored under one name and hold another in a note.
func FuzzPolicyName(f *testing.F) {
	f.Add("default.web", "default", "")
	f.Add("web", "", `{"name":"web"}`)
	f.Add("knp.default.web", "default", `{"name":"default.web"}`)
	f.Add("a.b", "a", `{"name":7}`)
	f.Fuzz(func(t *testing.T, name, tier, note string) {
		annotations := map[string]string{"projectcalico.org/metadata": note}
		if note == "" {
			annotations = nil
		}
		raw, err := json.Marshal(map[string]any{
			"metadata": map[string]any{"name": name, "namespace": "ns", "annotations": annotations},
			"spec":     map[string]any{"tier": tier},
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range api.Kinds() {
			if k.Names != api.NamePolicy && k.Names != api.NameGlobalPolicy {
				continue
			}
			o, err := k.Decode(raw)
			if err != nil {
				t.Fatalf("%s: %s: %v", k.Name, raw, err)
			}
			if !k.Namespaced {
				o.Meta().Namespace = ""
			}
			examine(t, o)
		}
	})
}

// FuzzKeys feeds any key to the parsers of the keys of blocks and claims: what they read names one key, which says the same.
func FuzzKeys(f *testing.F) {
	for _, cidr := range []string{"10.0.0.0/26", "fd00::/122", "::ffff:10.0.0.0/122"} {
		f.Add(api.BlockKey(netip.MustParsePrefix(cidr)))
		f.Add(api.AffinityKey("node-1", netip.MustParsePrefix(cidr)))
	}
	f.Add(api.HostsRoot + "/ipv4/block/-")
	f.Fuzz(func(t *testing.T, key string) {
		if cidr, err := api.ParseBlockKey(key); err == nil {
			if again, err := api.ParseBlockKey(api.BlockKey(cidr)); err != nil || again != cidr {
				t.Errorf("%q is the block %v, whose key says %v, %v", key, cidr, again, err)
			}
		}
		node, cidr, err := api.ParseAffinityKey(key)
		if err != nil {
			return
		}
		if strings.Contains(node, "/") || node == "" {
			t.Errorf("%q is of the node %q", key, node)
		}
		if who, again, err := api.ParseAffinityKey(api.AffinityKey(node, cidr)); err != nil || again != cidr || who != node {
			t.Errorf("%q is of %s, %v, whose key says %s, %v, %v", key, node, cidr, who, again, err)
		}
	})
}

// FuzzPeerIP feeds any text to the parser of peers' addresses.
func FuzzPeerIP(f *testing.F) {
	for _, s := range []string{"10.0.0.1", "10.0.0.1:179", "[fd00::1]:179", "fe80::1%eth0", ":0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		addr, port, err := api.ParsePeerIP(s)
		if err != nil {
			return
		}
		text := addr.String()
		if port != 0 {
			text = netip.AddrPortFrom(addr, port).String()
		}
		if a, p, err := api.ParsePeerIP(text); err != nil || a != addr || p != port {
			t.Errorf("%q is %v port %d, and %q is %v port %d, %v", s, addr, port, text, a, p, err)
		}
	})
}
