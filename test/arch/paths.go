package arch

import (
	"bytes"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
)

// machinePath matches absolute paths that exist only where somebody happened to work. The expression is built so
// that this file does not match it.
var machinePath = regexp.MustCompile(`(?:^|[^\w.-])(/(?:wor` + `k|tmp/w)/\S*)`)

// builtFolders hold what no commit contains.
var builtFolders = []string{".git", "bin", "dist"}

// passedOver are files that git or go wrote; in a worktree .git is a file.
var passedOver = []string{".git", "go.sum"}

// CheckPaths reads every text file of tree and returns a line for each place that names a machine's path. Checksum
// files and build output are passed over.
func CheckPaths(tree fs.FS) ([]string, error) {
	var wrong []string
	err := fs.WalkDir(tree, ".", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && slices.Contains(builtFolders, name):
			return fs.SkipDir
		case !entry.Type().IsRegular() || slices.Contains(passedOver, entry.Name()):
			return nil
		}
		text, err := fs.ReadFile(tree, name)
		if err != nil {
			return err
		}
		wrong = append(wrong, machinePaths(name, text)...)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read source tree: %w", err)
	}
	return wrong, nil
}

func machinePaths(name string, text []byte) []string {
	if bytes.IndexByte(text, 0) >= 0 {
		return nil // not text
	}
	var wrong []string
	for i, line := range bytes.Split(text, []byte("\n")) {
		if m := machinePath.FindSubmatch(line); m != nil {
			wrong = append(wrong, fmt.Sprintf("%s:%d: names %s", name, i+1, m[1]))
		}
	}
	return wrong
}
