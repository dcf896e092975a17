package api

import (
	"fmt"
	"strings"
)

// NameRule says which names the objects of a kind may have.
type NameRule uint8

// The rules for names. All but NameDefault allow DNS labels (RFC 1123) in lower case; they differ in how many may be joined by dots.
const (
	NameSubdomain    NameRule = iota // any number, at most 253 characters
	NameLabel                        // one
	NamePolicy                       // one, or two (the first of them the tier); or knp.default. or ossg.default. and a subdomain
	NameGlobalPolicy                 // one, or two
	NameDefault                      // only "default"
)

const subdomainReason = `name must consist of lower case alphanumeric characters, '-' or '.' ` +
	`(regex: [a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*)`

// mirrored are the beginnings of names of policies that are made of Kubernetes' own.
func mirrored() []string { return []string{"knp.default.", "ossg.default."} }

// badName says what is wrong with the name of an object of kind k; "" if nothing is.
func badName(k Kind, name string) string {
	switch {
	case k.Names == NameDefault:
		return unless(name == "default", fmt.Sprintf(`Cannot create a %s resource with a name other than "default"`, k.Name))
	case !isSubdomain(name):
		return unless(false, subdomainReason)
	case k.Names == NameLabel:
		return unless(isLabel(name), "name must be one DNS label: at most 63 lower case alphanumeric characters or '-', and no dot")
	case k.Names == NamePolicy || k.Names == NameGlobalPolicy:
		return badPolicyName(k, name)
	}
	return ""
}

func badPolicyName(k Kind, name string) string {
	for _, prefix := range mirrored() {
		if k.Names == NamePolicy && strings.HasPrefix(name, prefix) {
			return "" // the rest is a subdomain since the whole is one
		}
	}
	labels := strings.Split(name, ".")
	for _, l := range labels {
		if !isLabel(l) {
			return "name must be made of DNS labels of at most 63 characters"
		}
	}
	return unless(len(labels) <= 2, "name must have at most one dot, behind the name of its tier")
}

// isSubdomain reports whether s is a DNS-1123 subdomain: labels joined by dots, at most 253 characters.
func isSubdomain(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for l := range strings.SplitSeq(s, ".") {
		if !isAlnumEnded(l, isLowerAlnum, "-") {
			return false
		}
	}
	return true
}

// isLabel reports whether s is a DNS-1123 label: at most 63 characters, no dot.
func isLabel(s string) bool { return len(s) <= 63 && isAlnumEnded(s, isLowerAlnum, "-") }

// isAlnumEnded reports whether s is not empty, begins and ends with an alnum, and holds only these and inner characters.
func isAlnumEnded(s string, alnum func(byte) bool, inner string) bool {
	if s == "" || !alnum(s[0]) || !alnum(s[len(s)-1]) {
		return false
	}
	for i := range len(s) {
		if !alnum(s[i]) && strings.IndexByte(inner, s[i]) < 0 {
			return false
		}
	}
	return true
}

func isLowerAlnum(b byte) bool { return b >= 'a' && b <= 'z' || b >= '0' && b <= '9' }

func isAlnum(b byte) bool { return isLowerAlnum(b) || b >= 'A' && b <= 'Z' }

// isInterface reports whether s may be the name of a network interface (Linux: at most 15 bytes).
func isInterface(s string) bool {
	if s == "" || len(s) > 15 || s == "." || s == ".." {
		return false
	}
	for i := range len(s) {
		if !isAlnum(s[i]) && strings.IndexByte("_.-@", s[i]) < 0 {
			return false
		}
	}
	return true
}

// isQualified reports whether s is a key of a label or an annotation: an optional subdomain and a slash, and a name of at most 63
// characters (Kubernetes, "Labels and Selectors").
func isQualified(s string) bool {
	if prefix, name, ok := strings.Cut(s, "/"); ok {
		if !isSubdomain(prefix) {
			return false
		}
		s = name
	}
	return len(s) <= 63 && isAlnumEnded(s, isAlnum, "-_.")
}

// isLabelValue reports whether s may be the value of a label.
func isLabelValue(s string) bool {
	return s == "" || len(s) <= 63 && isAlnumEnded(s, isAlnum, "-_.")
}

// CheckLabel says why a label cannot be given to an object; nil if it can.
func CheckLabel(key, value string) error {
	c := &checker{}
	c.label("metadata.labels", key, value)
	return c.err()
}

func (c *checker) label(path, key, value string) {
	if !isQualified(key) {
		c.add(path, key, "a key is a name of at most 63 letters, digits and any of - _ . with an optional domain and slash before it")
	}
	if !isLabelValue(value) {
		c.add(path+"."+key, value, "a value is at most 63 letters, digits and any of - _ . and begins and ends with a letter or digit")
	}
}
