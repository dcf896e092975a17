package ipam_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strconv"
	"testing"

	"github.com/muslin-cni/muslin/internal/memetcd"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
)

// findingKinds reads the constants of that type from the source: a new one must not be forgotten.
func findingKinds(t *testing.T) (out []ipam.FindingKind) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "audit.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if kind, ok := spec.Type.(*ast.Ident); !ok || kind.Name != "FindingKind" {
			return true
		}
		text, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, ipam.FindingKind(text))
		return true
	})
	return out
}

func TestEveryFindingBreaksOneInvariant(t *testing.T) {
	kinds := findingKinds(t)
	if len(kinds) < 16 {
		t.Fatalf("the source has %d kinds of findings: %v", len(kinds), kinds)
	}
	for _, kind := range kinds {
		var broken []string
		for _, i := range ipam.Invariants() {
			if slices.Contains(i.Broken, kind) {
				broken = append(broken, i.Name)
			}
		}
		if len(broken) != 1 {
			t.Errorf("%s breaks %v, want just one invariant", kind, broken)
		}
	}
	names := map[string]bool{}
	for _, i := range ipam.Invariants() {
		if names[i.Name] || i.Holds == "" {
			t.Errorf("%q: want a name of its own and a sentence", i.Name)
		}
		names[i.Name] = true
	}
}

func TestVerifyGroupsWhatTheAuditFinds(t *testing.T) {
	view := func(edit func(map[string]string)) ipam.View {
		t.Helper()
		c := memetcd.New().Client()
		stored := healthy()
		edit(stored)
		var txn store.Txn
		for key, value := range stored {
			txn.PutRaw(key, []byte(value), 0)
		}
		if _, err := c.Commit(t.Context(), &txn); err != nil {
			t.Fatal(err)
		}
		v, err := ipam.LoadView(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for _, verdict := range ipam.Verify(view(func(map[string]string) {})) {
		if len(verdict.Violations) > 0 {
			t.Errorf("a sound datastore: %s: %v", verdict.Name, verdict.Violations)
		}
	}
	bad := view(func(m map[string]string) {
		delete(m, auditHandle)
		m[auditEndpoint2] = endpointWith("db", "c2", "10.0.0.1")
		m[auditAffinity2] = `{"state":"pending","deleted":false}`
	})
	broken, n := []string{}, 0
	for _, verdict := range ipam.Verify(bad) {
		if n += len(verdict.Violations); len(verdict.Violations) > 0 {
			broken = append(broken, verdict.Name)
		}
	}
	if want := []string{"one-owner", "owner-known", "affinities-agree"}; !slices.Equal(broken, want) {
		t.Errorf("broken: %v, want %v", broken, want)
	}
	if all := len(ipam.Audit(bad)); n != all {
		t.Errorf("the verdicts hold %d findings, the audit %d", n, all)
	}
}
