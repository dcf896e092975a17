package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/ruleset"
	"github.com/muslin-cni/muslin/internal/startup"
)

// The bit of packets' marks that says that policy has accepted a packet is known in two places, which cannot change at once: in the table of policy, and in
// the rules of iptables that accept what bears it, whatever chains of others do. So where it changes, the table first goes on by the old one and sets both,
// then iptables changes, and then the table goes by the new one. No packet meets a rule that does not know its mark, and the other way round.
//
// The settings may change while no agent runs. So the mask that iptables goes by is written down, until the host starts anew.

// marks are settings as far as iptables goes along.
func (g *guard) marks(s ruleset.Settings) ruleset.Settings {
	next, _ := ruleset.Marks(s.MarkMask)
	if g.heeded == 0 {
		return s
	}
	if now, _ := ruleset.Marks(g.heeded); now != next {
		s.MarkMask, s.AlsoAccept = g.heeded, next
	}
	return s
}

// heed is called once iptables goes by a mask. It tells whether the table has to be enforced again for that.
func (g *guard) heed(mask uint32) (again bool) {
	if g.heeded == mask {
		return false
	}
	g.heeded = mask
	if err := g.noteMask(mask); err != nil {
		g.log.Warn("write down the mask of packets' marks", "error", err)
	}
	return g.settings.MarkMask != mask
}

// maskFile holds, until the host starts anew and iptables is empty, the mask by which iptables goes.
func maskFile() string { return filepath.Join(filepath.Dir(attach.Socket), "mark-mask") }

func writeMask(mask uint32) error {
	return startup.WriteFile(maskFile(), fmt.Sprintf("%#x", mask))
}

// readMask returns what writeMask has written; 0 if nothing.
func readMask() (uint32, error) {
	text, err := os.ReadFile(maskFile())
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read the mask of packets' marks: %w", err)
	}
	mask, err := strconv.ParseUint(string(text), 0, 32)
	if err != nil {
		return 0, fmt.Errorf("read the mask of packets' marks: %s: %q is none; remove the file", maskFile(), text)
	}
	return uint32(mask), nil
}
