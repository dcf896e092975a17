package api_test

import (
	"testing"

	"github.com/muslin-cni/muslin/pkg/api"
)

// BenchmarkDecode measures the reading of the kinds that an agent reads by the thousand.
func BenchmarkDecode(b *testing.B) {
	b.Run("Node", benchDecode[api.Node])
	b.Run("WorkloadEndpoint", benchDecode[api.WorkloadEndpoint])
	b.Run("IPPool", benchDecode[api.IPPool])
}

func benchDecode[T api.Value](b *testing.B) {
	var v T
	all := samples(b, kindOf(&v))
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if _, err := api.Decode[T](all[i%len(all)].Value); err != nil {
			b.Fatal(err)
		}
	}
}

func kindOf(v any) string {
	return v.(interface{ KindOf() api.Kind }).KindOf().Name
}
