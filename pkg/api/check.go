package api

import (
	"encoding"
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"github.com/muslin-cni/muslin/pkg/selector"
)

// What a single field may hold stands in its `want` tag: rules, separated by "; ". A list's rules hold for each element.
// Fields that are not set are not looked at, but by "required". What several fields say together is checked by the
// kind's own validate.
//
//	required            is set
//	oneof A B           is one of these words
//	fold A B            the same, whatever the case
//	range LO HI         is a number between these, both included
//	selector            is a selector without global()
//	entity-selector     is a selector, or global() alone
//	ip, ip4, ip6        is an address
//	cidr                is a range or an address; host bits may be set
//	net                 is a range without host bits, or an address
//	mac                 is a hardware address
//	regexp              is a regular expression (RE2)
//	subdomain           is the name of an object
//	ifname              is the name of a network interface
const wantTag = "want"

// walk checks v, which stands at path, by the rules of its tags. set says that v stands there explicitly, so that zero is a value.
func (c *checker) walk(path string, v reflect.Value, rules string, set bool) {
	switch {
	case v.Kind() == reflect.Pointer:
		if !v.IsNil() {
			c.walk(path, v.Elem(), rules, true)
		} else if required(rules) {
			c.add(path, nil, "must be specified")
		}
	case v.Kind() == reflect.Slice:
		if v.Len() == 0 && required(rules) {
			c.add(path, nil, "must be specified")
		}
		for i := range v.Len() {
			c.walk(fmt.Sprintf("%s[%d]", path, i), v.Index(i), rules, true)
		}
	case v.Kind() == reflect.Struct && !isScalar(v.Type()):
		c.walkFields(path, v)
	default:
		c.scalar(path, v, rules, set)
	}
}

func (c *checker) walkFields(path string, v reflect.Value) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && name == "":
			c.walkFields(path, v.Field(i))
		case f.IsExported():
			c.walk(join(path, name), v.Field(i), f.Tag.Get(wantTag), false)
		}
	}
}

func (c *checker) scalar(path string, v reflect.Value, rules string, set bool) {
	if rules == "" {
		return
	}
	if v.IsZero() && !set {
		if required(rules) {
			c.add(path, nil, "must be specified")
		}
		return
	}
	text := fmt.Sprint(v.Interface())
	for rule := range strings.SplitSeq(rules, "; ") {
		if reason := judge(rule, text); reason != "" {
			c.add(path, text, "%s", reason)
		}
	}
}

// isScalar reports whether a struct type is written as one word, and not as an object.
func isScalar(t reflect.Type) bool {
	return t.Implements(reflect.TypeFor[encoding.TextMarshaler]()) || t.Implements(reflect.TypeFor[json.Marshaler]())
}

func required(rules string) bool { return strings.HasPrefix(rules, "required") }

// judge says what a rule wants instead of text; "" if it is satisfied.
func judge(rule, text string) string {
	name, rest, _ := strings.Cut(rule, " ")
	words := strings.Fields(rest)
	switch name {
	case "required":
		return unless(text != "", "must be specified")
	case "oneof":
		return unless(contains(words, text, false), "supported values: "+quoted(words))
	case "fold":
		return unless(contains(words, text, true), "supported values: "+quoted(words))
	case "range":
		return unless(inRange(text, words), "must be between "+strings.Join(words, " and "))
	case "selector":
		return badSelector(text, false)
	case "entity-selector":
		return badSelector(text, true)
	case "ip", "ip4", "ip6":
		return badAddr(text, name)
	case "cidr", "net":
		return badNet(text, name == "net")
	case "regexp":
		_, err := regexp.Compile(text)
		return unless(err == nil, "must be a regular expression: "+fmt.Sprint(err))
	case "mac":
		return unless(isMAC(text), "must be a hardware address such as ee:ee:ee:ee:ee:ee")
	case "subdomain":
		return unless(isSubdomain(text), subdomainReason)
	case "ifname":
		return unless(isInterface(text), "must be the name of a network interface: at most 15 letters, digits and any of _ . - @")
	}
	return "" // no other rule is written in a tag; a test holds that
}

func unless(ok bool, reason string) string {
	if ok {
		return ""
	}
	return reason
}

func contains(words []string, s string, fold bool) bool {
	for _, w := range words {
		if w == s || fold && strings.EqualFold(w, s) {
			return true
		}
	}
	return false
}

func quoted(words []string) string { return `"` + strings.Join(words, `", "`) + `"` }

func inRange(text string, words []string) bool {
	lo, hi := bound(words, 0), bound(words, 1)
	n, err := strconv.ParseInt(text, 10, 64)
	return err == nil && n >= lo && n <= hi
}

func bound(words []string, i int) int64 {
	if i >= len(words) {
		return 0
	}
	n, err := strconv.ParseInt(words[i], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

func badSelector(text string, entity bool) string {
	s, err := selector.Parse(text)
	switch {
	case err != nil:
		return "must be a selector: " + err.Error()
	case !s.UsesGlobal():
		return ""
	case !entity:
		return "must not use global(), which belongs in the namespaceSelector of a rule's source or destination"
	case s.String() != "global()":
		return "global() must stand alone"
	}
	return ""
}

func badAddr(text, family string) string {
	a, err := netip.ParseAddr(text)
	switch {
	case err != nil:
		return "must be an IP address"
	case family == "ip4" && !a.Is4():
		return "must be an IPv4 address"
	case family == "ip6" && !a.Is6():
		return "must be an IPv6 address"
	}
	return ""
}

func badNet(text string, strict bool) string {
	p, err := parseNet(text)
	switch {
	case err != nil:
		return "must be an IP address or a range such as 10.0.0.0/8"
	case strict && p != p.Masked():
		return fmt.Sprintf("has host bits set; did you mean %v?", p.Masked())
	}
	return ""
}

// parseNet reads a range or an address.
func parseNet(text string) (netip.Prefix, error) {
	var p Prefix
	if err := p.UnmarshalText([]byte(text)); err != nil {
		return netip.Prefix{}, err
	}
	if !p.IsValid() {
		return netip.Prefix{}, fmt.Errorf("parse range: empty")
	}
	return p.Prefix, nil
}

// isMAC reports whether s is six octets in hexadecimal, joined by colons.
func isMAC(s string) bool {
	octets := strings.Split(s, ":")
	for _, o := range octets {
		if _, err := strconv.ParseUint(o, 16, 8); err != nil || len(o) != 2 {
			return false
		}
	}
	return len(octets) == 6
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}
