package install

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// installEnv makes this test binary install again and again into the folders below its value, of two versions in turn, until it is killed.
const installEnv = "INSTALL_TEST_ROOT"

// pad makes programs large enough for a kill to come in the middle of one.
var pad = strings.Repeat("-", 1<<20)

func (h *host) offer(version int) {
	for _, name := range []string{"muslin", "muslin-ipam", "portmap"} {
		h.write("image/"+name, fmt.Sprintf("program %s %d %s", name, version, pad))
	}
	h.write("secret/etcd-cert", fmt.Sprint("pair ", version))
	h.write("secret/etcd-key", fmt.Sprint("pair ", version))
	h.env["CNI_NETWORK_CONFIG"] = fmt.Sprintf(`{"name": "n", "version": %d, "plugins": [{"type": "muslin", "etcd_cert_file": "__ETCD_CERT_FILE__"}]}`, version)
}

func installOver(root string) int {
	h := &host{t: &testing.T{}, root: root, env: map[string]string{"TLS_ASSETS_DIR": filepath.Join(root, "secret")}}
	fmt.Println("begun")
	for version := 0; ; version++ {
		h.offer(version % 2)
		if err := h.installer().Once(context.Background(), ready()); err != nil {
			fmt.Println(err)
			return 1
		}
	}
}

// whole fails unless all that a runtime may come upon is whole: one of the versions.
func (h *host) whole(when string) {
	h.t.Helper()
	for _, name := range []string{"muslin", "muslin-ipam", "portmap"} {
		if got := h.read(bin + "/" + name); got != fmt.Sprintf("program %s 0 %s", name, pad) && got != fmt.Sprintf("program %s 1 %s", name, pad) && !strings.HasPrefix(got, "(no such") {
			h.t.Errorf("%s: program %s has %d bytes of neither version", when, name, len(got))
		}
	}
	conf := h.read(nets + "/10-calico.conflist")
	if strings.HasPrefix(conf, "(no such") {
		return
	}
	if !json.Valid([]byte(conf)) {
		h.t.Errorf("%s: the configuration is %q", when, conf)
	}
	if h.read(bin + "/muslin")[0] == '(' || h.read(bin + "/muslin-ipam")[0] == '(' {
		h.t.Errorf("%s: there is a configuration, and there are no programs", when)
	}
	cert, key := h.read(nets+"/calico-tls/..data/etcd-cert"), h.read(nets+"/calico-tls/..data/etcd-key")
	if cert != key || !strings.HasPrefix(cert, "pair") {
		h.t.Errorf("%s: certificate %q and key %q", when, cert, key)
	}
}

// A killed installer leaves nothing half there, and the next one finishes what it has begun.
func TestInstallerThatIsKilledLeavesEachFileWhole(t *testing.T) {
	h := newHost(t)
	for n := range 12 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), installEnv+"="+h.root)
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		said := make([]byte, 100)
		if _, err := out.Read(said); err != nil || !bytes.HasPrefix(said, []byte("begun")) {
			t.Fatalf("%q, %v", said, err)
		}
		<-time.After(time.Duration(n*n) * time.Millisecond) // where the kill hits does not matter, only that it is not always the same place
		_ = cmd.Process.Kill()
		if err := cmd.Wait(); err == nil || err.Error() != "signal: killed" {
			t.Fatalf("the installer did not work on until it was killed: %v", err)
		}
		h.whole(fmt.Sprint("kill ", n))
	}
	h.offer(7)
	if err := h.installer().Once(t.Context(), ready()); err != nil {
		t.Fatal(err)
	}
	if got := h.read(bin + "/muslin"); !strings.HasPrefix(got, "program muslin 7") {
		t.Errorf("after all: %.20s", got)
	}
	if got := h.read(nets + "/calico-tls/etcd-key"); got != "pair 7" {
		t.Errorf("after all: %s", got)
	}
	if diff := cmp.Diff([]string{receiptName, "calico", "calico-ipam", "muslin", "muslin-ipam", "portmap"}, h.files(bin)); diff != "" {
		t.Errorf("left in the folder of programs (-want +got):\n%s", diff)
	}
	if got := h.files(nets + "/calico-tls"); len(got) != 4 { // one version, the link to it, and two files
		t.Errorf("left beside the certificates: %q", got)
	}
	if err := h.settings().RemoveFiles(); err != nil {
		t.Fatal(err)
	}
	if got := h.files(bin); len(got) != 0 {
		t.Errorf("removal leaves %q", got)
	}
}

// Two at once, as where an init container and an agent both install, come to the same.
func TestInstallersAtOnceDoNotDisturbEachOther(t *testing.T) {
	h := newHost(t)
	for version := range 6 {
		h.offer(version)
		var all sync.WaitGroup
		for range 4 {
			i := h.installer()
			all.Go(func() {
				if err := i.Once(t.Context(), ready()); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if got := h.read(bin + "/portmap"); !strings.HasPrefix(got, fmt.Sprint("program portmap ", version)) {
			t.Errorf("version %d: %.20s", version, got)
		}
		if got := h.files(nets + "/calico-tls"); len(got) != 4 {
			t.Errorf("left beside the certificates: %q", got)
		}
	}
	if diff := cmp.Diff([]string{receiptName, "calico", "calico-ipam", "muslin", "muslin-ipam", "portmap"}, h.files(bin)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
