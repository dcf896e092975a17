package startup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/muslin-cni/muslin/internal/config"
)

// NodeName is the node's name: NODENAME, else what the nodename file says, else the host's name in lower case.
func NodeName(cfg config.Node, env config.Env) (string, error) {
	if cfg.NodeName != "" {
		return checkName(cfg.NodeName, "NODENAME")
	}
	b, err := os.ReadFile(cfg.NodeNameFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read the node's name: %w", err)
	}
	if name := strings.TrimSpace(string(b)); name != "" {
		return checkName(name, cfg.NodeNameFile)
	}
	if name := env("HOSTNAME"); name != "" {
		return checkName(strings.ToLower(strings.TrimSpace(name)), "HOSTNAME")
	}
	name, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("read the host's name: %w; set NODENAME", err)
	}
	return checkName(strings.ToLower(strings.TrimSpace(name)), "the host's name")
}

func checkName(name, source string) (string, error) {
	bad := name == "" || len(name) > 253 || name[0] == '-' || name[0] == '.' || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789.-") != ""
	if bad || strings.HasSuffix(name, "-") || strings.HasSuffix(name, ".") {
		return "", fmt.Errorf("node name %q (from %s): want lower-case letters, digits, dashes and dots, beginning and ending with a letter or digit; set NODENAME", name, source)
	}
	return name, nil
}

// WriteFile replaces a small file at once or not at all, making its folder if need be. The file is left alone if it holds that
// text already.
func WriteFile(path, text string) error {
	if old, err := os.ReadFile(path); err == nil && string(old) == text {
		return nil
	}
	if err := replace(path, text); err != nil {
		err = withoutName(err)
		if errors.Is(err, syscall.ENOSPC) {
			err = fmt.Errorf("%w: make room on that file system", err)
		}
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func replace(path, text string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	_, err = tmp.WriteString(text)
	err = errors.Join(err, tmp.Chmod(0o644), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return nil
}

// withoutName is the reason of a failure alone: the name of the new file, which is another one each time, says nothing to anybody.
func withoutName(err error) error {
	var file *fs.PathError
	var rename *os.LinkError
	switch {
	case errors.As(err, &file):
		return file.Err
	case errors.As(err, &rename):
		return rename.Err
	}
	return err
}
