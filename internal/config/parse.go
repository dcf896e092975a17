package config

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/bits"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/muslin-cni/muslin/pkg/api"
)

const (
	ourProtocol = 80 // as Calico's
	maxMetric   = 2147483646
)

// orNone makes of "" and "none" the zero value.
func orNone[T any](parse func(string) (T, error)) func(string) (T, error) {
	return func(s string) (v T, err error) {
		if s == "" || strings.EqualFold(s, "none") {
			return v, nil
		}
		return parse(s)
	}
}

func anyText(s string) (string, error) { return s, nil }

func parseBool(s string) (bool, error) {
	switch strings.ToLower(s) {
	case "true", "1", "yes", "y", "t":
		return true, nil
	}
	if isFalse(s) || strings.EqualFold(s, "none") {
		return false, nil
	}
	return false, errors.New("want true or false")
}

func parseOptionalBool(s string) (*bool, error) {
	v, err := parseBool(s)
	return &v, err
}

func enabled(s string) (bool, error) {
	word, err := oneOf("Enabled", "Disabled")(s)
	return word == "Enabled", err
}

func level(s string) (Level, error) {
	switch strings.ToUpper(s) {
	case "TRACE":
		return Level(slog.LevelDebug) - 4, nil
	case "DEBUG":
		return Level(slog.LevelDebug), nil
	case "INFO":
		return Level(slog.LevelInfo), nil
	case "WARNING", "WARN":
		return Level(slog.LevelWarn), nil
	case "ERROR":
		return Level(slog.LevelError), nil
	case "FATAL":
		return Level(slog.LevelError) + 4, nil
	case "NONE":
		return Off, nil
	}
	return 0, errors.New("want Trace, Debug, Info, Warning, Error, Fatal or None")
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
func parseMTU(s string) (int, error) { return mtu(s, 68) }

// parseMTU6 is parseMTU for IPv6, which needs more (RFC 8200, section 5).
func parseMTU6(s string) (int, error) { return mtu(s, 1280) }

func mtu(s string, least int) (int, error) {
	v, err := strconv.Atoi(s)
	if err != nil || v != 0 && (v < least || v > 65535) {
		return 0, fmt.Errorf("want 0 or a number between %d and 65535", least)
	}
	return v, nil
}

// seconds takes a number of seconds, as variables and files have it, or a duration with units, as resources do.
func seconds(s string) (time.Duration, error) {
	if strings.EqualFold(s, "none") {
		return 0, nil
	}
	d, err := time.ParseDuration(s)
	if n, plain := strconv.ParseFloat(s, 64); plain == nil && n >= 0 && n <= maxSeconds {
		return time.Duration(n * float64(time.Second)), nil
	}
	if err != nil || d < 0 || d > maxSeconds*time.Second {
		return 0, errors.New("want seconds, or a time such as 1m30s")
	}
	return d, nil
}

const maxSeconds = 10 * 365 * 24 * 3600

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

var prefix = regexp.MustCompile(`^[a-zA-Z0-9_.-]{1,14}$`) // of a name of at most 15 characters (IFNAMSIZ)

func prefixes(s string) ([]string, error) {
	var out []string
	for _, p := range strings.Split(s, ",") {
		p = strings.TrimSpace(p)
		if !prefix.MatchString(p) {
			return nil, errors.New("want beginnings of device names, at most 14 letters, digits, _, . or - each, with commas between them")
		}
		out = append(out, p)
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

func markMask(s string) (uint32, error) {
	v, err := strconv.ParseUint(s, 0, 32)
	if err != nil || bits.OnesCount64(v) < 4 {
		return 0, errors.New("want a number of 32 bits, at least 4 of them set, such as 0xffff0000")
	}
	return uint32(v), nil
}

// logRate takes a number of packets and a unit of time: 10/minute.
func logRate(s string) (LogRate, error) {
	number, unit, _ := strings.Cut(s, "/")
	n, err := strconv.ParseUint(number, 10, 32)
	per := map[string]time.Duration{"second": time.Second, "minute": time.Minute, "hour": time.Hour, "day": 24 * time.Hour}[unit]
	if err != nil || n == 0 || per == 0 {
		return LogRate{}, errors.New("want a number of packets and second, minute, hour or day, such as 10/minute")
	}
	return LogRate{uint32(n), per}, nil
}

// routeProtocol refuses the numbers under which the kernel and the host's own programs keep their routes (rtnetlink(7)), because every
// route of our protocol that we do not want is removed: redirect, kernel, static, ra and dhcp.
func routeProtocol(s string) (int, error) {
	v, err := within(0, 255)(s)
	switch {
	case err != nil || slices.Contains([]int{1, 2, 4, 9, 16}, v):
		return 0, errors.New("want 3, or a number of 255 at most under which no other program keeps routes")
	case v == 0 || v == 3:
		return ourProtocol, nil
	}
	return v, nil
}

func addr4(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || !a.Is4() {
		return netip.Addr{}, errors.New("want an IPv4 address")
	}
	return a, nil
}

func addr6(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || !a.Is6() || a.Zone() != "" {
		return netip.Addr{}, errors.New("want an IPv6 address")
	}
	return a, nil
}

func portRange(s string) (string, error) {
	lo, hi, ranged := strings.Cut(strings.ReplaceAll(s, "-", ":"), ":")
	if !ranged {
		hi = lo
	}
	first, err1 := within(1, 65535)(lo)
	last, err2 := within(1, 65535)(hi)
	if err1 != nil || err2 != nil || first > last {
		return "", errors.New("want a range of ports such as 32768:65000")
	}
	return fmt.Sprintf("%d-%d", first, last), nil
}

func ranges(s string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, text := range strings.Split(s, ",") {
		text = strings.TrimSpace(text)
		if a, err := netip.ParseAddr(text); err == nil {
			text = netip.PrefixFrom(a, a.BitLen()).String()
		}
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, errors.New("want addresses or ranges such as 10.1.0.0/16, with commas between them")
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

// failsafes takes ports as Calico's variables have them: protocol:port, or protocol:range:port with an IPv6 range in brackets or without. A
// port without a protocol is TCP's.
func failsafes(s string) ([]Failsafe, error) {
	var out []Failsafe
	for _, text := range strings.Split(s, ",") {
		f, ok := failsafe(strings.TrimSpace(text))
		if !ok {
			return nil, errors.New("want ports such as tcp:22, udp:68 or tcp:10.0.0.0/8:22, with commas between them, or none")
		}
		out = append(out, f)
	}
	return out, nil
}

func failsafe(text string) (f Failsafe, ok bool) {
	protocol, rest, found := strings.Cut(text, ":")
	if !found {
		protocol, rest = "tcp", text
	}
	f.Protocol = api.ProtocolNamed(protocol).IANA()
	if f.Protocol != api.ProtoTCP && f.Protocol != api.ProtoUDP {
		return f, false
	}
	if at := strings.LastIndex(rest, ":"); at >= 0 {
		p, err := netip.ParsePrefix(strings.Trim(rest[:at], "[]"))
		if err != nil {
			return f, false
		}
		f.Net, rest = p.Masked(), rest[at+1:]
	}
	port, err := within(1, 65535)(rest)
	f.Port = uint16(port)
	return f, err == nil
}

// failsafeText is what a resource says as a variable would.
func failsafeText(ports []api.ProtoPort) string {
	if len(ports) == 0 {
		return "none"
	}
	var out []string
	for _, p := range ports {
		text := strings.ToLower(cmp.Or(p.Protocol, "tcp")) + ":"
		if p.Net != "" {
			text += p.Net + ":"
		}
		out = append(out, text+strconv.Itoa(int(p.Port)))
	}
	return strings.Join(out, ",")
}

var device = regexp.MustCompile(`^[a-zA-Z0-9:._-]{1,15}$`) // IFNAMSIZ, and what resources take

func deviceName(s string) (string, error) {
	if !device.MatchString(s) || s == "." || s == ".." {
		return "", errors.New("want a device's name, of at most 15 letters, digits, :, ., _ or -")
	}
	return s, nil
}

// tables takes ranges of routing tables: 1-250, or 1-50,100-150.
func tables(s string) ([]TableRange, error) {
	var out []TableRange
	for _, text := range strings.Split(s, ",") {
		lo, hi, _ := strings.Cut(strings.TrimSpace(text), "-")
		first, err1 := within(1, math.MaxUint32)(lo)
		last, err2 := within(1, math.MaxUint32)(hi)
		if err1 != nil || err2 != nil || first > last {
			return nil, errors.New("want ranges of routing tables such as 1-250, with commas between them")
		}
		out = append(out, TableRange{first, last})
	}
	return out, nil
}

// tablesText is what a resource says as a variable would.
func tablesText(list ...api.RouteTableRange) string {
	var out []string
	for _, r := range list {
		out = append(out, fmt.Sprintf("%d-%d", r.Min, r.Max))
	}
	return strings.Join(out, ",")
}
