package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/install"
)

// procDir is where the host's processes are seen. A container sees them if it shares the host's process namespace.
const procDir = "/proc"

// Folders of the image: where the host's are mounted, and where the programs for the host are.
const (
	hostMount     = "/host"
	imagePrograms = "/opt/cni/bin"
)

// places are those of a container where the host's folders are mounted, else those of the host itself, with the programs beside this one.
func places() (install.Places, error) {
	for _, dir := range []string{"opt/cni/bin", "etc/cni/net.d"} {
		if _, err := os.Stat(filepath.Join(hostMount, dir)); err == nil {
			return install.Places{Host: hostMount, Source: imagePrograms}, nil
		}
	}
	program, err := os.Executable()
	if err != nil {
		return install.Places{}, fmt.Errorf("look for programs: %w", err)
	}
	return install.Places{Host: "/", Source: filepath.Dir(program)}, nil
}

// newInstaller makes what the environment asks for.
func newInstaller(env func(string) string, log *slog.Logger) (*install.Installer, install.Settings, error) {
	at, err := places()
	if err != nil {
		return nil, install.Settings{}, err
	}
	s, err := install.FromEnv(env, at)
	if err != nil {
		return nil, s, err
	}
	i, err := install.New(s, env, log)
	return i, s, err
}

// installer is the one that goes on beside the agent; nil if the environment asks for none.
func (a *Agent) installer() (*install.Installer, error) {
	if !a.cfg.Install {
		return nil, nil
	}
	i, _, err := newInstaller(a.env, a.log)
	return i, err
}

// installHost is the installer as a process of its own.
func installHost(ctx context.Context, p Process) error {
	if err := install.Rival(procDir); err != nil {
		return err
	}
	i, s, err := newInstaller(lookup(p.Environ), newLogs(p.Stderr).logger())
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	serving := make(chan struct{})
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		if awaitAgent(ctx) {
			close(serving)
		}
	}()
	defer func() { stop(); <-asked }()
	if !s.Stay {
		return i.Once(ctx, serving)
	}
	i.Run(ctx, serving)
	return nil
}

// awaitAgent waits until the agent's socket takes connections, which it does once pods can be served. It tells whether it came to that.
func awaitAgent(ctx context.Context) bool {
	const pause = 500 * time.Millisecond
	dialer := net.Dialer{Timeout: pause}
	for {
		conn, err := dialer.DialContext(ctx, "unix", attach.Socket)
		if err == nil {
			return conn.Close() == nil
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(pause):
		}
	}
}
