package modelcheck_test

import (
	"testing"
	"time"

	"github.com/muslin-cni/muslin/test/modelcheck"
)

func TestTry(t *testing.T) {
	for _, s := range modelcheck.Short() {
		t.Run(s.Name, func(t *testing.T) {
			began := time.Now()
			r, err := s.Explore(t.Context(), 150000)
			t.Logf("%+v %v %v", r, err, time.Since(began))
			if r.Violation != nil {
				t.Error(r.Violation)
			}
		})
	}
}
