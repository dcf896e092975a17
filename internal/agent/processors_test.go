package agent

import (
	"context"
	"runtime"
	"testing"
	"time"
)

func TestManyProcessorsAreForWhatOneCannotDo(t *testing.T) {
	start := time.Unix(0, 0)
	b := business{at: start, many: true}
	for _, c := range []struct {
		second int
		used   time.Duration
		many   bool
		why    string
	}{
		{1, 900 * time.Millisecond, true, "it starts"},
		{2, 1350 * time.Millisecond, true, "a little less"},
		{3, 1700 * time.Millisecond, false, "it rests"},
		{4, 2400 * time.Millisecond, false, "one processor can do that"},
		{5, 3300 * time.Millisecond, true, "one processor is nearly used up"},
		{6, 5200 * time.Millisecond, true, "more than one is used"},
		{60, 5300 * time.Millisecond, false, "it rests again"},
	} {
		if got := b.look(start.Add(time.Duration(c.second)*time.Second), c.used); got != c.many {
			t.Errorf("second %d, %s: many processors: %t", c.second, c.why, got)
		}
	}
}

func TestRuntimeHasOneProcessorAtRestAndWhatTheEnvironmentSays(t *testing.T) {
	t.Cleanup(runtime.SetDefaultGOMAXPROCS)
	runtime.SetDefaultGOMAXPROCS()
	all := runtime.GOMAXPROCS(0)
	if err := spareProcessors(t.Context(), func(name string) string { return map[string]string{"GOMAXPROCS": "2"}[name] }); err != nil || runtime.GOMAXPROCS(0) != all {
		t.Errorf("the environment is not heeded: %d processors, %v", runtime.GOMAXPROCS(0), err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- spareProcessors(ctx, func(string) string { return "" }) }()
	for deadline := time.Now().Add(time.Minute); runtime.GOMAXPROCS(0) != 1; {
		if time.Now().After(deadline) {
			t.Fatal("at rest it has more than one processor")
		}
		<-time.After(50 * time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil || runtime.GOMAXPROCS(0) != all {
		t.Errorf("it ends with %d processors, %v", runtime.GOMAXPROCS(0), err)
	}
}
