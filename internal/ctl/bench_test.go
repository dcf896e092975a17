package ctl_test

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/muslin-cni/muslin/internal/ctl"
	"github.com/muslin-cni/muslin/internal/etcdtest"
)

// BenchmarkAgainstBareEtcd reports how much longer commands take than a bare client's requests for the same: the medians of the ratios of
// rounds in which both take turns. Starting the program is not in it.
func BenchmarkAgainstBareEtcd(b *testing.B) {
	const resources = 2000
	etcd := etcdtest.New(b)
	bare := etcd.Etcd()
	var file strings.Builder
	for i := range resources {
		fmt.Fprintf(&file, "---\napiVersion: projectcalico.org/v3\nkind: GlobalNetworkSet\nmetadata: {name: set-%d}\nspec: {nets: [10.0.0.0/8]}\n", i)
	}
	do := func(args ...string) {
		set := settings()
		var stderr bytes.Buffer
		set.In, set.Out, set.Err = strings.NewReader(file.String()), io.Discard, &stderr
		set.Env = func(name string) string { return map[string]string{"ETCD_ENDPOINTS": etcd.Endpoint()}[name] }
		if code := ctl.Run(b.Context(), set, args); code != 0 {
			b.Fatalf("%v: %s", args, &stderr)
		}
	}
	took := func(f func()) float64 {
		began := time.Now()
		f()
		return float64(time.Since(began))
	}
	value := strings.Repeat("x", 220) // as long as what is stored
	var applies, gets []float64
	for range b.N {
		applies = append(applies, took(func() { do("apply", "-f", "-") })/took(func() {
			for i := range resources {
				if _, err := bare.Put(b.Context(), fmt.Sprintf("/bare/%d", i), value); err != nil {
					b.Fatal(err)
				}
			}
		}))
		gets = append(gets, took(func() { do("get", "ippool") })/took(func() {
			if _, err := etcd.Etcd().Get(b.Context(), "/bare/1"); err != nil { // a new client
				b.Fatal(err)
			}
		}))
	}
	b.ReportMetric(median(applies), "apply-ratio")
	b.ReportMetric(median(gets), "get-ratio")
}

func median(all []float64) float64 {
	slices.Sort(all)
	return all[len(all)/2]
}
