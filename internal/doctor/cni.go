package doctor

import (
	"encoding/json"
	"errors"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// network is a CNI configuration, as far as it is judged.
type network struct {
	file    string
	err     error
	plugin  plugin // of ours; zero if it has none
	types   []string
	modules []string // of IPAM
}

// plugin is one plugin of a network configuration. The keys are those of Calico's plugin.
type plugin struct {
	Type      string `json:"type"`
	NodeName  string `json:"nodename"`
	Endpoints string `json:"etcd_endpoints"`
	MTU       int    `json:"mtu"`
	IPAM      struct {
		Type string `json:"type"`
	} `json:"ipam"`
}

func (n network) ours() bool { return n.plugin.Type != "" }

// networks reads configurations in the order in which a runtime looks at them: by name, those with the endings that libcni takes.
func networks(files []ConfFile) []network {
	var out []network
	for _, f := range files {
		if !slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(f.Name)) {
			continue
		}
		n := network{file: f.Name, err: f.Err}
		if f.Err == nil {
			n.read(f.Text)
		}
		out = append(out, n)
	}
	slices.SortFunc(out, func(a, b network) int { return strings.Compare(a.file, b.file) })
	return out
}

func (n *network) read(text []byte) {
	var conf struct {
		Name    string   `json:"name"`
		Plugins []plugin `json:"plugins"`
		plugin
	}
	if n.err = json.Unmarshal(text, &conf); n.err != nil {
		return
	}
	if filepath.Ext(n.file) != ".conflist" && conf.Type != "" {
		conf.Plugins = []plugin{conf.plugin}
	}
	for _, p := range conf.Plugins {
		n.types = append(n.types, p.Type)
		if p.IPAM.Type != "" {
			n.modules = append(n.modules, p.IPAM.Type)
		}
		if (p.Type == "muslin" || p.Type == "calico") && !n.ours() {
			n.plugin = p
		}
	}
	switch {
	case conf.Name == "":
		n.err = errors.New(`"name" is missing`)
	case len(conf.Plugins) == 0:
		n.err = errors.New("it names no plugin")
	}
}

func cni(v View) []Finding {
	var l list
	if v.Conf.Err != nil {
		l.unknown("configurations", v.Conf.Err)
		return l
	}
	found := networks(v.Conf.Value)
	hidden := false
	for _, n := range found {
		switch {
		case errors.Is(n.err, fs.ErrPermission):
			hidden = true
			l.unknown(n.file, n.err)
		case n.err != nil:
			l.add(Error, n.file, "correct or remove it; the agent writes its own again (MUSLIN_INSTALL_CNI, `muslin-node install`)", "is no network configuration: %v", n.err)
		}
	}
	i := slices.IndexFunc(found, network.ours)
	if i < 0 && hidden {
		return l
	}
	if i < 0 {
		l.add(Error, "configurations", "`muslin-node install`, or MUSLIN_INSTALL_CNI=true for the agent; a host's own goes to /etc/cni/net.d",
			"none is ours: the runtime starts no pods, or has another network connect them")
		return l
	}
	l.runtime(v)
	l.programs(v, found[i])
	l.agrees(v, found[i])
	return l
}

// runtime finds a container runtime that looks elsewhere than was looked here.
func (l *list) runtime(v View) {
	set := v.Set.Value
	if v.Set.Err != nil {
		l.unknown("runtime", v.Set.Err)
	}
	if set.Conf != "" && path.Clean(set.Conf) != path.Clean(v.Looked.Conf) {
		l.add(Warning, set.File, "correct it there, have the agent install into that folder, or examine it (--cni-conf-dir)", "the runtime looks for network configurations in %s, and this is what was found in %s", set.Conf, v.Looked.Conf)
	}
	for _, dir := range set.Bins {
		if !slices.ContainsFunc(v.Looked.Bins, func(known string) bool { return path.Clean(known) == path.Clean(dir) }) {
			l.add(Warning, set.File, "correct it there, have the agent install into that folder, or examine it (--cni-bin-dir)", "the runtime looks for CNI programs in %s, and they were looked for in %s", dir, strings.Join(v.Looked.Bins, ", "))
		}
	}
}

func (l *list) programs(v View, n network) {
	if v.Bins.Err != nil {
		l.unknown("programs", v.Bins.Err)
		return
	}
	wanted := slices.Compact(slices.Sorted(slices.Values(slices.Concat(n.types, n.modules))))
	for _, name := range wanted {
		p, there := v.Bins.Value[name]
		switch {
		case !there:
			l.add(Error, name, "`muslin-node install` puts it there, but for portmap and bandwidth, which come with the CNI reference plugins", "the program is missing that %s names", n.file)
		case !p.Runs:
			l.add(Error, name, "chmod 755", "the program cannot be executed")
		case v.Agent.Value.Self != nil && p.Version != "" && p.Version != v.Agent.Value.Self.Version:
			l.add(Warning, name, "restart the one that is older: an agent with MUSLIN_INSTALL_CNI=true puts its own programs there, and so does `muslin-node install`",
				"the program is of version %s, and the agent of %s", p.Version, v.Agent.Value.Self.Version)
		}
	}
}

// agrees holds the plugin's configuration against the agent's settings.
func (l *list) agrees(v View, n network) {
	if name := n.plugin.NodeName; name != "" && v.Node.Err == nil && name != v.Node.Value {
		l.add(Error, n.file, "correct nodename there", "the plugin works for node %s, and this is %s", name, v.Node.Value)
	}
	if n.plugin.Endpoints == "" || len(v.Etcd.Value) == 0 {
		return
	}
	var theirs, ours []string
	for e := range strings.SplitSeq(n.plugin.Endpoints, ",") {
		theirs = append(theirs, strings.TrimRight(strings.TrimSpace(e), "/"))
	}
	for _, m := range v.Etcd.Value {
		ours = append(ours, strings.TrimRight(m.Endpoint, "/"))
	}
	if !slices.ContainsFunc(theirs, func(e string) bool { return slices.Contains(ours, e) }) {
		l.add(Warning, n.file, "correct etcd_endpoints there", "the plugin looks for etcd at %s, and the agent at %s", strings.Join(theirs, ","), strings.Join(ours, ","))
	}
}
