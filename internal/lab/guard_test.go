package lab

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"
)

// orphanVar makes the test binary bring up a guarded lab in that folder and wait to be killed.
const orphanVar = "MUSLIN_LAB_TEST_ORPHAN"

func TestGuardedLabGoesWithTheProcessThatIsKilled(t *testing.T) {
	cfg := bare(t)
	if dir := os.Getenv(orphanVar); dir != "" {
		cfg.Dir = dir
		if _, err := Up(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
		select {} // until killed
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), orphanVar+"="+cfg.Dir, "TMPDIR="+t.TempDir()) // who is killed clears nothing away
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Down(context.Background(), cfg.Dir); err != nil {
			t.Error(err)
		}
	})
	var s *state
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	up := poll(ctx, func() bool {
		l, err := Open(cfg.Dir)
		if err == nil {
			s, err = l.load()
		}
		return err == nil
	})
	if up != nil {
		t.Fatalf("wait for the lab: %v", up)
	}
	if err := errors.Join(cmd.Process.Kill(), ignoreExit(cmd.Wait())); err != nil {
		t.Fatal(err)
	}
	down := poll(ctx, func() bool {
		_, err := Open(cfg.Dir)
		return errors.Is(err, ErrNotUp)
	})
	if down != nil {
		t.Fatalf("wait until the lab is down: %v", down)
	}
	expectDown(t, cfg, s)
}

func ignoreExit(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil
	}
	return err
}
