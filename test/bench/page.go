package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// row is a line of the page. What a row does not have is "".
type row struct{ What, Floor, Subject, Ratio, Aim string }

func heads() row { return row{"", "floor", "muslin", "ratio", "aim"} }

func (r row) cells() []string { return []string{r.What, r.Floor, r.Subject, r.Ratio, r.Aim} }

// printTable writes rows for people.
func printTable(out io.Writer, rows []row) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, r := range append([]row{heads()}, rows...) {
		if _, err := fmt.Fprintln(w, strings.Join(r.cells(), "\t")+"\t"); err != nil {
			return err
		}
	}
	return w.Flush()
}

// markdown is the rows as a table of Markdown.
func markdown(rows []row) string {
	var b strings.Builder
	line := func(cells []string) { fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | ")) }
	line(heads().cells())
	fmt.Fprintln(&b, "|---|---|---|---|---|")
	for _, r := range rows {
		line(r.cells())
	}
	return b.String()
}

// record writes a part into the page between its markers, with the commit it was measured at. The rest of the page stays.
func record(ctx context.Context, path, name string, rows []row) error {
	page, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	where, err := circumstances(ctx)
	if err != nil {
		return err
	}
	next, err := replaced(string(page), name, where+"\n\n"+markdown(rows))
	if err != nil {
		return fmt.Errorf("record in %s: %w", path, err)
	}
	return os.WriteFile(path, []byte(next), 0o644)
}

// replaced is the page with another text between the markers of a part.
func replaced(page, name, text string) (string, error) {
	begin, end := fmt.Sprintf("<!-- bench:%s:begin -->\n", name), fmt.Sprintf("<!-- bench:%s:end -->", name)
	before, rest, found := strings.Cut(page, begin)
	if !found {
		return "", fmt.Errorf("there is no marker %q", strings.TrimSpace(begin))
	}
	_, after, found := strings.Cut(rest, end)
	if !found {
		return "", fmt.Errorf("there is no marker %q", end)
	}
	return before + begin + text + end + after, nil
}

// circumstances says of which commit, when and where something was measured. A work tree that differs from its commit is said to.
func circumstances(ctx context.Context) (string, error) {
	commit, err := output(ctx, "git", "rev-parse", "--short=10", "HEAD")
	if err != nil {
		return "", err
	}
	changed, err := output(ctx, "git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!test/bench/RESULTS.md")
	if err != nil {
		return "", err
	}
	if changed != "" {
		commit += " with changes"
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "", fmt.Errorf("ask for the kernel's release: %w", err)
	}
	return fmt.Sprintf("Commit %s, %s; %s, kernel %s, %s.", commit, time.Now().UTC().Format("2006-01-02 15:04 UTC"), machine(), unix.ByteSliceToString(name.Release[:]), runtime.Version()), nil
}

// machine says what processors there are.
func machine() string {
	text, _ := os.ReadFile("/proc/cpuinfo") // without it the number will do
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			return fmt.Sprintf("%d × %s", runtime.NumCPU(), strings.TrimSpace(value))
		}
	}
	return fmt.Sprintf("%d processors", runtime.NumCPU())
}

func output(ctx context.Context, program string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, program, args...).Output()
	var failed *exec.ExitError
	if errors.As(err, &failed) {
		err = fmt.Errorf("%w: %s", err, failed.Stderr)
	}
	if err != nil {
		return "", fmt.Errorf("%s %s: %w", program, strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out)), nil
}
