package hosts

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/muslin-cni/muslin/internal/ctl/cli"
)

func diagsCommand(env cli.Env) *cobra.Command {
	var logs, to string
	c := &cobra.Command{
		Use:   "diags [--log-dir=<DIR>]",
		Short: "Collect what support needs to know of this host into an archive",
		Long: "Collect what support needs to know of this host into an archive: what the kernel holds, the CNI configurations and the logs. Keys, certificates,\n" +
			"passwords and tokens are left out. The archive is readable by its owner only; look into it before you send it.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			d := diags{
				env: env, run: run, dir: to,
				folders:  []string{logs, "/etc/cni/net.d"},
				files:    []string{"/etc/os-release", "/proc/modules", "/var/lib/calico/nodename", "/var/lib/calico/mtu"},
				commands: commands(), redactor: newRedactor(),
			}
			path, err := d.collect(c.Context())
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(env.Out, "Diags saved to %s\n", path)
			return err
		},
	}
	c.Flags().StringVar(&logs, "log-dir", "/var/log/calico", "the folder of the logs")
	c.Flags().StringVar(&to, "output-dir", os.TempDir(), "where to put the archive")
	return c
}

// commands are what is run. None of them shows the arguments of processes: there may be passwords among them.
func commands() [][]string {
	var out [][]string
	for _, line := range strings.Split(`date
hostname
uname -a
uptime
ip -d link show
ip address show
ip -4 route show table all
ip -6 route show table all
ip -4 rule show
ip -6 rule show
ip neigh show
bridge fdb show
ip netns list
iptables-save -c
ip6tables-save -c
ipset list
nft list ruleset
ss -tanu
ps -eo pid,ppid,user,stat,etime,rss,comm
df -h`, "\n") {
		out = append(out, strings.Fields(line))
	}
	return out
}

// Bounds of what is collected.
const (
	commandTimeout = 10 * time.Second
	maxText        = 4 << 20 // bytes of a file, its end, or of a command's output, its beginning
	maxFiles       = 200     // of a folder
)

// run runs a command and returns what it prints, errors included.
func run(ctx context.Context, argv []string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	return out[:min(len(out), maxText)], err
}

// diags is a collection in the making.
type diags struct {
	env      cli.Env
	run      func(ctx context.Context, argv []string) ([]byte, error)
	dir      string   // where the archive goes
	folders  []string // whose files are collected, those of folders in them too
	files    []string
	commands [][]string
	redactor redactor
}

// archive is the tar file that is being written.
type archive struct {
	w    *tar.Writer
	root string
	now  time.Time
}

// collect writes the archive and returns its path. What cannot be collected is named in it; it stops nothing.
func (d diags) collect(ctx context.Context) (path string, err error) {
	return save(d.dir, "muslin-diags-", d.env.Now().UTC(), func(a archive) error { return d.fill(ctx, a) })
}

// save makes an archive whose name begins so, and returns its path.
func save(dir, begin string, now time.Time, fill func(archive) error) (path string, err error) {
	name := begin + now.Format("20060102-150405")
	path = filepath.Join(dir, name+".tar.gz")
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", fmt.Errorf("write diags: %w", err)
	}
	zipped := gzip.NewWriter(f)
	a := archive{tar.NewWriter(zipped), name, now}
	err = errors.Join(fill(a), a.w.Close(), zipped.Close(), f.Close())
	if err != nil {
		return "", fmt.Errorf("write diags: %w", errors.Join(err, os.Remove(path)))
	}
	return path, nil
}

// fill adds everything. The error is one of writing.
func (d diags) fill(ctx context.Context, a archive) error {
	var missing strings.Builder
	for _, argv := range d.commands {
		if err := ctx.Err(); err != nil {
			return err
		}
		line := strings.Join(argv, " ")
		out, err := d.run(ctx, argv)
		if err != nil {
			fmt.Fprintf(&missing, "%s: %v\n", line, err)
		}
		if err := a.add("commands/"+fileName(line), d.redactor.redact(out)); err != nil {
			return err
		}
	}
	paths := slices.Clone(d.files)
	for _, folder := range d.folders {
		paths = append(paths, filesIn(folder, &missing)...)
	}
	for _, path := range paths {
		text, err := readEnd(path)
		if err != nil {
			fmt.Fprintf(&missing, "%v\n", err)
			continue
		}
		if err := a.add("files"+path, d.redactor.redact(text)); err != nil {
			return err
		}
	}
	return a.add("missing.txt", d.redactor.redact([]byte(missing.String())))
}

func (a archive) add(name string, text []byte) error {
	h := &tar.Header{Name: a.root + "/" + name, Mode: 0o600, Size: int64(len(text)), ModTime: a.now}
	if err := a.w.WriteHeader(h); err != nil {
		return err
	}
	_, err := a.w.Write(text)
	return err
}

// fileName is a name for the output of a command.
func fileName(line string) string {
	return strings.NewReplacer(" ", "_", "/", "_", ",", "_").Replace(line)
}

// secretFile matches files that are secret as a whole, and those that cannot be looked into.
var secretFile = regexp.MustCompile(`(?i)kubeconfig|token|secret|calico-tls|\.(pem|key|crt|cert|csr|p12|pfx|gz|xz|zst|bz2)$`)

// filesIn lists the regular files below a folder; links are not followed, lest they lead out of it.
func filesIn(folder string, missing *strings.Builder) []string {
	var out []string
	err := filepath.WalkDir(folder, func(path string, e fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(folder, path) // path is below folder
		switch {
		case err != nil:
			fmt.Fprintf(missing, "%v\n", err)
		case !e.Type().IsRegular():
		case secretFile.MatchString(rel):
			fmt.Fprintf(missing, "%s: left out: it may hold secrets\n", path)
		case len(out) == maxFiles:
			fmt.Fprintf(missing, "%s: left out, and what follows: %d files are enough\n", path, maxFiles)
			return fs.SkipAll
		default:
			out = append(out, path)
		}
		return nil
	})
	if err != nil {
		fmt.Fprintf(missing, "%v\n", err)
	}
	return out
}

// readEnd reads the last part of a file.
func readEnd(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // it was only read
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if size := info.Size(); size > maxText {
		if _, err := f.Seek(size-maxText, io.SeekStart); err != nil {
			return nil, err
		}
	}
	return io.ReadAll(io.LimitReader(f, maxText))
}
