package config

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/muslin-cni/muslin/pkg/api"
)

// Dataplane is the effective dataplane settings.
type Dataplane struct {
	IPv6Support          bool
	LogLevel             string
	IPIPEnabled          *bool // nil: when a pool uses IP-in-IP
	IPIPMTU              int   // 0: from the host's devices
	VXLANEnabled         *bool // nil: when a pool uses VXLAN
	VXLANPort, VXLANVNI  int
	VXLANMTU, VXLANMTUV6 int // 0: from the host's devices
	MTUIface             *regexp.Regexp
	IptablesBackend      string // auto, nft or legacy
	NATExclusions        string // IPPoolsOnly or IPPoolsAndHostIPs
}

// defaultMTUIface matches the usual names of physical devices.
var defaultMTUIface = regexp.MustCompile(`^((en|wl|ww|sl|ib)[Pcopsvx].*|(eth|wlan|wwan).*)`)

// Effective combines the sources. Either configuration may be nil. What could not be read comes back as texts.
func Effective(env Env, global, node *api.FelixConfiguration) (Dataplane, []string) {
	r := &resolver{env: env}
	for _, f := range []struct {
		name string
		conf *api.FelixConfiguration
	}{{"FelixConfiguration(node)", node}, {"FelixConfiguration(default)", global}} {
		if f.conf != nil {
			r.layers = append(r.layers, layer{f.name, fromSpec(f.conf.Spec)})
		}
	}
	d := Dataplane{
		IPv6Support:     resolve(r, "IPV6SUPPORT", true, parseBool),
		LogLevel:        strings.ToUpper(resolve(r, "LOGSEVERITYSCREEN", "INFO", parseLevel)),
		IPIPEnabled:     resolve(r, "IPINIPENABLED", nil, parseOptionalBool),
		IPIPMTU:         resolve(r, "IPINIPMTU", 0, parseMTU),
		VXLANEnabled:    resolve(r, "VXLANENABLED", nil, parseOptionalBool),
		VXLANPort:       resolve(r, "VXLANPORT", 4789, within(1, 65535)),
		VXLANVNI:        resolve(r, "VXLANVNI", 4096, within(0, 1<<24-1)),
		VXLANMTU:        resolve(r, "VXLANMTU", 0, parseMTU),
		VXLANMTUV6:      resolve(r, "VXLANMTUV6", 0, parseMTU),
		MTUIface:        resolve(r, "MTUIFACEPATTERN", defaultMTUIface, regexp.Compile),
		IptablesBackend: resolve(r, "IPTABLESBACKEND", "auto", oneOf("auto", "nft", "legacy")),
		NATExclusions:   resolve(r, "NATOUTGOINGEXCLUSIONS", "ippoolsonly", oneOf("ippoolsonly", "ippoolsandhostips")),
	}
	return d, r.problems
}

// layer is one source of settings: texts by upper-case name.
type layer struct {
	name   string
	values map[string]string
}

type resolver struct {
	env      Env
	layers   []layer // after the environment, strongest first
	problems []string
}

// resolve returns the setting from the strongest source that has a readable value.
func resolve[T any](r *resolver, name string, fallback T, parse func(string) (T, error)) T {
	try := func(source, text string) (T, bool) {
		v, err := parse(text)
		if err != nil {
			r.problems = append(r.problems, fmt.Sprintf("%s: %q: %v; the next source counts", source, text, err))
		}
		return v, err == nil
	}
	if s := r.env("FELIX_" + name); s != "" {
		if v, ok := try("environment FELIX_"+name, s); ok {
			return v
		}
	}
	for _, l := range r.layers {
		if s := l.values[name]; s != "" {
			if v, ok := try(l.name+" "+strings.ToLower(name), s); ok {
				return v
			}
		}
	}
	return fallback
}

func fromSpec(s api.FelixConfigurationSpec) map[string]string {
	return map[string]string{
		"IPV6SUPPORT":           text(s.IPv6Support),
		"LOGSEVERITYSCREEN":     s.LogSeverityScreen,
		"IPINIPENABLED":         text(s.IPIPEnabled),
		"IPINIPMTU":             text(s.IPIPMTU),
		"VXLANENABLED":          text(s.VXLANEnabled),
		"VXLANPORT":             text(s.VXLANPort),
		"VXLANVNI":              text(s.VXLANVNI),
		"VXLANMTU":              text(s.VXLANMTU),
		"VXLANMTUV6":            text(s.VXLANMTUV6),
		"MTUIFACEPATTERN":       s.MTUIfacePattern,
		"IPTABLESBACKEND":       s.IptablesBackend,
		"NATOUTGOINGEXCLUSIONS": s.NATOutgoingExclusions,
	}
}

func text[T any](p *T) string {
	if p == nil {
		return ""
	}
	return fmt.Sprint(*p)
}

func parseBool(s string) (bool, error) {
	switch strings.ToLower(s) {
	case "true", "1", "yes", "y", "t":
		return true, nil
	}
	if isFalse(s) {
		return false, nil
	}
	return false, fmt.Errorf("want true or false")
}

func parseOptionalBool(s string) (*bool, error) {
	v, err := parseBool(s)
	return &v, err
}

func parseLevel(s string) (string, error) {
	switch l := strings.ToUpper(s); l {
	case "TRACE", "DEBUG", "INFO", "WARNING", "WARN", "ERROR", "FATAL", "NONE":
		return l, nil
	}
	return "", fmt.Errorf("want Debug, Info, Warning, Error or Fatal")
}

func within(lo, hi int) func(string) (int, error) {
	return func(s string) (int, error) {
		v, err := strconv.Atoi(s)
		if err != nil || v < lo || v > hi {
			return 0, fmt.Errorf("want a number between %d and %d", lo, hi)
		}
		return v, nil
	}
}

// parseMTU takes what the kernel takes for IPv4 (RFC 791: every link carries 68 octets), and 0 for "choose".
func parseMTU(s string) (int, error) {
	v, err := strconv.Atoi(s)
	if err != nil || v != 0 && (v < 68 || v > 65535) {
		return 0, fmt.Errorf("want 0 or a number between 68 and 65535")
	}
	return v, nil
}

func oneOf(words ...string) func(string) (string, error) {
	return func(s string) (string, error) {
		for _, w := range words {
			if strings.EqualFold(s, w) {
				return w, nil
			}
		}
		return "", fmt.Errorf("want one of %s", strings.Join(words, ", "))
	}
}
