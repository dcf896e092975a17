package selector

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	// maxDepth bounds nesting, and with it the stack that Parse and every method need. A pair of parentheses is one level, and so
	// is a run of exclamation marks together with the parentheses that follow it, so that canonical text never nests deeper than
	// what it was parsed from.
	maxDepth = 100

	// maxKey is the longest label key in bytes, well above the 253 + 1 + 63 that Kubernetes allows.
	maxKey = 512

	// excerptSpan is how many bytes before and after the error a message shows.
	excerptSpan = 60
)

// Parse reads a selector. An empty or blank text is all(). The length of the text is not limited, and Parse needs time and memory
// about proportional to it; expressions nested deeper than 100 levels are refused. The error names the position (as a column in
// bytes, from 1), what stands there and what was expected, and quotes the selector.
func Parse(s string) (Selector, error) {
	p := parser{in: s}
	p.space()
	if p.end() {
		return Selector{}, nil
	}
	root, err := p.or()
	if err != nil {
		return Selector{}, err
	}
	if !p.end() {
		return Selector{}, p.unexpected(`"&&", "||" or the end`, joinHint)
	}
	if root.kind == kindAll {
		return Selector{}, nil
	}
	var b strings.Builder
	root.write(&b)
	return Selector{root: root, text: b.String()}, nil
}

// parser is a recursive-descent parser without a token list. Every method that consumes a token also consumes the white space
// after it, so that pos is always at a token or at the end.
type parser struct {
	in    string
	pos   int
	depth int
}

func (p *parser) or() (*node, error) { return p.joined(kindOr, "||", p.and) }

func (p *parser) and() (*node, error) { return p.joined(kindAnd, "&&", p.unary) }

func (p *parser) joined(k kind, separator string, operand func() (*node, error)) (*node, error) {
	var kids []*node
	for {
		kid, err := operand()
		if err != nil {
			return nil, err
		}
		kids = append(kids, kid)
		if !p.accept(separator) {
			return join(k, kids), nil
		}
	}
}

func (p *parser) unary() (*node, error) {
	start := p.pos
	bangs := 0
	for p.accept("!") {
		bangs++
	}
	parens := p.accept("(")
	if bangs == 0 && !parens {
		return p.operand()
	}
	if p.depth++; p.depth > maxDepth {
		return nil, p.fail(start, fmt.Sprintf("nested deeper than %d levels", maxDepth))
	}
	n, err := p.enclosed(parens)
	if err != nil {
		return nil, err
	}
	p.depth--
	if bangs%2 == 1 {
		n = negate(n)
	}
	return n, nil
}

// enclosed reads what follows an opening parenthesis, up to and with the closing one, or a bare operand.
func (p *parser) enclosed(parens bool) (*node, error) {
	if !parens {
		return p.operand()
	}
	n, err := p.or()
	if err != nil {
		return nil, err
	}
	if !p.accept(")") {
		return nil, p.unexpected(`"&&", "||" or ")"`, joinHint)
	}
	return n, nil
}

// operand reads a function or a comparison.
func (p *parser) operand() (*node, error) {
	start := p.pos
	key := p.word()
	if key == "" {
		return nil, p.unexpected(`a label key, "has(", "all()", "global()", "!" or "("`, keyHint)
	}
	if p.rest("(") {
		return p.function(start, key)
	}
	if err := p.checkKey(start, key); err != nil {
		return nil, err
	}
	p.space()
	return p.comparison(key)
}

// function reads the parentheses of a call and what is in them.
func (p *parser) function(start int, name string) (*node, error) {
	n := &node{}
	switch name {
	case "all":
		n.kind = kindAll
	case "global":
		n.kind, n.key = kindGlobal, namespaceKey
	case "has":
		n.kind = kindHas
	default:
		p.pos = start
		return nil, p.unexpected(`"has(", "all()" or "global()"`, nil)
	}
	p.accept("(")
	if n.kind == kindHas {
		keyStart := p.pos
		n.key = p.word()
		if n.key == "" {
			return nil, p.unexpected("a label key", keyHint)
		}
		if err := p.checkKey(keyStart, n.key); err != nil {
			return nil, err
		}
		p.space()
	}
	if !p.accept(")") {
		return nil, p.unexpected(`")"`, nil)
	}
	return n, nil
}

func (p *parser) comparison(key string) (*node, error) {
	k, ok := p.operator()
	if !ok {
		return nil, p.unexpected(`an operator ("==", "!=", "in", "not in", "contains", "starts with" or "ends with")`,
			operatorHint(key))
	}
	var values []string
	var err error
	if k == kindIn || k == kindNotIn {
		values, err = p.set()
	} else {
		values, err = p.oneLiteral()
	}
	if err != nil {
		return nil, err
	}
	return &node{kind: k, key: key, values: values}, nil
}

// operator reads an operator of a comparison, or consumes nothing.
func (p *parser) operator() (kind, bool) {
	if p.accept("==") {
		return kindEqual, true
	}
	if p.accept("!=") {
		return kindNotEqual, true
	}
	start := p.pos
	switch p.nextWord() {
	case "in":
		return kindIn, true
	case "contains":
		return kindContains, true
	case "notin":
		return kindNotIn, true
	case "startswith":
		return kindStartsWith, true
	case "endswith":
		return kindEndsWith, true
	case "not":
		if p.nextWord() == "in" {
			return kindNotIn, true
		}
	case "starts":
		if p.nextWord() == "with" {
			return kindStartsWith, true
		}
	case "ends":
		if p.nextWord() == "with" {
			return kindEndsWith, true
		}
	}
	p.pos = start
	return 0, false
}

// set reads "{", literals and "}", and returns the literals sorted and without duplicates.
func (p *parser) set() ([]string, error) {
	if !p.accept("{") {
		return nil, p.unexpected(`"{"`, nil)
	}
	var values []string
	for p.quoted() {
		value, err := p.literal()
		if err != nil {
			return nil, err
		}
		values = append(values, value)
		if p.accept(",") {
			continue
		}
		if !p.rest("}") {
			return nil, p.unexpected(`"," or "}"`, nil)
		}
	}
	if !p.accept("}") {
		return nil, p.unexpected(`a quoted literal or "}"`, valueHint)
	}
	slices.Sort(values)
	return slices.Compact(values), nil
}

func (p *parser) oneLiteral() ([]string, error) {
	if !p.quoted() {
		return nil, p.unexpected("a quoted literal", valueHint)
	}
	value, err := p.literal()
	if err != nil {
		return nil, err
	}
	return []string{value}, nil
}

// literal reads a literal; quoted must hold.
func (p *parser) literal() (string, error) {
	quote := p.in[p.pos]
	length := strings.IndexByte(p.in[p.pos+1:], quote)
	if length < 0 {
		return "", p.fail(p.pos, fmt.Sprintf("literal is not closed: found %s, expected another %c", endFound, quote))
	}
	value := p.in[p.pos+1 : p.pos+1+length]
	p.pos += length + 2
	p.space()
	return value, nil
}

func (p *parser) end() bool { return p.pos == len(p.in) }

// rest reports whether the unread text begins with token.
func (p *parser) rest(token string) bool { return strings.HasPrefix(p.in[p.pos:], token) }

// quoted reports whether a literal begins here.
func (p *parser) quoted() bool { return p.rest("'") || p.rest(`"`) }

// accept consumes token if it is next.
func (p *parser) accept(token string) bool {
	if !p.rest(token) {
		return false
	}
	p.pos += len(token)
	p.space()
	return true
}

func (p *parser) space() {
	for !p.end() && strings.IndexByte(" \t\r\n", p.in[p.pos]) >= 0 {
		p.pos++
	}
}

// word consumes the longest run of key characters, possibly none, and not the white space after it: "has" and "has (" differ.
func (p *parser) word() string {
	start := p.pos
	for !p.end() && isKeyByte(p.in[p.pos]) {
		p.pos++
	}
	return p.in[start:p.pos]
}

// nextWord consumes a word and the white space after it.
func (p *parser) nextWord() string {
	word := p.word()
	p.space()
	return word
}

func isKeyByte(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return true
	}
	return c == '_' || c == '.' || c == '/' || c == '-'
}

func (p *parser) checkKey(start int, key string) error {
	if len(key) <= maxKey {
		return nil
	}
	return p.fail(start, fmt.Sprintf("label key has %d bytes, expected at most %d", len(key), maxKey))
}

// endFound is how messages call the end of the text.
const endFound = "the end"

// unexpected returns the error for the token at pos; hint, if not nil, may turn that token into advice.
func (p *parser) unexpected(expected string, hint func(token string) string) error {
	message := "found " + endFound + ", expected " + expected
	if token := p.token(); token != "" {
		message = fmt.Sprintf("found %s, expected %s", quote(token), expected)
		if hint != nil {
			message += hint(token)
		}
	}
	return p.fail(p.pos, message)
}

// fail returns an error at the given offset.
func (p *parser) fail(at int, message string) error {
	return fmt.Errorf("parse selector %s: column %d: %s", p.excerpt(at), at+1, message)
}

// token returns what stands at pos, for messages: a word, a literal with its quotes, or one character.
func (p *parser) token() string {
	rest := p.in[p.pos:]
	if rest == "" {
		return ""
	}
	look := parser{in: rest}
	if word := look.word(); word != "" {
		return clip(word)
	}
	if look.quoted() {
		if length := strings.IndexByte(rest[1:], rest[0]); length >= 0 {
			return clip(rest[:length+2])
		}
	}
	_, size := utf8.DecodeRuneInString(rest)
	return rest[:size]
}

// excerpt returns the text, quoted; of a long one what is around the given offset.
func (p *parser) excerpt(at int) string {
	from, to := max(0, at-excerptSpan), min(len(p.in), at+excerptSpan)
	text := p.in[from:to]
	if from > 0 {
		text = "…" + text
	}
	if to < len(p.in) {
		text += "…"
	}
	return quote(text)
}

func clip(s string) string {
	if len(s) <= excerptSpan {
		return s
	}
	return s[:excerptSpan] + "…"
}

// quote makes text safe to show; selectors are full of double quotes, so those are avoided where they would need escapes.
func quote(s string) string {
	if strings.Contains(s, `"`) && strconv.CanBackquote(s) {
		return "`" + s + "`"
	}
	return strconv.Quote(s)
}

// joinHint advises where another operand, or the end, could follow.
func joinHint(token string) string {
	switch strings.ToLower(token) {
	case "&", "and":
		return `; did you mean "&&"?`
	case "|", "or":
		return `; did you mean "||"?`
	case ",":
		return `; did you mean "&&"? A comma separates only the literals of a set`
	}
	return ""
}

// keyHint advises where a label key could follow.
func keyHint(token string) string {
	if token[0] == '\'' || token[0] == '"' {
		return "; label keys are written without quotes"
	}
	return ""
}

// valueHint advises where a literal could follow.
func valueHint(token string) string {
	if isKeyByte(token[0]) {
		return fmt.Sprintf("; did you mean '%s', in quotes?", token)
	}
	return ""
}

// operatorHint advises what could follow a label key.
func operatorHint(key string) func(token string) string {
	return func(token string) string {
		switch strings.ToLower(token) {
		case "=", "eq", "is":
			return `; did you mean "=="?`
		case "!", "~", "<", "ne":
			return `; did you mean "!=" or "not in"?`
		case "not", "notin":
			return `; did you mean "not in"?`
		case "in", "contains":
			return fmt.Sprintf("; operators are lower case: did you mean %q?", strings.ToLower(token))
		case "starts", "startswith", "prefix":
			return `; did you mean "starts with"?`
		case "ends", "endswith", "suffix":
			return `; did you mean "ends with"?`
		case "(":
			if key == "has" || key == "all" || key == "global" {
				return fmt.Sprintf(`; did you mean "%s(", without the space?`, key)
			}
		case "&", "|", ")":
			return fmt.Sprintf(`; did you mean "has(%s)"?`, key)
		}
		return ""
	}
}
