package hosts

import (
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// host makes the files of a host and returns their root.
func host(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func zipped(t *testing.T, text string) string {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

const (
	builtIn = "CONFIG_VETH=y\nCONFIG_NF_CONNTRACK=y\nCONFIG_NF_NAT=y\nCONFIG_IP_SET=y\nCONFIG_IP_SET_HASH_NET=y\nCONFIG_NETFILTER_XT_SET=y\n" +
		"CONFIG_NETFILTER_XT_MATCH_COMMENT=y\nCONFIG_NETFILTER_XT_MATCH_ADDRTYPE=y\nCONFIG_NETFILTER_XT_TARGET_MASQUERADE=y\nCONFIG_NFT_COMPAT=y\n" +
		"CONFIG_NF_TABLES=y\nCONFIG_NFT_CT=y\nCONFIG_NFT_LIMIT=y\nCONFIG_NFT_LOG=y\nCONFIG_NFT_FIB_INET=y\nCONFIG_NETFILTER_NETLINK_LOG=y\n"
	modules = "kernel/drivers/net/veth.ko.xz: kernel/a.ko\nkernel/nf_conntrack.ko:\nkernel/nf_nat.ko:\nkernel/ip_set.ko:\nkernel/ip_set_hash_net.ko:\n" +
		"kernel/xt_set.ko:\nkernel/xt_comment.ko:\nkernel/xt_addrtype.ko:\nkernel/xt_MASQUERADE.ko:\n" +
		"kernel/nf_tables.ko:\nkernel/nft_ct.ko:\nkernel/nft_limit.ko:\nkernel/nft_log.ko:\nkernel/nft_fib_inet.ko:\nkernel/nfnetlink_log.ko:\n"
)

func TestKernelIsEnough(t *testing.T) {
	tests := []struct {
		name    string
		release string
		files   map[string]string
		want    string // of the text or the error
		wrong   bool
	}{
		{name: "built in", release: "6.1.0", files: map[string]string{"proc/config.gz": zipped(t, builtIn)}, want: "ipip                           missing: needed only for pools with IP-in-IP\nSystem meets"},
		{name: "modules, one of them loaded", release: "6.1.0-18-amd64", files: map[string]string{
			"lib/modules/6.1.0-18-amd64/modules.dep": modules, "proc/modules": "ip_tables 32768 1 - Live 0x0\n", "boot/config-6.1.0-18-amd64": "CONFIG_VETH=m\n",
		}, want: "System meets minimum system requirements to run Calico!\n"},
		{name: "modules of another kernel", release: "6.1.0", files: map[string]string{"lib/modules/6.2.0/modules.dep": modules}, want: "system doesn't meet", wrong: true},
		{name: "no nftables", release: "6.1.0", files: map[string]string{"proc/config.gz": zipped(t, strings.ReplaceAll(builtIn, "CONFIG_NF_TABLES=y", ""))},
			want: "nf_tables                      missing\n", wrong: true},
		{name: "no ipset", release: "6.1.0", files: map[string]string{"proc/config.gz": zipped(t, strings.ReplaceAll(builtIn, "CONFIG_IP_SET=y", "# CONFIG_IP_SET is not set"))},
			want: "ip_set                         missing\n", wrong: true},
		{name: "a module that was not built", release: "6.1.0", files: map[string]string{"proc/config.gz": zipped(t, strings.ReplaceAll(builtIn, "VETH=y", "VETH=m"))}, want: "veth                           missing", wrong: true},
		{name: "too old", release: "2.6.23", files: map[string]string{"proc/config.gz": zipped(t, builtIn)}, want: "2.6.23                         missing", wrong: true},
		{name: "just new enough", release: "2.6.24", files: map[string]string{"proc/config.gz": zipped(t, builtIn)}, want: "2.6.24                         OK"},
		{name: "broken configuration", release: "6.1.0", files: map[string]string{"proc/config.gz": "\x1f\x8bno"}, want: "config.gz", wrong: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			err := system{root: host(t, tt.files), release: tt.release}.check(&out)
			if (err != nil) != tt.wrong {
				t.Errorf("check: %v, want an error: %v", err, tt.wrong)
			}
			if text := out.String() + errText(err); !strings.Contains(text, tt.want) {
				t.Errorf("check says:\n%s\nwant %q in it", text, tt.want)
			}
		})
	}
}

func TestKernelConfigurationOfTheOperatorIsTheOneThatCounts(t *testing.T) {
	root := host(t, map[string]string{"proc/config.gz": zipped(t, builtIn), "mine": ""})
	var out strings.Builder
	if err := (system{root: root, release: "6.1.0", config: filepath.Join(root, "mine")}).check(&out); err == nil {
		t.Errorf("an empty configuration is enough:\n%s", &out)
	}
	if err := (system{root: root, release: "6.1.0", config: filepath.Join(root, "none")}).check(&out); err == nil {
		t.Error("a configuration that does not exist is no error")
	}
}
