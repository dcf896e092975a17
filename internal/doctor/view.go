package doctor

import (
	"errors"
	"io/fs"
	"net/netip"
	"time"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/config"
	"github.com/muslin-cni/muslin/internal/kernel"
	"github.com/muslin-cni/muslin/internal/nft"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
)

// Fact is something that was looked for: what was found, or why that is not known. It reads as the error first.
type Fact[T any] struct {
	Value T
	Err   error
}

// View is everything that is known of a node at one moment. The zero View is a host on which nothing was found.
type View struct {
	Now      time.Time
	Node     Fact[string]     // the node's name
	Machine  Fact[string]     // the id of this machine
	Settings config.Dataplane // in force; without etcd, as environment and defaults say
	Speaks   bool             // the node is set to speak BGP

	Certificates Fact[[]Certificate]
	Etcd         Fact[[]store.Member]
	Data         Fact[Data]

	Disks Fact[[]Disk] // that agent and plugin write to

	Host    Fact[kernel.Host]
	Lacking Fact[[]Feature]                        // what the kernel has not
	Sysctls Fact[map[string]string]                // by path below /proc/sys; what does not exist is missing
	Boot    Fact[map[string]BootSetting]           // as the files of sysctl.d(5) set them, by the same path
	Chains  Fact[[]nft.Chain]                      // of nftables, those of iptables-nft among them
	Legacy  Fact[[]LegacyChain]                    // of iptables-legacy
	Routes  Fact[map[kernel.RouteKey]kernel.Route] // ours
	Ways    Fact[map[netip.Addr]kernel.Hop]        // how the host sends to each of Targets; what it has no way to is missing. nil: nobody asked

	Rival          Fact[string]   // Calico's agent on this host: what was seen of it; "": none
	Processes      Fact[[]string] // programs that run in this network namespace, of those that are named below
	NetworkManager Fact[NetworkManager]
	Networkd       Fact[Networkd]
	UFW            Fact[UFW]

	Agent  Fact[Agent]
	Conf   Fact[[]ConfFile]         // of the CNI configuration folder, in the order in which a runtime reads them
	Bins   Fact[map[string]Program] // CNI's programs by name
	Looked Folders                  // where both were looked for
	Set    Fact[RuntimeConf]        // what the container runtime is set to
	PodMTU Fact[int]                // that the agent tells the plugin; 0: it told none
}

// The programs that View.Processes is about.
const (
	NetworkManagerProgram = "NetworkManager"
	NetworkdProgram       = "systemd-networkd"
	FirewalldProgram      = "firewalld"
)

// Data is what etcd holds, as far as it concerns the node.
type Data struct {
	Cluster  *api.ClusterInformation // nil: there is none
	Identity *api.NodeIdentity       // whose the node's name is; nil: nobody's
	Config   api.IPAMConfig
	IPAM     ipam.View
	Bad      []store.UnreadableError // values of these, but for IPAM's own
	Took     time.Duration           // until the first of it was read
}

// node is the Node of that name; nil if there is none.
func (d Data) node(name string) *api.Node {
	for _, e := range d.IPAM.Nodes {
		if e.Value.Metadata.Name == name {
			return e.Value
		}
	}
	return nil
}

// Certificate is a file by which somebody reaches etcd.
type Certificate struct {
	Owner    string // who uses it: agent, plugin, muslinctl
	Kind     string // certificate, key or CA
	Path     string
	Err      error     // why it cannot be used: unreadable, no PEM, of another key
	From, To time.Time // its validity; zero for a key. Of several in one file, the time in which all are valid
	Mode     fs.FileMode
}

// Feature is something that a kernel has or not.
type Feature struct {
	Name string // of the module
	For  Purpose
}

// Purpose is what a feature is needed for.
type Purpose string

// The purposes.
const (
	ForAll       Purpose = ""
	ForVXLAN     Purpose = "pools with VXLAN"
	ForIPIP      Purpose = "pools with IP-in-IP"
	ForWireGuard Purpose = "WireGuard"
	ForReject    Purpose = "policy that answers what it denies"
	ForLog       Purpose = "Log rules that write to the kernel's log"
)

// LegacyChain is a chain of iptables-legacy.
type LegacyChain struct {
	V6          bool
	Table, Name string
	Drop        bool // a chain of the kernel's whose policy is DROP
}

// NetworkManager is what is known of it.
type NetworkManager struct {
	Unmanaged []string     // patterns of devices' names that its configuration keeps it from
	Manages   map[int]bool // by index of a device: whether it says that it manages it
}

// Networkd is what systemd-networkd is set to.
type Networkd struct {
	Routes, Rules bool          // it takes away routes, and rules, that it has not made itself
	Files         []NetworkFile // in the order in which it looks for one that matches a device
}

// NetworkFile is a .network file (systemd.network(5)) that goes by devices' names alone.
type NetworkFile struct {
	Path      string
	Names     []string // patterns; behind a ! at the front of the first, those that do not match
	Unmanaged bool     // the devices are left alone
}

// UFW is what is set of it.
type UFW struct{ Enabled, DropsForward bool }

// Agent is what is known of the node's agent.
type Agent struct {
	Runs     bool          // a process holds the agent's lock
	Socket   error         // why its socket does not answer; nil: it does
	Serves   error         // why the node is to be given no pods; nil: it may
	Self     *attach.Agent // nil: it did not say
	NoBGP    string        // why there are no sessions; "": Sessions are all
	Sessions []attach.Peer
}

// ConfFile is a file of the CNI configuration folder.
type ConfFile struct {
	Name string
	Text []byte
	Err  error // it could not be read
}

// Program is a file that a runtime starts.
type Program struct {
	Runs    bool   // it may be executed
	Version string // that it says it has; "": not of ours, or it does not say
}

// Folders are those of a container runtime.
type Folders struct {
	Conf string   // of network configurations
	Bins []string // of CNI programs
}

// RuntimeConf is a container runtime's configuration, as far as it is judged. The zero value: it says nothing of it.
type RuntimeConf struct {
	File string
	Folders
}

// Disk is the file system that a folder is on.
type Disk struct {
	Path       string
	Free, Size uint64 // bytes
	NoFiles    bool   // it has room for no more files, however small
	ReadOnly   bool
}

// BootSetting is a value that a kernel setting gets at boot, and with each `sysctl --system`.
type BootSetting struct{ Value, File string }

// afterError is a fact that is missing because of something that another check finds.
type afterError struct{ check, why string }

func (e *afterError) Error() string { return e.why }

// The reasons for which facts are missing that one check has told, so that others only refer to it.
var (
	ErrNoEtcd  error = &afterError{"etcd", "etcd cannot be read"}
	ErrNoAgent error = &afterError{"agent", "the agent does not answer"}
	ErrNoName  error = &afterError{"identity", "the node has no name"}
)

func follows(err error) (*afterError, bool) { return errors.AsType[*afterError](err) }
