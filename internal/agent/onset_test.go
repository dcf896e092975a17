package agent

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/muslin-cni/muslin/internal/plan"
)

// begins is an onset with IPv4 alone, in the round after one without encryption.
func begins(t *testing.T) *onset {
	t.Helper()
	o := newOnset(time.Now)
	o.round(t, false, false, plan.Strict)
	if o.due() != nil {
		t.Error("a step is due though nothing has begun")
	}
	o.round(t, true, false, plan.Silent)
	return o
}

// round has encryption on or off, and the key told or not.
func (o *onset) round(t *testing.T, on, told bool, want plan.Onset) {
	t.Helper()
	if got := o.stages([2]bool{on, false}, [2]bool{told, false}); got != [2]plan.Onset{want, plan.Strict} {
		t.Errorf("on %t, told %t: it is at %v, want %v", on, told, got, want)
	}
	o.saw(plan.Modes{WireGuard: on})
}

func TestEncryptionBeginsInStepsWhileTheAgentRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := begins(t)
		time.Sleep(time.Second)
		o.round(t, true, true, plan.Silent)
		time.Sleep(heardTime / 2)
		o.round(t, true, true, plan.Silent) // a round for another reason
		<-o.due()
		o.round(t, true, true, plan.Partial)
		<-o.due()
		o.round(t, true, true, plan.Strict)
		if o.due() != nil {
			t.Error("a step is due after the last")
		}
		time.Sleep(time.Hour)
		o.round(t, true, false, plan.Strict) // the device was made anew
		o.round(t, false, false, plan.Strict)
		o.round(t, true, false, plan.Silent)
	})
}

func TestEncryptionThatNobodyCanBeToldOfBeginsAllTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := begins(t)
		began := time.Now()
		<-o.due()
		o.round(t, true, false, plan.Strict)
		if took := time.Since(began); took != onsetTime {
			t.Errorf("it took %v", took)
		}
	})
}

func TestAgentThatStartsWithEncryptionOnRefusesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOnset(time.Now)
		for range 2 {
			o.round(t, true, false, plan.Strict)
			if o.due() != nil {
				t.Error("a step is due")
			}
			time.Sleep(time.Second)
		}
	})
}

func TestStepThatIsDueWithinARoundWakesTheNextOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := begins(t)
		time.Sleep(onsetTime - time.Second)
		if got := o.stages([2]bool{true, false}, [2]bool{}); got[0] != plan.Silent {
			t.Errorf("it is at %v", got)
		}
		time.Sleep(2 * time.Second) // the round takes as long
		o.saw(plan.Modes{WireGuard: true})
		if o.due() == nil {
			t.Fatal("nothing wakes the round that is to refuse")
		}
		<-o.due()
		o.round(t, true, false, plan.Strict)
	})
}

func TestFamiliesBeginByThemselves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOnset(time.Now)
		o.round(t, true, false, plan.Strict)
		both := [2]bool{true, true}
		if got := o.stages(both, [2]bool{true, false}); got != [2]plan.Onset{plan.Strict, plan.Silent} {
			t.Errorf("it is at %v", got)
		}
		o.saw(plan.Modes{WireGuard: true, WireGuard6: true})
		<-o.due()
		if got := o.stages(both, [2]bool{true, false}); got != [2]plan.Onset{plan.Strict, plan.Strict} {
			t.Errorf("in the end it is at %v", got)
		}
	})
}
