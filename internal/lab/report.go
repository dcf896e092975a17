package lab

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// Failed counts the pairs that are not as they should be.
func (r Report) Failed() int {
	failed := 0
	for _, p := range r.Pairs {
		if !p.OK {
			failed++
		}
	}
	return failed
}

// WriteText writes the matrix for people: one row for each sender, one column for each receiver, then what failed and why. Six pods on
// three nodes fit into 80 columns. In a dual-stack lab each family has a matrix of its own.
func (r Report) WriteText(w io.Writer) {
	if slices.ContainsFunc(r.Pairs, func(p Pair) bool { return p.IPv6 }) {
		fmt.Fprintln(w, "IPv4:")
		r.writeMatrix(w, false)
		fmt.Fprintln(w, "IPv6:")
		r.writeMatrix(w, true)
	} else {
		r.writeMatrix(w, false)
	}
	r.writeVerdict(w)
}

func (r Report) writeMatrix(w io.Writer, v6 bool) {
	labels := r.labels()
	width := len("from")
	for _, p := range r.Peers {
		width = max(width, len(p.title(v6)))
	}
	fmt.Fprintf(w, "%3s %-*s ", "", width, "from \\ to")
	for _, p := range r.Peers {
		fmt.Fprintf(w, "%4s", labels[p.Name])
	}
	fmt.Fprintln(w)
	cells := make(map[[2]string]Pair)
	for _, p := range r.Pairs {
		if p.IPv6 == v6 {
			cells[[2]string{p.From, p.To}] = p
		}
	}
	for _, from := range r.Peers {
		if from.Kind == string(kindOutside) {
			continue
		}
		fmt.Fprintf(w, "%3s %-*s ", labels[from.Name], width, from.title(v6))
		for _, to := range r.Peers {
			p, tried := cells[[2]string{from.Name, to.Name}]
			fmt.Fprintf(w, "%4s", p.cell(tried))
		}
		fmt.Fprintln(w)
	}
}

// labels are the columns' short names: 1 2 3 … for pods, n1 n2 … for nodes.
func (r Report) labels() map[string]string {
	labels := make(map[string]string)
	pods, nodes := 0, 0
	for _, p := range r.Peers {
		switch kind(p.Kind) {
		case kindPod:
			pods++
			labels[p.Name] = fmt.Sprint(pods)
		case kindNode:
			nodes++
			labels[p.Name] = fmt.Sprintf("n%d", nodes)
		default:
			labels[p.Name] = "out"
		}
	}
	return labels
}

// title is a row's heading: what and where it is. For IPv6 addresses there is no room.
func (p Peer) title(v6 bool) string {
	words := []string{p.Name}
	if p.Kind == string(kindPod) {
		words = append(words, p.Node)
	}
	if !v6 && p.Addr.IsValid() {
		words = append(words, p.Addr.String())
	}
	return strings.Join(words, " ")
}

// way names the pair in a list of those that fail.
func (p Pair) way() string {
	text := p.From + " -> " + p.To
	if p.IPv6 {
		text += " (IPv6)"
	}
	return text
}

func (p Pair) cell(tried bool) string {
	switch {
	case !tried:
		return "."
	case p.OK:
		return "ok"
	case p.Expected:
		return "--"
	case !p.Reached:
		return "NO"
	case p.MTU != 0:
		return "mtu"
	}
	return "src"
}

// writeVerdict tells what failed, pairs with the same reason together.
func (r Report) writeVerdict(w io.Writer) {
	if r.OK {
		fmt.Fprintf(w, "all %d ways work; the last one %s after the check began\n", len(r.Pairs), r.Took.Round(time.Millisecond))
		return
	}
	var reasons []string
	pairs := make(map[string][]string)
	for _, p := range r.Pairs {
		if p.OK {
			continue
		}
		reason := p.Problem
		if p.Expected {
			reason = "expected: " + reason
		}
		if pairs[reason] == nil {
			reasons = append(reasons, reason)
		}
		pairs[reason] = append(pairs[reason], p.way())
	}
	fmt.Fprintln(w, "NO: no answer, src: wrong source, mtu: full-size packets are lost, --: expected")
	fmt.Fprintf(w, "%d of %d ways fail:\n", r.Failed(), len(r.Pairs))
	for _, reason := range reasons {
		fmt.Fprintln(w, wrap(reason+":", " ", "  "))
		fmt.Fprintln(w, wrap(strings.Join(pairs[reason], ", "), ", ", "    "))
	}
}

// wrap breaks text at sep so that lines stay below 80 columns.
func wrap(text, sep, indent string) string {
	const columns = 79
	var b strings.Builder
	b.WriteString(indent)
	used := len(indent)
	for i, part := range strings.Split(text, sep) {
		switch {
		case i > 0 && used+len(sep)+len(part) > columns:
			b.WriteString(strings.TrimRight(sep, " ") + "\n" + indent)
			used = len(indent)
		case i > 0:
			b.WriteString(sep)
			used += len(sep)
		}
		b.WriteString(part)
		used += len(part)
	}
	return b.String()
}
