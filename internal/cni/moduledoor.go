package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/attachlock"
	"github.com/muslin-cni/muslin/internal/cni/netconf"
	"github.com/muslin-cni/muslin/internal/hostside"
	"github.com/muslin-cni/muslin/internal/members"
)

// moduleDoor runs the IPAM module by ordinary CNI delegation. (Package invoke of the CNI library does this too, but it links
// OpenTelemetry, and this program starts once for every pod.)
type moduleDoor struct {
	program string
	netconf map[string]json.RawMessage
	hold    []*os.File // that the module is to hold open as long as it lives
}

// moduleVersion is what the module's result comes in, whatever the runtime speaks: older ones have no interfaces, and so no MAC.
const moduleVersion = "1.1.0"

// A module that was told to stop, and that still holds its pipes open after this, is left behind.
const moduleGrace = time.Second

// ownModule registers endpoints where the configuration's IPAM module is of another project.
const ownModule = "muslin-ipam"

func newModuleDoor(conf *netconf.Conf, args *skel.CmdArgs, lock *attachlock.Lock) (*moduleDoor, error) {
	module := conf.IPAM.Type
	if conf.ForeignIPAM() {
		module = ownModule
	}
	program, err := findModule(module, filepath.SplitList(args.Path))
	if err != nil {
		return nil, noModule(err)
	}
	d := &moduleDoor{program: program}
	if lock != nil {
		d.hold = []*os.File{lock.File()}
	}
	if err := json.Unmarshal(args.StdinData, &d.netconf); err != nil {
		return nil, failure(attach.CodeDecode, err, "")
	}
	d.netconf["cniVersion"] = json.RawMessage(`"` + moduleVersion + `"`)
	return d, nil
}

// findModule returns the first program of that name in CNI_PATH's folders.
func findModule(name string, folders []string) (string, error) {
	for _, folder := range folders {
		path := filepath.Join(folder, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("find IPAM module %q in CNI_PATH %s: no such program", name, strings.Join(folders, ":"))
}

func noModule(err error) error {
	return failure(attach.CodeBadEnv, err, "put the program into the folder of the CNI plugins, usually /opt/cni/bin")
}

func (d *moduleDoor) register(ctx context.Context, req attach.Request) answer {
	var out []byte
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		out, err = d.run(ctx, "ADD", req)
	}()
	return func() (attach.Reply, error) {
		<-done
		if err != nil {
			return attach.Reply{}, err
		}
		return readModuleResult(out)
	}
}

func (d *moduleDoor) finish(ctx context.Context, w hostside.Workload) error {
	if err := programHost(ctx, w); err != nil {
		return failure(attach.CodeKernel, err, "")
	}
	return nil
}

func (d *moduleDoor) release(ctx context.Context, req attach.Request) error {
	_, err := d.run(ctx, "DEL", req)
	return err
}

func (d *moduleDoor) confirm(ctx context.Context, w hostside.Workload) error {
	if err := confirmHost(ctx, w); err != nil {
		return failure(attach.CodeKernel, err, "")
	}
	return nil
}

// query has the module answer: of our own requests it prints the handler's reply.
func (d *moduleDoor) query(ctx context.Context, req attach.Request) (attach.Reply, error) {
	command := "GC" // for Free too
	if req.Verb == attach.Check {
		command = "CHECK"
	}
	out, err := d.run(ctx, command, req)
	if err != nil {
		return attach.Reply{}, err
	}
	var reply attach.Reply
	if err := members.Decode(out, reply.Members()); err != nil {
		return attach.Reply{}, failure(attach.CodeDecode, fmt.Errorf("read the IPAM module's answer: %w", err), "install muslin and muslin-ipam from the same release")
	}
	return reply, nil
}

// status has the module say whether it could serve an ADD.
func (d *moduleDoor) status(ctx context.Context) error {
	_, err := d.exec(ctx, "STATUS")
	return err
}

func (d *moduleDoor) close() {}

// run executes the module for our own request and returns what it printed.
func (d *moduleDoor) run(ctx context.Context, command string, req attach.Request) ([]byte, error) {
	raw, err := json.Marshal(req)
	if err != nil {
		return nil, failure(attach.CodeInternal, fmt.Errorf("run %s %s: %w", d.program, command, err), "")
	}
	d.netconf["muslin"] = raw
	return d.exec(ctx, command)
}

// exec executes the module with the configuration as it is and returns what it printed.
func (d *moduleDoor) exec(ctx context.Context, command string) ([]byte, error) {
	raw, err := json.Marshal(d.netconf)
	if err != nil {
		return nil, failure(attach.CodeInternal, fmt.Errorf("run %s %s: %w", d.program, command, err), "")
	}
	return moduleRun{program: d.program, command: command, stdin: raw, hold: d.hold, remedy: "check that etcd answers"}.do(ctx)
}

// moduleRun is one call of an IPAM module.
type moduleRun struct {
	program, command string
	stdin            []byte
	env              []string   // beside our own
	hold             []*os.File // that it keeps open too
	remedy           string     // where it does not answer
}

// do returns what the module printed, or the error that it printed. A module that does not end in time is killed.
func (m moduleRun) do(ctx context.Context) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, m.program)
	cmd.Env = append(append(os.Environ(), "CNI_COMMAND="+m.command), m.env...) // of two, the last one counts
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(m.stdin), &stdout, &stderr
	cmd.ExtraFiles, cmd.WaitDelay = m.hold, moduleGrace
	err := cmd.Run()
	if err == nil {
		return stdout.Bytes(), nil
	}
	err = fmt.Errorf("run %s %s: %w", m.program, m.command, err)
	if ctx.Err() != nil {
		return nil, failure(attach.CodeTryAgain, fmt.Errorf("%w: no answer in time", err), m.remedy)
	}
	return nil, moduleFailure(err, stdout.Bytes(), stderr.Bytes())
}

// moduleFailure is the error that the module printed, else what is known.
func moduleFailure(err error, stdout, stderr []byte) error {
	var told types.Error
	if json.Unmarshal(stdout, &told) == nil && told.Msg != "" {
		return &attach.Error{Code: told.Code, Msg: told.Msg, Details: told.Details}
	}
	const enough = 500
	return failure(attach.CodeInternal, err, strings.TrimSpace(string(stderr[:min(len(stderr), enough)])))
}

// readModuleResult finds the addresses and the MAC in a module's result.
func readModuleResult(out []byte) (attach.Reply, error) {
	res, err := netconf.ReadResult(moduleVersion, out)
	if err != nil {
		return attach.Reply{}, failure(attach.CodeDecode, fmt.Errorf("read the IPAM module's result: %w", err), "")
	}
	var reply attach.Reply
	for _, ip := range res.IPs {
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			return attach.Reply{}, failure(attach.CodeDecode, fmt.Errorf("read the IPAM module's result: address %q", ip.Address.IP), "")
		}
		reply.Addrs = append(reply.Addrs, addr.Unmap())
	}
	if len(res.Interfaces) > 0 {
		reply.MAC = res.Interfaces[0].Mac
	}
	return reply, nil
}
