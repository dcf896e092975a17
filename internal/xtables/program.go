package xtables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-iptables/iptables"

	"github.com/muslin-cni/muslin/internal/kernel"
)

// Backend chooses the kernel's side of iptables.
type Backend string

// The backends. Both may be on one host, and a packet passes both.
const (
	Auto   Backend = "auto" // the one that holds the chains of kube-proxy or the kubelet, else NFT
	NFT    Backend = "nft"
	Legacy Backend = "legacy"
)

const (
	saveSuffix  = "-save"
	plain       = "iptables"  // the program where the host has only one
	plain6      = "ip6tables" // its sibling for IPv6
	lockSeconds = 5           // that a program waits for another that holds the lock
	// execTimeout bounds one run of a program, which takes milliseconds, and seconds where it waits for the lock. It is killed then.
	execTimeout = 10 * time.Second
	// pipeTimeout bounds the wait for what a program's own children still print after its end.
	pipeTimeout = time.Second
)

// OpenChains finds the iptables programs of a backend. It runs up to four of them, in the namespace of the calling thread.
func OpenChains(ctx context.Context, b Backend) (*Chains, error) {
	program, err := choose(ctx, b)
	if err != nil {
		return nil, fmt.Errorf("choose iptables backend: %w", err)
	}
	return newChains(ctx, program, iptables.ProtocolIPv4, newHands())
}

// IPv6 opens the table of the IPv6 chains by the same backend. It fails where the host lacks the program, or the kernel the tables. It
// runs three programs, in the namespace of the calling thread.
func (c *Chains) IPv6(ctx context.Context) (*Chains, error) {
	program := plain6 + strings.TrimPrefix(c.Backend(), plain)
	if !isInstalled(program) {
		return nil, fmt.Errorf("%s is not installed; it is in the package iptables", program)
	}
	if _, err := run(ctx, program+saveSuffix); err != nil {
		return nil, err
	}
	return newChains(ctx, program, iptables.ProtocolIPv6, c.hands)
}

func newChains(ctx context.Context, program string, family iptables.Protocol, h *hands) (*Chains, error) {
	version, err := run(ctx, program, "--version")
	if err != nil {
		return nil, err
	}
	c := &Chains{program: program, v6: family == iptables.ProtocolIPv6, hands: h, tells: bytes.Contains(version, []byte("nf_tables"))}
	err = bounded(ctx, func() (err error) {
		c.ipt, err = iptables.New(iptables.Path(program), iptables.IPFamily(family), iptables.Timeout(lockSeconds))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("prepare %s: %w", program, err)
	}
	return c, nil
}

// ErrMissing says that no program of an iptables backend is on this host.
var ErrMissing = errors.New("no iptables program is installed; install the package iptables, for example with `apt-get install iptables`")

func choose(ctx context.Context, b Backend) (string, error) {
	nft, legacy := plain+"-"+string(NFT), plain+"-"+string(Legacy)
	var candidates []string
	switch b {
	case Auto, "":
		candidates = []string{nft, legacy}
	case NFT:
		candidates = []string{nft}
	case Legacy:
		candidates = []string{legacy}
	default:
		return "", fmt.Errorf("backend %q is none of auto, nft, legacy", b)
	}
	installed := slices.DeleteFunc(slices.Clone(candidates), func(p string) bool { return !isInstalled(p) })
	switch {
	case len(installed) == 0 && isInstalled(plain):
		return plain, nil
	case len(installed) == 0:
		return "", ErrMissing
	case len(candidates) == 1:
		return installed[0], nil
	}
	for _, p := range installed {
		if out, err := run(ctx, p+saveSuffix); err == nil && bytes.Contains(out, []byte("\n:KUBE-")) {
			return p, nil
		}
	}
	return installed[0], ctx.Err()
}

func isInstalled(program string) bool {
	_, err := exec.LookPath(program + saveSuffix)
	return err == nil
}

// run runs a program that only reads, in the namespace of the calling thread, and returns what it prints. It dies with us.
func run(ctx context.Context, program string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, execTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.WaitDelay = pipeTimeout
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) && len(exit.Stderr) > 0 {
		err = fmt.Errorf("%w: %s", err, bytes.TrimSpace(exit.Stderr))
	}
	switch {
	case err == nil:
		return out, nil
	case ctx.Err() != nil:
		err = fmt.Errorf("%w: %w", ctx.Err(), err) // or it would only say that the process was killed
	}
	return nil, fmt.Errorf("run %s: %w", program, err)
}

// rule is a rule as the kernel tells it.
type rule struct {
	mark string   // "" if it is not ours
	spec []string // what follows the chain's name; nil if it cannot be read
}

// dump reads all tables.
func (c *Chains) dump(ctx context.Context) (map[kernel.ChainKey][]rule, error) {
	out, err := run(ctx, c.program+saveSuffix)
	if err != nil {
		return nil, fmt.Errorf("list %s rules: %w", c.Backend(), err)
	}
	return parse(string(out)), nil
}

// parse reads the format of iptables-save(8). A line that is not of that format, such as the rest of a comment with a line break, is
// passed over: it cannot be ours.
func parse(text string) map[kernel.ChainKey][]rule {
	out := map[kernel.ChainKey][]rule{}
	table := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "*"):
			table = line[1:]
		case strings.HasPrefix(line, ":"):
			name, _, _ := strings.Cut(line[1:], " ")
			out[kernel.ChainKey{Table: table, Chain: name}] = nil
		case strings.HasPrefix(line, "-A "):
			name, spec, _ := strings.Cut(line[3:], " ")
			k := kernel.ChainKey{Table: table, Chain: name}
			out[k] = append(out[k], parseRule(spec))
		}
	}
	return out
}

func parseRule(spec string) rule {
	w, err := words(spec)
	if err != nil {
		return rule{}
	}
	return rule{mark: markIn(w), spec: w}
}

// markIn returns our mark among a rule's words.
func markIn(words []string) string {
	for i, w := range words[:max(0, len(words)-1)] {
		if w == "--comment" && strings.HasPrefix(words[i+1], kernel.CommentPrefix) {
			return words[i+1]
		}
	}
	return ""
}

// words splits a rule as iptables-save writes it: at spaces, but not inside double quotes, where a backslash takes the next
// character as it is.
func words(line string) ([]string, error) {
	var out []string
	var word strings.Builder
	inWord, quoted := false, false
	for i := 0; i < len(line); i++ {
		switch ch := line[i]; {
		case ch == '"':
			quoted, inWord = !quoted, true
		case ch == '\\' && quoted && i+1 < len(line):
			i++
			word.WriteByte(line[i])
		case ch == ' ' && !quoted:
			if inWord {
				out = append(out, word.String())
			}
			word.Reset()
			inWord = false
		default:
			word.WriteByte(ch)
			inWord = true
		}
	}
	if quoted {
		return nil, fmt.Errorf("a quote is not closed")
	}
	if inWord {
		out = append(out, word.String())
	}
	return out, nil
}

// SweepOther removes what is ours from the tables of the backend that is not in use, both families: an earlier agent wrote there before the
// setting was changed, and packets pass both. It tells how many chains it went through. A backend that is not installed holds nothing.
func (c *Chains) SweepOther(ctx context.Context) (swept int, err error) {
	nft, legacy := "-"+string(NFT), "-"+string(Legacy)
	other, ok := map[string]string{plain + nft: legacy, plain + legacy: nft}[c.program]
	if !ok {
		return 0, nil // there is only one
	}
	var errs []error
	for program, family := range map[string]iptables.Protocol{plain + other: iptables.ProtocolIPv4, plain6 + other: iptables.ProtocolIPv6} {
		n, err := sweep(ctx, program, family)
		swept += n
		errs = append(errs, err)
	}
	return swept, errors.Join(errs...)
}

func sweep(ctx context.Context, program string, family iptables.Protocol) (int, error) {
	if !isInstalled(program) {
		return 0, nil
	}
	text, err := run(ctx, program+saveSuffix)
	if err != nil || !bytes.Contains(text, []byte(":"+kernel.ChainPrefix)) {
		return 0, nil //nolint:nilerr // a backend that the kernel lacks has no rules of ours
	}
	c, err := newChains(ctx, program, family, newHands())
	if err != nil {
		return 0, err
	}
	have, err := c.List(ctx)
	if err != nil {
		return 0, err
	}
	var changes []kernel.Change[kernel.ChainKey, kernel.Chain]
	for k, chain := range have {
		changes = append(changes, kernel.Change[kernel.ChainKey, kernel.Chain]{Key: k, Old: &chain})
	}
	return len(changes), c.Apply(ctx, changes)
}
