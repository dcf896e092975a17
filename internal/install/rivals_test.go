package install

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/nettest"
)

// lookEnv makes this test binary look for rivals in namespaces of its own; its value is what to start first.
const lookEnv = "INSTALL_TEST_RIVAL"

func TestMain(m *testing.M) {
	if what := os.Getenv(lookEnv); what != "" {
		os.Exit(look(what))
	}
	if root := os.Getenv(installEnv); root != "" {
		os.Exit(installOver(root))
	}
	os.Exit(m.Run())
}

// look is the first process of a host: it starts what there is to be found and prints what is found.
func look(what string) int {
	// The child that waits for its input stands for a daemon; it is found by the name that it was started under, as a shell script's would be.
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fail(err)
	}
	args := strings.Fields(what)
	cmd := exec.Command("/bin/cat")
	cmd.Args = args
	if strings.HasPrefix(what, "elsewhere ") {
		cmd.Args = args[1:]
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	}
	if socket, ok := strings.CutPrefix(what, "socket "); ok {
		if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil {
			return fail(err)
		}
		if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
			return fail(err)
		}
		l, err := net.Listen("unix", socket)
		if err != nil {
			return fail(err)
		}
		defer l.Close()
		return report()
	}
	if len(cmd.Args) > 1 { // cat would take them for files
		cmd.Path = "/bin/sleep"
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		return fail(err)
	}
	if err := cmd.Start(); err != nil {
		return fail(err)
	}
	// Start returns a moment before the kernel shows the new arguments.
	deadline := time.Now().Add(10 * time.Second)
	for line := []byte(nil); len(line) == 0 && time.Now().Before(deadline); line, _ = os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", cmd.Process.Pid)) {
		runtime.Gosched()
	}
	code := report()
	_ = in.Close()
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	return code
}

func report() int {
	err := Rival("/proc")
	var rival *RivalError
	switch {
	case errors.As(err, &rival):
		fmt.Println("found " + rival.Command)
	case err != nil:
		return fail(err)
	default:
		fmt.Println("none")
	}
	return 0
}

func fail(err error) int {
	fmt.Fprintln(os.Stderr, err)
	return 1
}

func TestCalicosAgentIsSeenByItsNameInItsOwnNetworkNamespace(t *testing.T) {
	nettest.Need(t, "root")
	for _, c := range []struct{ start, want string }{
		{"calico-node", "found calico-node"},
		{"/usr/bin/calico-felix", "found /usr/bin/calico-felix"},
		{"calico-node 1000", "found calico-node 1000"}, // "-felix" and its like
		{"elsewhere calico-node", "none"},
		{"calico-typha", "none"},
		{"bird", "none"},
		{"socket /run/calico/bird.ctl", "found BIRD's socket /run/calico/bird.ctl"},
		{"socket /run/calico/other.ctl", "none"},
	} {
		program, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), program)
		cmd.Env = append(os.Environ(), lookEnv+"="+c.start)
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNET, Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL,
		}
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		got, readErr := bufio.NewReader(out).ReadString('\n')
		if readErr != nil && !errors.Is(readErr, io.EOF) {
			t.Error(readErr)
		}
		if err := cmd.Wait(); err != nil || strings.TrimSpace(got) != c.want {
			t.Errorf("%s: %q, %v, want %q", c.start, got, err, c.want)
		}
	}
}

func TestBirdOfCalicosIsToldFromAnyOther(t *testing.T) {
	for line, want := range map[string]bool{
		"bird\x00-R\x00-s\x00/var/run/calico/bird.ctl\x00-d\x00-c\x00/etc/calico/confd/config/bird.cfg\x00": true,
		"/usr/sbin/bird\x00-f\x00-u\x00bird\x00":                                                            false,
		"calico-node\x00-confd\x00":                                                                         true,
		"calico-node\x00-v\x00":                                                                             false,
		"/usr/bin/kube-controllers\x00calico-node\x00":                                                      false,
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "cmdline"), []byte(line), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, got := rivalCommand(dir); got != want {
			t.Errorf("%q: %t", line, got)
		}
	}
}
