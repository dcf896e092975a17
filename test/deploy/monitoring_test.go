package deploy

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"
)

// metric matches the names of our own metrics; those of the Go runtime, of the process and of Prometheus itself are not ours to keep.
var metric = regexp.MustCompile(`\b(felix|muslin|ipam)_[a-z0-9_]+`)

// exported are the metrics that our programs have: string literals of that form in their sources.
func exported(t *testing.T) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	err := filepath.WalkDir(filepath.Join(root, "internal"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				if name, err := strconv.Unquote(lit.Value); err == nil && metric.FindString(name) == name {
					out[name] = true
				}
			}
			return true
		})
		return nil
	})
	if err != nil || len(out) < 20 {
		t.Fatalf("metrics %v, %v", slices.Sorted(maps.Keys(out)), err)
	}
	return out
}

// missing are the metrics of an expression that nobody exports. Histograms and summaries have several series of one name.
func missing(expr string, all map[string]bool) (out []string) {
	for _, name := range metric.FindAllString(expr, -1) {
		base := name
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			base = strings.TrimSuffix(base, suffix)
		}
		if !all[name] && !all[base] {
			out = append(out, name)
		}
	}
	return out
}

func TestDashboardAsksForMetricsThatThereAre(t *testing.T) {
	var board struct {
		UID, Title string
		Panels     []struct {
			ID      int
			Type    string
			Title   string
			GridPos struct{ X, W int }
			Targets []struct{ Expr string }
		}
		Templating struct {
			List []struct{ Name string }
		}
	}
	if err := json.Unmarshal([]byte(file(t, "monitoring/grafana-agents.json")), &board); err != nil {
		t.Fatal(err)
	}
	all, ids, asked := exported(t), map[int]bool{}, 0
	for _, p := range board.Panels {
		if ids[p.ID] || p.Title == "" || p.GridPos.X+p.GridPos.W > 24 || p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %d %q: its number is taken, it has no title, is off the grid, or shows nothing", p.ID, p.Title)
		}
		ids[p.ID] = true
		for _, target := range p.Targets {
			asked++
			if gone := missing(target.Expr, all); len(gone) > 0 {
				t.Errorf("panel %q: nobody exports %q", p.Title, gone)
			}
		}
	}
	if asked < 20 || board.UID == "" || len(board.Templating.List) != 2 {
		t.Errorf("%d questions, %+v", asked, board.Templating)
	}
}

func TestAlertsAskForMetricsThatThereAreAndSayWhatToDo(t *testing.T) {
	var rules struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert, Expr, For    string
				Labels, Annotations map[string]string
			}
		}
	}
	if err := yaml.UnmarshalStrict([]byte(file(t, "monitoring/alerts.yaml")), &rules); err != nil {
		t.Fatal(err)
	}
	all, seen := exported(t), map[string]bool{}
	for _, r := range rules.Groups[0].Rules {
		if gone := missing(r.Expr, all); len(gone) > 0 {
			t.Errorf("%s: nobody exports %q", r.Alert, gone)
		}
		if _, err := time.ParseDuration(r.For); err != nil || seen[r.Alert] || r.Annotations["summary"] == "" || r.Labels["severity"] == "" {
			t.Errorf("%s is there twice, or lacks its severity, summary or duration", r.Alert)
		}
		seen[r.Alert] = true
	}
	if len(seen) < 8 {
		t.Errorf("alerts: %v", seen)
	}
}

func TestMetricsThatNobodyExportsAreFound(t *testing.T) {
	all := map[string]bool{"muslin_request_seconds": true}
	if got := missing(`rate(muslin_request_seconds_bucket[5m]) + felix_gone_total / muslin_request_second`, all); strings.Join(got, " ") != "felix_gone_total muslin_request_second" {
		t.Errorf("missing %q", got)
	}
}
