package migrate

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/internal/ctl/cli"
	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/store"
)

// The file. It has three sections: resources; the ClusterInformation; addresses and what else there is. Between sections stands
//
//	===
//
// A section is YAML documents, with "---" between them. A document is a comment with the key and, on a line of its own, the value as it is
// stored, which is JSON and so is YAML. A value that is no JSON on one line is written as base64, and the comment says so:
//
//	# /calico/resources/v3/projectcalico.org/tiers/default
//	{"kind":"Tier",...}
//	---
//	# base64 /calico/ipam/v2/host/node-1
//	""
//
// The last line counts the keys and sums up all lines before it, so that a file that was cut off is not taken for a whole one:
//
//	# end: 2 keys, sha256 ...
const (
	head       = "# Muslin datastore, version 1"
	between    = "---"
	section    = "==="
	comment    = "# "
	encoded    = "base64 "
	endComment = "# end: "
)

// summing writes lines and sums them up.
type summing struct {
	w   io.Writer
	sum hash.Hash
	err error // the first
}

func (s *summing) line(text string) {
	if s.err != nil {
		return
	}
	_, s.err = io.WriteString(io.MultiWriter(s.w, s.sum), text+"\n")
}

// write writes the file.
func write(w io.Writer, kvs []store.KV) error {
	out := &summing{w: w, sum: sha256.New()}
	out.line(head)
	for i, of := range []func(key string) bool{isResource, isCluster, isRest} {
		if i > 0 {
			out.line(section)
		}
		first := true
		for _, kv := range kvs {
			if !of(kv.Key) {
				continue
			}
			if !first {
				out.line(between)
			}
			first = false
			out.entry(kv)
		}
	}
	if out.err != nil {
		return out.err
	}
	_, err := io.WriteString(w, end(len(kvs), out.sum)+"\n")
	return err
}

func isCluster(key string) bool { return key == cli.ClusterKey() }
func isResource(key string) bool {
	return strings.HasPrefix(key, api.ResourcesRoot) && !isCluster(key)
}
func isRest(key string) bool { return !isResource(key) && !isCluster(key) }

// ours reports whether a key belongs into an export.
func ours(key string) bool {
	return slices.ContainsFunc(roots(), func(root string) bool { return strings.HasPrefix(key, root) })
}

// end is the last line.
func end(keys int, sum hash.Hash) string {
	return fmt.Sprintf("%s%d keys, sha256 %x", endComment, keys, sum.Sum(nil))
}

func (s *summing) entry(kv store.KV) {
	if json.Valid(kv.Value) && !bytes.ContainsAny(kv.Value, "\r\n") {
		s.line(comment + kv.Key)
		s.line(string(kv.Value))
		return
	}
	s.line(comment + encoded + kv.Key)
	s.line(`"` + base64.StdEncoding.EncodeToString(kv.Value) + `"`)
}

// maxLine bounds a line of the file: what etcd holds of one value, in base64.
const maxLine = 4 << 20

// read reads a file whole, or not at all.
func read(r io.Reader) ([]store.KV, error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	in := reader{sum: sha256.New(), seen: map[string]bool{}}
	for lines.Scan() {
		in.number++
		if err := in.line(lines.Text()); err != nil {
			return nil, fmt.Errorf("line %d: %w", in.number, err)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if !in.ended {
		return nil, errors.New("it ends in the middle: the last line is missing")
	}
	return in.kvs, nil
}

// reader is what has been read so far.
type reader struct {
	number  int
	sum     hash.Hash
	seen    map[string]bool // keys
	kvs     []store.KV
	key     string // of the value that comes next; "": none
	encoded bool   // so is that value
	ended   bool
}

func (in *reader) line(text string) error {
	switch {
	case in.ended:
		return errors.New("more follows after the end")
	case in.number == 1 && text != head:
		return fmt.Errorf("no export of version 1: it does not begin with %q", head)
	case strings.HasPrefix(text, endComment):
		return in.end(text)
	}
	_, _ = in.sum.Write([]byte(text + "\n")) // a hash's Write never fails
	switch {
	case in.number == 1:
		return nil
	case in.key != "":
		return in.value(text)
	case text == between, text == section:
		return nil
	}
	key, ok := strings.CutPrefix(text, comment)
	if !ok {
		return errors.New("a value without a key")
	}
	in.key, in.encoded = strings.CutPrefix(key, encoded)
	if !ours(in.key) {
		return fmt.Errorf("%s is no key of this system", in.key)
	}
	if in.seen[in.key] {
		return fmt.Errorf("%s comes twice", in.key)
	}
	in.seen[in.key] = true
	return nil
}

func (in *reader) value(text string) error {
	raw := []byte(text)
	if in.encoded {
		var err error
		if raw, err = base64.StdEncoding.DecodeString(strings.Trim(text, `"`)); err != nil {
			return fmt.Errorf("value of %s: %w", in.key, err)
		}
	}
	if !in.encoded && !json.Valid(raw) {
		return fmt.Errorf("value of %s is not JSON", in.key)
	}
	in.kvs = append(in.kvs, store.KV{Key: in.key, Value: raw})
	in.key = ""
	return nil
}

func (in *reader) end(text string) error {
	if in.key != "" {
		return fmt.Errorf("the value of %s is missing", in.key)
	}
	if want := end(len(in.kvs), in.sum); text != want {
		return fmt.Errorf("the file was changed or cut: it sums up to %q", strings.TrimPrefix(want, comment))
	}
	in.ended = true
	return nil
}
