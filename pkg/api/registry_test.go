package api_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/pkg/api"
)

func TestEveryAliasFindsItsKind(t *testing.T) {
	for kind, words := range map[string]string{
		"Node":                          "node nodes no nos",
		"IPPool":                        "ippool ippools ipp ipps pool pools IPPool IPPOOL",
		"BGPPeer":                       "bgppeer bgppeers bgpp bgpps bp bps",
		"BGPConfiguration":              "bgpconfiguration bgpconfigurations bgpconfig bgpconfigs",
		"BGPFilter":                     "bgpfilter bgpfilters bgpf bgpfs bf bfs",
		"WorkloadEndpoint":              "workloadendpoint workloadendpoints wep weps",
		"HostEndpoint":                  "hostendpoint hostendpoints hep heps",
		"NetworkPolicy":                 "networkpolicy networkpolicies policy np policies pol pols",
		"GlobalNetworkPolicy":           "globalnetworkpolicy globalnetworkpolicies gnp gnps",
		"StagedNetworkPolicy":           "stagednetworkpolicy stagednetworkpolicies snp snps",
		"StagedGlobalNetworkPolicy":     "stagedglobalnetworkpolicy stagedglobalnetworkpolicies sgnp sgnps",
		"StagedKubernetesNetworkPolicy": "stagedkubernetesnetworkpolicy stagedkubernetesnetworkpolicies sknp sknps",
		"NetworkSet":                    "networkset networksets netsets",
		"GlobalNetworkSet":              "globalnetworkset globalnetworksets gnetsets",
		"Profile":                       "profile profiles pro pros",
		"Tier":                          "tier tiers",
		"IPReservation":                 "ipreservation ipreservations reservation reservations",
		"FelixConfiguration":            "felixconfiguration felixconfigurations felixconfig felixconfigs",
		"KubeControllersConfiguration":  "kubecontrollersconfiguration kubecontrollersconfigurations kubecontrollersconfig kubecontrollersconfigs",
		"ClusterInformation":            "clusterinformation clusterinformations clusterinfo clusterinfos",
	} {
		for word := range strings.FieldsSeq(words) {
			if k, ok := api.Lookup(word); !ok || k.Name != kind || k.Hidden {
				t.Errorf("%q finds %+v, %t; want %s", word, k, ok, kind)
			}
		}
	}
	for _, word := range []string{"", "all", "gns", "foo", "IPPoolList"} {
		if k, ok := api.Lookup(word); ok {
			t.Errorf("%q finds %s", word, k.Name)
		}
	}
}

func TestNoWordMeansTwoKinds(t *testing.T) {
	owner := map[string]string{}
	for _, k := range api.Kinds() {
		for _, w := range k.Words() {
			if o, taken := owner[w]; taken {
				t.Errorf("%q means %s and %s", w, o, k.Name)
			}
			owner[w] = k.Name
		}
	}
}

func TestKindsAreWhatTheirTypesSay(t *testing.T) {
	names := []string{}
	for _, k := range api.Kinds() {
		names = append(names, k.Name)
		o := k.New()
		if got := reflect.TypeOf(o).Elem().Name(); got != k.Name || o.KindOf() != k {
			t.Errorf("%s is the type %s of kind %+v", k.Name, got, o.KindOf())
		}
		if k.Plural != strings.ToLower(k.Plural) || k.Aliases != strings.ToLower(k.Aliases) || k.List() != k.Name+"List" {
			t.Errorf("%+v", k)
		}
	}
	if !slices.IsSorted(names) {
		t.Errorf("not in order: %v", names)
	}
	if o := (api.Kind{Name: "Pod"}).New(); o != nil {
		t.Errorf("a kind that is none makes a %T", o)
	}
	if _, err := (api.Kind{Name: "Pod"}).Decode([]byte("{}")); err == nil {
		t.Error("a kind that is none decodes")
	}
}

// TestValueListsEveryKind reads the type constraint, which cannot be asked at run time.
func TestValueListsEveryKind(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "registry.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var words []string
	ast.Inspect(file, func(n ast.Node) bool {
		if spec, ok := n.(*ast.TypeSpec); ok && spec.Name.Name == "Value" {
			ast.Inspect(spec.Type, func(n ast.Node) bool {
				if id, ok := n.(*ast.Ident); ok {
					words = append(words, id.Name)
				}
				return true
			})
		}
		return true
	})
	for _, k := range api.Kinds() {
		if !slices.Contains(words, k.Name) {
			t.Errorf("%s is no Value", k.Name)
		}
	}
}

// knownRules are the rules that a `want` tag may hold.
func knownRules() []string {
	return []string{"required", "oneof", "fold", "range", "selector", "entity-selector", "ip", "ip4", "ip6", "cidr", "net", "mac", "regexp", "subdomain", "ifname"}
}

func TestTagsHoldOnlyKnownRules(t *testing.T) {
	seen := map[reflect.Type]bool{}
	var visit func(reflect.Type)
	visit = func(s reflect.Type) {
		for s.Kind() == reflect.Pointer || s.Kind() == reflect.Slice || s.Kind() == reflect.Map {
			s = s.Elem()
		}
		if s.Kind() != reflect.Struct || seen[s] || !strings.HasSuffix(s.PkgPath(), "/api") {
			return
		}
		seen[s] = true
		for i := range s.NumField() {
			f := s.Field(i)
			for rule := range strings.SplitSeq(f.Tag.Get("want"), "; ") {
				name, rest, _ := strings.Cut(rule, " ")
				if rule != "" && !slices.Contains(knownRules(), name) || name == "range" && len(strings.Fields(rest)) != 2 {
					t.Errorf("%s.%s: rule %q", s.Name(), f.Name, rule)
				}
			}
			visit(f.Type)
		}
	}
	for _, k := range api.Kinds() {
		visit(reflect.TypeOf(k.New()))
	}
	if len(seen) < 80 {
		t.Errorf("only %d types were looked at", len(seen))
	}
}

func TestSuggestionsAreNearAndOnlyWhatPeopleSee(t *testing.T) {
	for word, want := range map[string]string{
		"ippol": "ippool", "nods": "Node", "IPPol": "IPPool", "globalnetworkpolcy": "globalnetworkpolicy", "pod": "pol",
		"livemigratio": "", "": "", "something quite different": "",
	} {
		if got := api.Suggest(word); !strings.EqualFold(got, want) {
			t.Errorf("%q: did you mean %q? want %q", word, got, want)
		}
	}
}

func TestEncodingAnObjectLeavesItAsItWas(t *testing.T) {
	for _, k := range api.Kinds() {
		o := k.New()
		o.Meta().Name, o.Meta().Namespace, o.Meta().ResourceVersion = "default.x", "ns", "7"
		o.Meta().Labels, o.Meta().Annotations = map[string]string{"a": "b"}, map[string]string{"c": "d"}
		before := api.Clone(o)
		if _, err := api.EncodeObject(o, nil); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(before, o) {
			t.Errorf("%s: %s", k.Name, cmp.Diff(before.Meta(), o.Meta()))
		}
	}
}
