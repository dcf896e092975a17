package hosts

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/ctl/cli"
	"github.com/muslin-cni/muslin/internal/doctor"
)

func checkSystemCommand(env cli.Env) *cobra.Command {
	var config string
	c := &cobra.Command{
		Use:   "checksystem [--kernel-config=<FILE>]",
		Short: "Say whether this host's kernel has what is needed",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			release, err := kernelRelease()
			if err != nil {
				return err
			}
			return (system{root: "/", release: release, config: config}).check(env.Out)
		},
	}
	c.Flags().StringVarP(&config, "kernel-config", "f", "", "the kernel's configuration, if it is neither in /proc/config.gz nor in /boot")
	return c
}

func kernelRelease() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", fmt.Errorf("read the kernel's release: %w", err)
	}
	return unix.ByteSliceToString(u.Release[:]), nil
}

// feature is something that a kernel has or not.
type feature struct {
	module string // as it is called where it is no part of the kernel itself; "a|b": either will do
	option string // of the kernel's configuration, likewise
	only   doctor.Purpose
}

// features are what Muslin uses.
func features() []feature {
	return []feature{
		{"veth", "VETH", doctor.ForAll},
		{"nf_conntrack", "NF_CONNTRACK", doctor.ForAll},
		{"nf_nat", "NF_NAT", doctor.ForAll},
		{"ip_set", "IP_SET", doctor.ForAll},
		{"ip_set_hash_net", "IP_SET_HASH_NET", doctor.ForAll},
		{"xt_set", "NETFILTER_XT_SET", doctor.ForAll},
		{"xt_comment", "NETFILTER_XT_MATCH_COMMENT", doctor.ForAll},
		{"xt_addrtype", "NETFILTER_XT_MATCH_ADDRTYPE", doctor.ForAll},
		{"xt_MASQUERADE|ipt_MASQUERADE", "NETFILTER_XT_TARGET_MASQUERADE|IP_NF_TARGET_MASQUERADE", doctor.ForAll},
		{"ip_tables|nft_compat", "IP_NF_IPTABLES|NFT_COMPAT", doctor.ForAll},
		{"nf_tables", "NF_TABLES", doctor.ForAll},
		{"nft_ct", "NFT_CT", doctor.ForAll},
		{"nft_limit", "NFT_LIMIT", doctor.ForAll},
		{"nft_log", "NFT_LOG", doctor.ForAll},
		{"nft_fib_inet", "NFT_FIB_INET", doctor.ForAll},
		{"nfnetlink_log", "NETFILTER_NETLINK_LOG", doctor.ForAll},
		{"nft_reject_inet", "NFT_REJECT_INET", doctor.ForReject},
		{"nf_log_syslog", "NF_LOG_SYSLOG", doctor.ForLog},
		{"xt_CT", "NETFILTER_XT_TARGET_CT", doctor.ForVXLAN},
		{"vxlan", "VXLAN", doctor.ForVXLAN},
		{"wireguard", "WIREGUARD", doctor.ForWireGuard},
		{"ipip", "NET_IPIP", doctor.ForIPIP},
	}
}

// oldest is the oldest kernel that calicoctl accepts.
func oldest() [3]int { return [3]int{2, 6, 24} }

// system is a host whose kernel is looked at.
type system struct {
	root    string // of its files
	release string // of its kernel
	config  string // its kernel's configuration; "": where kernels keep theirs
}

// check prints what the kernel has, and fails if something is missing that everything needs.
func (s system) check(w io.Writer) error {
	has, err := s.survey()
	if err != nil {
		return err
	}
	ok := newEnough(s.release)
	text := fmt.Sprintf("Checking kernel version...\n  %-30s %s\nChecking kernel modules...\n", s.release, verdict(ok))
	for _, f := range features() {
		said := verdict(has.feature(f))
		if !has.feature(f) {
			if f.only == doctor.ForAll {
				ok = false
			} else {
				said = "missing: needed only for " + string(f.only)
			}
		}
		text += fmt.Sprintf("  %-30s %s\n", f.module, said)
	}
	if !ok {
		if _, err := io.WriteString(w, text); err != nil {
			return err
		}
		return errors.New("system doesn't meet one or more minimum systems requirements to run Calico")
	}
	_, err = io.WriteString(w, text+"System meets minimum system requirements to run Calico!\n")
	return err
}

func verdict(ok bool) string {
	if ok {
		return "OK"
	}
	return "missing"
}

// newEnough compares a release like 6.1.0-18-amd64 with the oldest.
func newEnough(release string) bool {
	digits := strings.FieldsFunc(release, func(r rune) bool { return r < '0' || r > '9' })
	for i, want := range oldest() {
		if i >= len(digits) {
			return false
		}
		n, err := strconv.Atoi(digits[i])
		if err != nil || n != want {
			return err == nil && n > want
		}
	}
	return true
}

// inventory is what a kernel has.
type inventory struct {
	modules map[string]bool // that are loaded, built in, or files that can be loaded
	builtin map[string]bool // options that are y
}

func (i inventory) feature(f feature) bool {
	return slices.ContainsFunc(strings.Split(f.module, "|"), func(m string) bool { return i.modules[m] }) ||
		slices.ContainsFunc(strings.Split(f.option, "|"), func(o string) bool { return i.builtin[o] })
}

// survey reads what the kernel says of itself, wherever it says so.
func (s system) survey() (inventory, error) {
	i := inventory{modules: map[string]bool{}, builtin: map[string]bool{}}
	modules := filepath.Join(s.root, "lib/modules", s.release)
	errs := []error{
		lines(filepath.Join(s.root, "proc/modules"), func(l string) { i.module(l) }),
		lines(filepath.Join(modules, "modules.builtin"), func(l string) { i.module(l) }),
		lines(filepath.Join(modules, "modules.dep"), func(l string) {
			file, _, _ := strings.Cut(l, ":")
			i.module(file)
		}),
	}
	for _, p := range s.configs() {
		errs = append(errs, lines(p, i.option))
	}
	if s.config != "" {
		if _, err := os.Stat(s.config); err != nil {
			return i, fmt.Errorf("read the kernel's configuration: %w", err)
		}
	}
	return i, errors.Join(errs...)
}

func (s system) configs() []string {
	if s.config != "" {
		return []string{s.config}
	}
	return []string{filepath.Join(s.root, "proc/config.gz"), filepath.Join(s.root, "boot/config-"+s.release)}
}

// module notes a line that begins with a module's name, or with its file: kernel/net/netfilter/xt_set.ko.xz
func (i inventory) module(line string) {
	name, _, _ := strings.Cut(line, " ")
	name, _, _ = strings.Cut(path.Base(name), ".")
	i.modules[strings.ReplaceAll(name, "-", "_")] = true
}

// option notes a line of a configuration: CONFIG_VXLAN=y
func (i inventory) option(line string) {
	if name, ok := strings.CutSuffix(strings.TrimPrefix(line, "CONFIG_"), "=y"); ok {
		i.builtin[name] = true
	}
}

// lines calls f with each line of a file, which may be compressed and need not exist.
func lines(path string, f func(string)) error {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var in io.Reader = bytes.NewReader(raw)
	if bytes.HasPrefix(raw, []byte{0x1f, 0x8b}) {
		if in, err = gzip.NewReader(in); err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
	}
	scan := bufio.NewScanner(in)
	for scan.Scan() {
		f(scan.Text())
	}
	if err := scan.Err(); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}
