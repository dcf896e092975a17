package main

import (
	"fmt"
	"os"
	"path/filepath"
)

// build makes the three images.
type build struct {
	bin, plugins, out, cache string
	version, prefix          string
}

// nodePackages are Debian's packages in the agent's image: iptables, which it runs, ipset, which people run to see what the agent has made, and the
// libraries of the two.
var nodePackages = []string{
	"iptables", "ipset", "libc6", "libip4tc2", "libip6tc2", "libipset13", "libmnl0", "libnetfilter-conntrack3", "libnfnetlink0", "libnftnl11", "libxtables12", "netbase",
}

// hostPlugins are those of the CNI project that go onto hosts beside ours.
var hostPlugins = []string{"bandwidth", "host-local", "loopback", "portmap", "tuning"}

// nobody is the user of programs that need no rights: the number is the one that is usual for it in images without a list of users.
const nobody = "65532:65532"

func (b build) run() error {
	if err := os.MkdirAll(b.out, 0o755); err != nil {
		return err
	}
	packages, err := fetch(b.cache, nodePackages)
	if err != nil {
		return err
	}
	for _, s := range b.specs(packages) {
		digest, err := s.write(b.out)
		if err != nil {
			return fmt.Errorf("make image %s: %w", s.name, err)
		}
		fmt.Printf("%s  %s:%s\n", digest, s.name, s.tag)
	}
	return nil
}

func (b build) specs(packages []debian) []spec {
	program := func(name, path string) file { return file{from: filepath.Join(b.bin, name), path: path, mode: 0o755} }
	node := spec{
		name: b.prefix + "-node", tag: b.version, entrypoint: []string{"/usr/bin/muslin-node"}, packages: packages,
		files: []file{
			program("muslin-node", "usr/bin/muslin-node"), program("muslin", "opt/cni/bin/muslin"), program("muslin-ipam", "opt/cni/bin/muslin-ipam"),
			{path: "usr/sbin/iptables", link: "iptables-nft"}, {path: "usr/sbin/ip6tables", link: "ip6tables-nft"}, // Debian's by an alternative
			{path: "tmp", mode: 0o1777},
		},
	}
	for _, name := range hostPlugins {
		node.files = append(node.files, file{from: filepath.Join(b.plugins, name), path: "opt/cni/bin/" + name, mode: 0o755})
	}
	controllers := spec{
		name: b.prefix + "-controllers", tag: b.version, entrypoint: []string{"/usr/bin/muslin-controllers"}, user: nobody,
		files: []file{
			program("muslin-controllers", "usr/bin/muslin-controllers"), {path: "usr/bin/check-status", link: "muslin-controllers"},
			{path: "status", mode: 0o1777}, {path: "tmp", mode: 0o1777},
		},
	}
	ctl := spec{
		name: b.prefix + "-ctl", tag: b.version, entrypoint: []string{"/muslinctl"}, user: nobody,
		files: []file{program("muslinctl", "muslinctl"), {path: "calicoctl", link: "muslinctl"}, {path: "tmp", mode: 0o1777}},
	}
	return []spec{node, controllers, ctl}
}
