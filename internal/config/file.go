package config

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/pkg/api"
)

// Where settings are read from a file.
const (
	defaultFile = "/etc/calico/felix.cfg"
	FileEnv     = "MUSLIN_FELIX_CONFIG_FILE" // names another one, which must exist
)

// File is the settings of a file. The zero File has none.
type File struct {
	Path   string
	values map[string]string // by name in lower case; nil: there is no file
}

// ReadFile reads the file that env names, or the usual one if it is there. Its form is that of an INI file: "Name = value" below
// [global]; the names of sections say nothing, and lines that begin with # or ; are comments. An error names the file and the line.
func ReadFile(env Env) (File, error) { return ReadFileBelow("", env) }

// ReadFileBelow is ReadFile for whoever sees the files of that environment below another folder.
func ReadFileBelow(root string, env Env) (File, error) {
	path := filepath.Join(root, cmp.Or(env(FileEnv), defaultFile))
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && env(FileEnv) == "" {
		return File{}, nil
	}
	if err != nil {
		return File{}, fmt.Errorf("read the settings: %w", err)
	}
	return parseFile(path, string(text))
}

func parseFile(path, text string) (File, error) {
	f := File{Path: path, values: map[string]string{}}
	at := 0
	for line := range strings.Lines(text) {
		at++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";") {
			continue
		}
		if strings.HasPrefix(line, "[") && strings.HasSuffix(line, "]") {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		name = strings.ToLower(strings.TrimSpace(name))
		if !ok || name == "" {
			return File{}, fmt.Errorf("read the settings: %s:%d: %q: want [global], Name = value, or # and a comment", path, at, line)
		}
		f.values[name] = strings.Trim(strings.TrimSpace(value), `"`)
	}
	return f, nil
}

// unknown names what the file sets and neither we nor Calico know. Settings of Calico's that are not ours are passed over.
func (f File) unknown() []string {
	if len(f.values) == 0 {
		return nil
	}
	known := map[string]bool{}
	for _, r := range felixRows() {
		known[strings.ToLower(r.Name)] = true
	}
	eachField(api.FelixConfigurationSpec{}, func(name string, _ reflect.Value) { known[strings.ToLower(name)] = true })
	var out []string
	for _, name := range slices.Sorted(maps.Keys(f.values)) {
		if !known[name] && !strings.HasSuffix(name, "secs") && !strings.HasSuffix(name, "millis") {
			out = append(out, fmt.Sprintf("%s: %s is no setting; `muslin-node --help` lists those that count", f.Path, name))
		}
	}
	return out
}
