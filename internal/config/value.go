package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/muslin-cni/muslin/pkg/api"
)

// value reads a variable's text into its field.
type value struct {
	want string             // what the text may be, in help and in errors
	set  func(string) error // an error without a text of its own is "want …"
}

// errUnfit says of a text only that it is not what is wanted.
var errUnfit = errors.New("unfit")

func parsed[T any](into *T, want string, parse func(string) (T, error)) value {
	return value{want, func(s string) (err error) {
		v, err := parse(s)
		if err == nil {
			*into = v
		}
		return err
	}}
}

func word(into *string, want string) value {
	return parsed(into, want, func(s string) (string, error) { return s, nil })
}

func boolean(into *bool) value { return parsed(into, "true or false", parseBool) }

// unlessFalse is Calico's reading of some switches: whatever does not say no says yes.
func unlessFalse(into *bool) value {
	return parsed(into, "true or false", func(s string) (bool, error) { return !isFalse(s), nil })
}

func number(into *int, least, most int) value {
	return parsed(into, fmt.Sprintf("a number between %d and %d", least, most), within(least, most))
}

// share reads a number, or a percentage. A hundred is no share: it would leave nothing to others.
func share(into *Share) value {
	const most = 1_000_000_000
	return parsed(into, "a number up to 1000000000, or a percentage below 100 such as 25%", func(s string) (Share, error) {
		if text, ok := strings.CutSuffix(s, "%"); ok {
			n, err := strconv.ParseUint(text, 10, 32)
			if err != nil || n >= 100 {
				return Share{}, errUnfit
			}
			return Share{Percent: uint32(n)}, nil
		}
		n, err := strconv.ParseUint(s, 10, 32)
		if err != nil || n > most {
			return Share{}, errUnfit
		}
		return Share{Number: uint32(n)}, nil
	})
}

// interval reads Go's durations, and plain numbers as seconds.
func interval(into *time.Duration, least time.Duration) value {
	return parsed(into, fmt.Sprintf("a duration such as 60s, of at least %v", least), func(s string) (time.Duration, error) {
		if n, err := strconv.ParseUint(s, 10, 31); err == nil {
			s = fmt.Sprintf("%ds", n)
		}
		d, err := time.ParseDuration(s)
		if err != nil || d < least {
			return 0, errUnfit
		}
		return d, nil
	})
}

func encapsulation(into *api.EncapMode) value {
	return parsed(into, "Never, Always or CrossSubnet", func(s string) (api.EncapMode, error) {
		switch strings.ToLower(s) {
		case "off", "never":
			return api.Never, nil
		case "always":
			return api.Always, nil
		case "cross-subnet", "crosssubnet":
			return api.CrossSubnet, nil
		}
		return "", errUnfit
	})
}

// poolRange reads a range or "none".
func poolRange(p *Pool, v6 bool, example string) value {
	return value{"a range such as " + example + ", or none", func(s string) error {
		if s == "none" {
			p.None = true
			return nil
		}
		cidr, err := netip.ParsePrefix(s)
		if err != nil || cidr.Addr().Is6() != v6 {
			return errUnfit
		}
		p.CIDR = cidr
		return nil
	}}
}

func asn(into **api.ASN) value {
	return parsed(into, "a number up to 4294967295, or two joined by a dot", func(s string) (*api.ASN, error) {
		n := new(api.ASN)
		return n, n.UnmarshalJSON([]byte(strconv.Quote(s)))
	})
}

func routerID(into *string) value {
	return parsed(into, "hash or an IPv4 address", func(s string) (string, error) {
		if a, err := netip.ParseAddr(s); s != "hash" && (err != nil || !a.Is4()) {
			return "", errUnfit
		}
		return s, nil
	})
}

// backend reads who distributes routes. gobgp is a name of Calico's first releases for the same.
func backend(into *Backend) value {
	return parsed(into, "bird, vxlan or none", func(s string) (Backend, error) {
		switch b := Backend(strings.ToLower(s)); b {
		case BGP, VXLAN, None:
			return b, nil
		case "gobgp":
			return BGP, nil
		}
		return "", errUnfit
	})
}

// oldBackend reads CALICO_NETWORKING, which came before CALICO_NETWORKING_BACKEND and still stands before it.
func oldBackend(into *Backend) value {
	return parsed(into, "true or false", func(s string) (Backend, error) {
		if strings.EqualFold(s, "false") {
			return None, nil
		}
		return BGP, nil
	})
}

func logLevel(into **slog.Level) value {
	levels := map[string]slog.Level{
		"trace": slog.LevelDebug, "debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "warning": slog.LevelWarn,
		"error": slog.LevelError, "fatal": slog.LevelError, "panic": slog.LevelError,
	}
	return parsed(into, "trace, debug, info, warning, error, fatal or panic", func(s string) (*slog.Level, error) {
		l, ok := levels[strings.ToLower(s)]
		if !ok {
			return nil, errUnfit
		}
		return &l, nil
	})
}
