package netconf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/attach"
)

// The files in which a host's agent tells its plugins about the host.
const (
	NodenameFile = "/var/lib/calico/nodename"
	MTUFile      = "/var/lib/calico/mtu"
)

// The MTU's bounds are IPv4's smallest and the largest that a veth device takes.
const (
	minMTU = 68
	maxMTU = 65535
)

// Node says what the host is called in the cluster.
type Node struct {
	Nodename             string `json:"nodename"`      // wins over everything
	NodenameFile         string `json:"nodename_file"` // "": NodenameFile
	NodenameFileOptional bool   `json:"nodename_file_optional"`
	Hostname             string `json:"hostname"` // deprecated; where there is neither nodename nor file
}

// Name is the node's name: the key nodename, else the file's content, else hostname, else the host's own name in lower case. Unless
// it is optional, the file must be there: the agent writes it when it has made the host a node. Errors are *attach.Error.
func (n Node) Name() (string, error) {
	path := n.NodenameFile
	if path == "" {
		path = NodenameFile
	}
	content, err := os.ReadFile(path)
	if err != nil && !n.NodenameFileOptional {
		return "", &attach.Error{
			Code: attach.CodeTryAgain, Msg: fmt.Sprintf("read node name: %v", err),
			Details: "check that the agent is running on this node and writes to the host's /var/lib/calico",
		}
	}
	fromFile := strings.TrimSpace(string(content))
	for _, name := range []string{n.Nodename, fromFile, n.Hostname} {
		if name != "" {
			return name, nil
		}
	}
	name, err := os.Hostname()
	if err != nil {
		return "", &attach.Error{Code: attach.CodeBadConfig, Msg: fmt.Sprintf("read host name: %v", err), Details: "set the key nodename"}
	}
	return strings.ToLower(strings.TrimSpace(name)), nil
}

// short is more than a file with a number in it has, in bytes.
const short = 64

// readShort reads a file up to that. Package os would offer the file to the poller first, which costs more than the rest.
func readShort(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	content := make([]byte, short)
	n, err := unix.Read(fd, content)
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return nil, &fs.PathError{Op: "read", Path: path, Err: err}
	}
	return content[:n], nil
}

// PodMTU is the MTU of a pod's interface: the key mtu, else the content of file, which the agent writes, else 0, the kernel's default.
// Errors are *attach.Error.
func (c *Conf) PodMTU(file string) (int, error) {
	if c.MTU != 0 {
		return c.MTU, nil
	}
	content, err := readShort(file)
	if errors.Is(err, fs.ErrNotExist) && !c.RequireMTUFile {
		return 0, nil
	}
	if err != nil {
		return 0, &attach.Error{
			Code: attach.CodeTryAgain, Msg: fmt.Sprintf("read MTU: %v", err),
			Details: "check that the agent is running on this node, or set the key mtu",
		}
	}
	mtu, err := strconv.Atoi(strings.TrimSpace(string(content)))
	if err != nil || len(content) == short || mtu < minMTU || mtu > maxMTU {
		return 0, &attach.Error{
			Code: attach.CodeBadConfig, Msg: fmt.Sprintf("read MTU: %s holds %q, want a number from %d to %d", file, content, minMTU, maxMTU),
			Details: "remove the file, the agent writes it anew, or set the key mtu",
		}
	}
	return mtu, nil
}
