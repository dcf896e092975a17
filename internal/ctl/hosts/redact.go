package hosts

import (
	"bytes"
	"regexp"
)

// hidden stands where a secret was.
const hidden = "(hidden)"

// rule replaces what a pattern matches.
type rule struct {
	pattern *regexp.Regexp
	with    []byte
}

// redactor takes secrets out of texts.
type redactor []rule

// newRedactor knows how keys, certificates, passwords and tokens look in logs, configurations and command lines. It rather hides too much.
func newRedactor() redactor {
	const name = `(?i)(["']?[\w.-]*(?:passw(?:or)?d|secret|token|credential|authorization|private[_-]?key|etcd_?key|etcd_?cert|etcd_?ca_?cert|` +
		`client-key|client-certificate|certificate-authority)[\w.-]*["']?\s*[:=]\s*)`
	return redactor{
		{regexp.MustCompile(`(?s)-----BEGIN [A-Z0-9 ]+-----.*?(?:-----END [A-Z0-9 ]+-----|\z)`), []byte(hidden)},
		{regexp.MustCompile(`LS0tLS1CRUdJTi[A-Za-z0-9+/=]*`), []byte(hidden)}, // the same in base64
		{regexp.MustCompile(`\beyJ[\w-]+\.[\w-]+\.[\w-]*`), []byte(hidden)},   // JSON web tokens
		{regexp.MustCompile(`(?i)\b(bearer\s+|basic\s+[\w.~+/=-]{7})[\w.~+/=-]+`), []byte("authorized by " + hidden)},
		{regexp.MustCompile(`://[^/\s@]+@`), []byte("://" + hidden + "@")},
		{regexp.MustCompile(name + `(?:[|>][+-]?[ \t]*(?:\n[ \t]+[^\n]*)+|"(?:\\.|[^"\\])*"|'[^']*'|[^\s,;}&]+)`), []byte("${1}\"" + hidden + "\"")},
		{regexp.MustCompile(`(?i)(--?[\w-]*(?:passw(?:or)?d|secret|token)[\w-]*\s+)\S+`), []byte("${1}" + hidden)},
	}
}

// redact returns the text without its secrets. It may be the end of a longer one.
func (r redactor) redact(text []byte) []byte {
	text = afterCutKey(text)
	for _, rule := range r {
		text = rule.pattern.ReplaceAll(text, rule.with)
	}
	return text
}

// afterCutKey leaves out the rest of a key or certificate whose beginning was cut off.
func afterCutKey(text []byte) []byte {
	const mark = "-----END "
	end, begin := bytes.Index(text, []byte(mark)), bytes.Index(text, []byte("-----BEGIN "))
	if end < 0 || begin >= 0 && begin < end {
		return text
	}
	_, rest, _ := bytes.Cut(text[end+len(mark):], []byte("-----"))
	return append([]byte(hidden), rest...)
}
