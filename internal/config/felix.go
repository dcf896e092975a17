package config

import (
	"cmp"
	"fmt"
	"net/netip"
	"reflect"
	"regexp"
	"strings"
	"time"

	"github.com/muslin-cni/muslin/pkg/api"
)

// Dataplane is the effective settings of FelixConfiguration. felixRows has a row for each field, which says where it comes from.
type Dataplane struct {
	IPv6Support       bool
	InterfacePrefixes []string // names of workloads' devices on the host begin with one of them
	EndpointToHost    string   // what becomes of packets from pods to the host: ACCEPT, DROP or RETURN
	ChainInsertMode   string   // where our rules stand in the kernel's own chains: insert (first) or append (last)
	MarkMask          uint32   // the bits of packet marks that are ours
	DenyAction        string   // what denied packets get: DROP or REJECT
	NftDenyAction     string   // the same under its newer name; "": DenyAction counts
	NftMarkMask       uint32   // the same of MarkMask; 0: that counts
	LogPrefix         string   // in front of what Log rules write to the kernel's log
	LogRate           LogRate  // how often each of them may
	LogBurst          int      // and after a pause so many more
	KeepInvalid       bool     // packets that connection tracking finds invalid are not dropped
	Spoofing          string   // Any: workloads may send from the ranges that their endpoints name; Disabled: from their addresses alone
	FloatingIPs       bool     // what is sent to endpoints' floating addresses is translated
	WorkloadVXLAN     bool     // workloads may send VXLAN packets
	WorkloadIPIP      bool     // and IP in IP
	FailsafeIn        []Failsafe
	FailsafeOut       []Failsafe
	IptablesBackend   string // auto, nft or legacy
	NATExclusions     string // ippoolsonly or ippoolsandhostips
	NATAddress        netip.Addr
	NATPorts          string // 32768-65000; "": the kernel chooses

	IPIPEnabled          *bool // nil: when a pool uses IP-in-IP
	IPIPMTU              int   // 0: from the host's devices
	VXLANEnabled         *bool // nil: when a pool uses VXLAN
	VXLANPort, VXLANVNI  int
	VXLANMTU, VXLANMTUV6 int // 0: from the host's devices
	WireGuard            WireGuard
	MTUIface             *regexp.Regexp // never nil
	TunnelPeers          []netip.Prefix // whose VXLAN packets are taken though they are no nodes

	RouteProtocol          int        // rtm_protocol of our routes
	RouteSource            netip.Addr // preferred source of IPv4 routes to pods; zero: the kernel chooses
	RouteSource6           netip.Addr
	RemoveExternalRoutes   bool // routes of others on workloads' devices go
	ClusterRoutes          bool
	IPForwarding           bool // switch the host's forwarding on
	PodMetric4, PodMetric6 int  // of the routes to local pods

	Refresh Refresh

	HealthEnabled  bool
	HealthHost     string
	HealthPort     int
	Watchdog       time.Duration // after so long in one round the agent counts as stuck; 0: never
	MetricsEnabled bool
	MetricsHost    string // "": every address
	MetricsPort    int
	GoMetrics      bool
	ProcessMetrics bool

	WireGuardMetrics bool
	ReportInterval   time.Duration
	ReportTTL        time.Duration

	LogScreen, LogFile, LogSyslog Level
	LogFilePath                   string
}

// WireGuard is what FelixConfiguration says of encryption.
type WireGuard struct {
	Enabled, Enabled6 bool
	Port, Port6       int
	Device, Device6   string
	MTU, MTU6         int // 0: from the host's devices
	Priority          int // of the rule that leads to its routes
	Hosts             bool
	KeepAlive         time.Duration // 0: never
	Threaded          bool
	Tables, Tables1   []TableRange // that are free for us; of the two the second counts where it is set
}

// TableRange is a range of the kernel's routing tables, both ends included.
type TableRange struct{ Min, Max int }

// Table is the first table that is free for our routes; 0 if there is none. The kernel and its tools keep 253 to 255 for themselves.
func (w WireGuard) Table() int {
	ranges := w.Tables
	if len(w.Tables1) > 0 {
		ranges = w.Tables1
	}
	for _, r := range ranges {
		first := r.Min
		if first >= 253 && first <= 255 {
			first = 256
		}
		if first <= r.Max {
			return first
		}
	}
	return 0
}

// Failsafe is a port by which a host with an endpoint of its own is reached, or reaches others, whatever policy says.
type Failsafe struct {
	Protocol uint8 // IANA number: 6 or 17
	Port     uint16
	Net      netip.Prefix // the others' addresses; zero: everybody's
}

// LogRate is a number of packets in a unit of time. The zero LogRate is none that was asked for.
type LogRate struct {
	Packets uint32
	Per     time.Duration // time.Second, time.Minute, time.Hour or 24 hours
}

// Refresh says how often kinds of kernel objects are listed without a reason. 0 is never.
type Refresh struct{ Chains, Sets, Routes, Interfaces time.Duration }

// Level is the least severity that a sink of the log takes, as slog counts it.
type Level int

// Off is the level of a sink that takes nothing.
const Off Level = 1 << 10

// Sources are the places where settings come from, the strongest first. What is nil says nothing.
type Sources struct {
	Env          Env
	File         File
	Node, Global *api.FelixConfiguration
}

// Effective combines the sources. What could not be read comes back as texts, each with its source, what is wanted there and what
// counts instead: the next source that can be read. The Dataplane is complete in any case.
func Effective(s Sources) (Dataplane, []string) {
	layers := s.layers()
	var d Dataplane
	var problems []string
	for _, r := range felixRows() {
		if r.set != nil {
			problems = append(problems, r.resolve(&d, layers)...)
		}
	}
	return d, append(problems, s.File.unknown()...)
}

// CheckLocal returns an error where the environment or the file holds a value that can be neither read nor passed over: by another value
// than the one that was meant, the node would be open to what it should refuse, or deaf to its pods. Such values in etcd are only
// problems, since they would stop every agent at once.
func CheckLocal(env Env, file File) error {
	layers := Sources{Env: env, File: file}.layers()
	var d Dataplane
	for _, r := range felixRows() {
		if !r.must {
			continue
		}
		if bad := r.resolve(&d, layers); len(bad) > 0 {
			return fmt.Errorf("read the settings: %s; correct it or take it out", strings.Join(bad, "; "))
		}
	}
	return nil
}

// Local is env where a variable that is not set takes its value from its counterpart among Felix's local settings: NODENAME from
// FELIX_FELIXHOSTNAME, ETCD_ENDPOINTS from FELIX_ETCDENDPOINTS, in the environment or else in the file.
func Local(env Env, file File) Env {
	counterpart := map[string]row{}
	for _, r := range felixRows() {
		if r.local != "" {
			counterpart[r.local] = r
		}
	}
	layers := Sources{Env: env, File: file}.layers()
	return func(name string) string {
		v := env(name)
		r, ok := counterpart[name]
		if v != "" || !ok {
			return v
		}
		for _, l := range layers {
			if v, _ := l.lookup(r); v != "" {
				return v
			}
		}
		return ""
	}
}

// layer is one source of settings.
type layer struct {
	shared bool                            // in etcd: local settings do not count there
	lookup func(row) (text, source string) // text is "" if it says nothing
}

func (s Sources) layers() []layer {
	var out []layer
	if s.Env != nil {
		out = append(out, layer{lookup: func(r row) (string, string) {
			return cmp.Or(s.Env(r.Env), s.Env("FELIX_"+r.Name)), "environment " + r.Env
		}})
	}
	if s.File.values != nil {
		out = append(out, layer{lookup: func(r row) (string, string) {
			return s.File.values[strings.ToLower(r.Name)], s.File.Path + " " + r.Name
		}})
	}
	for _, conf := range []*api.FelixConfiguration{s.Node, s.Global} {
		if conf != nil {
			out = append(out, stored(conf))
		}
	}
	return out
}

// stored is the layer of a resource. Its fields are named as the settings are, but for case and a few exceptions.
func stored(conf *api.FelixConfiguration) layer {
	texts := map[string]string{}
	names := map[string]string{}
	eachField(conf.Spec, func(name string, v reflect.Value) {
		key := strings.ToLower(name)
		names[key] = name
		if v.Kind() == reflect.Pointer {
			v = v.Elem() // invalid if nil
		}
		if v.IsValid() {
			texts[key] = specText(v)
		}
	})
	return layer{shared: true, lookup: func(r row) (string, string) {
		key := strings.ToLower(cmp.Or(r.json, r.Name))
		return texts[key], "FelixConfiguration(" + conf.Metadata.Name + ") spec." + names[key]
	}}
}

// eachField calls f for every field, under its JSON name.
func eachField(spec api.FelixConfigurationSpec, f func(name string, v reflect.Value)) {
	v := reflect.ValueOf(spec)
	for i := range v.NumField() {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		f(name, v.Field(i))
	}
}

func specText(f reflect.Value) string {
	if list, ok := f.Interface().([]string); ok {
		return strings.Join(list, ",")
	}
	if list, ok := f.Interface().([]api.ProtoPort); ok {
		return failsafeText(list)
	}
	if list, ok := f.Interface().([]api.RouteTableRange); ok {
		return tablesText(list...)
	}
	if r, ok := f.Interface().(api.RouteTableRange); ok {
		return tablesText(r)
	}
	return fmt.Sprint(f.Interface())
}

// resolve sets the row's field from the strongest source whose value can be read, and names those that cannot.
func (r row) resolve(d *Dataplane, layers []layer) (problems []string) {
	counts := "the default, " + cmp.Or(r.Default, "none") + ","
	done := false
	for _, l := range layers {
		text, source := l.lookup(r)
		if text == "" || l.shared && (r.local != "" || r.filled && text == r.Default) {
			continue
		}
		err := r.set(d, text)
		if err == nil {
			counts, done = text+" from "+source, true
			break
		}
		problems = append(problems, fmt.Sprintf("%s: %q: %v", source, text, err))
	}
	if !done {
		_ = r.set(d, r.Default) // a test holds that every default can be read
	}
	for i := range problems {
		problems[i] += "; " + counts + " counts instead"
	}
	return problems
}
