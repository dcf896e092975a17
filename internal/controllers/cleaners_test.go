package controllers

import (
	"testing"
	"time"
)

// A simulated cluster found this one (make sim SEED=600 NODES=6 OPS=4000, until it was mended): nobody had looked while the node was back.
func TestNodeThatCameBackMeanwhileIsMissingAnew(t *testing.T) {
	now := time.Unix(0, 0)
	c := NewCleaners(CleanersDeps{Now: func() time.Time { return now }, NodeGrace: time.Minute})
	if left := c.nodes.missed("a"); left != time.Minute {
		t.Fatalf("it must be missing for %v more, want a minute", left)
	}
	now = now.Add(59 * time.Second)
	c.Came("a")
	now = now.Add(2 * time.Second)
	if left := c.nodes.missed("a"); left != time.Minute {
		t.Errorf("it must be missing for %v more, want a minute anew", left)
	}
}
