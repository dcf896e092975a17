package hosts

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/attachlock"
	"github.com/muslin-cni/muslin/internal/ctl/cli"
)

func statusCommand(env cli.Env) *cobra.Command {
	var format string
	c := &cobra.Command{
		Use:   "status",
		Short: "Say whether the agent runs on this host, and how its BGP sessions are doing",
		Long: "Say whether the agent runs on this host, and how its BGP sessions are doing. The sessions of any node are shown by a CalicoNodeStatus: apply one with\n" +
			"the node's name in spec.node and BGP among spec.classes, and get it.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := cli.CheckFormat(format); err != nil {
				return err
			}
			r, err := ask(c.Context(), attach.Socket)
			if err != nil {
				return err
			}
			if format == "json" {
				return cli.PrintJSON(env.Out, r)
			}
			return r.print(env.Out, env.Now())
		},
	}
	c.Flags().StringVarP(&format, "output", "o", "", "output format: json")
	return c
}

// askTimeout bounds how long the agent is waited for: to accept, and to answer.
const askTimeout = 5 * time.Second

// report is what an agent that runs says.
type report struct {
	BGP   bool          `json:"bgp"`             // the node speaks BGP
	Why   string        `json:"why,omitempty"`   // it does not
	Peers []attach.Peer `json:"peers,omitempty"` // sorted by address
}

// ask asks the agent that serves this host for its BGP sessions.
func ask(ctx context.Context, socket string) (report, error) {
	reply, err := askFor(ctx, socket, attach.BGP, "status")
	if told, ok := errors.AsType[*attach.Error](err); ok && told.Code == attach.CodeNoBGP {
		return report{Why: told.Error()}, nil
	}
	if err != nil {
		return report{}, err
	}
	return report{BGP: true, Peers: reply.Peers}, nil
}

// askFor asks the agent that serves this host one thing, for the command of that name. It opens its socket once the kernel is as it should be, and holds
// its lock all the time.
func askFor(ctx context.Context, socket string, verb attach.Verb, command string) (attach.Reply, error) {
	reply, err := askAgent(ctx, socket, verb)
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		if errors.Is(err, os.ErrPermission) {
			return reply, fmt.Errorf("node %s must be run as root: the agent's socket is root's alone", command)
		}
		return reply, absent(socket, op)
	}
	if err != nil {
		return reply, fmt.Errorf("ask the agent for its %s: %w", command, err)
	}
	return reply, nil
}

// askAgent asks the agent one thing. The error is a *net.OpError if nobody listens, and an *attach.Error if the answer is one.
func askAgent(ctx context.Context, socket string, verb attach.Verb) (attach.Reply, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return attach.Reply{}, err
	}
	defer func() { _ = c.Close() }() // asked and answered
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return attach.Reply{}, err
	}
	return attach.NewConn(c).Ask(&attach.Request{Version: attach.Version, Verb: verb})
}

// absent says why nobody answers.
func absent(socket string, why error) error {
	held, err := attachlock.Held(filepath.Dir(socket), attach.AgentLock)
	if err != nil {
		return err
	}
	if held {
		return fmt.Errorf("Calico process is running, but has not programmed this host yet, and attaches no pods: look at its log: %w", why) //nolint:staticcheck // begins as what scripts look for
	}
	return errors.New("Calico process is not running.") //nolint:staticcheck,revive // the text that scripts look for
}

// print writes what calicoctl writes. Times are in now's time zone.
func (r report) print(w io.Writer, now time.Time) error {
	if _, err := fmt.Fprintln(w, "Calico process is running."); err != nil {
		return err
	}
	if !r.BGP {
		_, err := fmt.Fprintf(w, "\nThe BGP backend process (BIRD) is not running.\n%s.\n", r.Why)
		return err
	}
	for _, v6 := range []bool{false, true} {
		if err := r.family(w, v6, now); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintln(w)
	return err
}

// family writes the sessions of one family, by the address of the peer. Those with pods are not shown, as calicoctl does.
func (r report) family(w io.Writer, v6 bool, now time.Time) error {
	name := "IPv4"
	if v6 {
		name = "IPv6"
	}
	t := cli.Table{Head: []string{"PEER ADDRESS", "PEER TYPE", "STATE", "SINCE", "INFO"}}
	for _, p := range r.Peers {
		if p.Addr.Is6() == v6 && p.Type != workloadPeer {
			t.Rows = append(t.Rows, row(p.Addr, p, now))
		}
	}
	if _, err := fmt.Fprintf(w, "\n%s BGP status\n", name); err != nil {
		return err
	}
	if len(t.Rows) == 0 {
		_, err := fmt.Fprintf(w, "No %s peers found.\n", name)
		return err
	}
	return t.Print(w)
}

const workloadPeer = "local workload"

// row is a session's line. The words for states are those of BIRD: a session that is not up is being started.
func row(addr netip.Addr, p attach.Peer, now time.Time) []string {
	state, info := "start", p.State
	if p.Established() {
		state = "up"
	}
	if p.Info != "" {
		info += " " + p.Info
	}
	return []string{addr.String(), p.Type, state, since(p.Since.In(now.Location()), now), info}
}

// since is the time of a day for what began on this one, and else the day.
func since(t, now time.Time) string {
	if t.Format(time.DateOnly) == now.Format(time.DateOnly) {
		return t.Format(time.TimeOnly)
	}
	return t.Format(time.DateOnly)
}
