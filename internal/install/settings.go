package install

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// Settings say what is put on a host and where. Folders are as this process sees them, which may run in a container.
type Settings struct {
	Source      string   // folder with the programs
	Bins        []string // folders of the host for programs; each that is there and can be written gets them
	NetDir      string   // folder of the host for network configurations
	InnerNetDir string   // the same, as the host's own programs see it
	Secrets     string   // folder that holds etcd-ca, etcd-cert and etcd-key, or some of them

	Name    string // file of the configuration
	OldName string // file that goes when it is there; "": none
	Skip    map[string]bool
	Keep    bool   // programs that are there already are not replaced
	Stay    bool   // go on after the installation, for certificates that change
	Account string // service account for a kubeconfig on the host; "": none is written

	template string
	words    map[string]string // by placeholder
}

// Places are folders that the environment does not name.
type Places struct {
	Host   string // where the host's root is: "/" outside a container
	Source string // folder with the programs
}

// FromEnv reads the settings from variables with the names of Calico's installer. An error names the variable.
func FromEnv(env func(string) string, at Places) (Settings, error) {
	get := func(name, fallback string) string { return cmp.Or(env(name), fallback) }
	s := Settings{
		Source: at.Source, Bins: []string{filepath.Join(at.Host, "opt/cni/bin"), filepath.Join(at.Host, "secondary-bin-dir")},
		NetDir: filepath.Join(at.Host, "etc/cni/net.d"), InnerNetDir: get("CNI_NET_DIR", "/etc/cni/net.d"), Secrets: get("TLS_ASSETS_DIR", "/calico-secrets"),
		Name: get("CNI_CONF_NAME", "10-calico.conflist"), OldName: get("CNI_OLD_CONF_NAME", "10-calico.conflist"),
		Skip: map[string]bool{}, Keep: no(get("UPDATE_CNI_BINARIES", "true")), Stay: !no(get("SLEEP", "true")), Account: env("CALICO_CNI_SERVICE_ACCOUNT"),
	}
	if at.Host == "/" { // in a container the folder is mounted, whatever its name outside
		s.NetDir = s.InnerNetDir
	}
	for name := range strings.SplitSeq(env("SKIP_CNI_BINARIES"), ",") {
		s.Skip[strings.TrimSpace(name)] = true
	}
	if filepath.Base(s.Name) != s.Name || filepath.Base(s.OldName) != s.OldName {
		return Settings{}, fmt.Errorf("CNI_CONF_NAME=%s, CNI_OLD_CONF_NAME=%s: want the names of files in %s, without a folder", s.Name, s.OldName, s.InnerNetDir)
	}
	s.template = get("CNI_NETWORK_CONFIG", builtIn)
	if file := env("CNI_NETWORK_CONFIG_FILE"); file != "" {
		b, err := os.ReadFile(file)
		if err != nil {
			return Settings{}, fmt.Errorf("read CNI_NETWORK_CONFIG_FILE: %w", err)
		}
		s.template = string(b)
	}
	s.words = words(get, s.InnerNetDir)
	return s, nil
}

// no tells whether a variable says no, in any of the words that Calico's installer takes for it.
func no(text string) bool {
	switch strings.ToLower(text) {
	case "false", "0", "no", "n", "f":
		return true
	}
	return false
}

// words are what stands for the placeholders, but for those of certificates: these depend on which there are.
//
// A token never comes into the configuration: what it was for, the agent does. An MTU that nobody has set is 0: the agent says
// what it is.
func words(get func(name, fallback string) string, netDir string) map[string]string {
	host, _ := os.Hostname() // a name that cannot be read is ""
	return map[string]string{
		"LOG_LEVEL":               get("LOG_LEVEL", "info"),
		"LOG_FILE_PATH":           get("LOG_FILE_PATH", "/var/log/calico/cni/cni.log"),
		"LOG_FILE_MAX_SIZE":       get("LOG_FILE_MAX_SIZE", "100"),
		"LOG_FILE_MAX_AGE":        get("LOG_FILE_MAX_AGE", "30"),
		"LOG_FILE_MAX_COUNT":      get("LOG_FILE_MAX_COUNT", "10"),
		"DATASTORE_TYPE":          get("DATASTORE_TYPE", "etcdv3"),
		"KUBERNETES_NODE_NAME":    get("KUBERNETES_NODE_NAME", get("NODENAME", strings.ToLower(host))),
		"KUBECONFIG_FILEPATH":     filepath.Join(netDir, kubeconfigName),
		"CNI_MTU":                 get("CNI_MTU", "0"),
		"KUBERNETES_SERVICE_HOST": get("KUBERNETES_SERVICE_HOST", ""),
		"KUBERNETES_SERVICE_PORT": get("KUBERNETES_SERVICE_PORT", ""),
		"SERVICEACCOUNT_TOKEN":    "",
		"CALICO_API_GROUP":        get("CALICO_API_GROUP", ""),
		"ETCD_ENDPOINTS":          get("ETCD_ENDPOINTS", ""),
		"ETCD_DISCOVERY_SRV":      get("ETCD_DISCOVERY_SRV", ""),
		"REQUIRE_MTU_FILE":        get("REQUIRE_MTU_FILE", "false"),
	}
}

// builtIn is the configuration where the environment has none. A runtime takes the highest of cniVersions that it knows (CNI specification
// 1.1, "Network configuration"), and 1.1.0 is the first with STATUS and GC.
const builtIn = `{
  "name": "k8s-pod-network",
  "cniVersion": "1.0.0",
  "cniVersions": ["0.3.1", "1.0.0", "1.1.0"],
  "plugins": [
    {
      "type": "muslin",
      "log_level": "__LOG_LEVEL__",
      "log_file_path": "__LOG_FILE_PATH__",
      "etcd_endpoints": "__ETCD_ENDPOINTS__",
      "etcd_discovery_srv": "__ETCD_DISCOVERY_SRV__",
      "etcd_key_file": "__ETCD_KEY_FILE__",
      "etcd_cert_file": "__ETCD_CERT_FILE__",
      "etcd_ca_cert_file": "__ETCD_CA_CERT_FILE__",
      "mtu": __CNI_MTU__,
      "ipam": {"type": "muslin-ipam"},
      "policy": {"type": "k8s"}
    },
    {"type": "portmap", "snat": true, "capabilities": {"portMappings": true}},
    {"type": "bandwidth", "capabilities": {"bandwidth": true}}
  ]
}
`

// placeholder matches a word that is to be replaced.
var placeholder = regexp.MustCompile(`__[A-Z0-9_]+?__`)

// Configuration is the network configuration as it would be for a host that has no certificates.
func (s Settings) Configuration() (string, error) {
	return s.render(func(string) string { return "" })
}

// render fills in the template. certificate returns the path of one, as the host sees it, or "" where there is none.
func (s Settings) render(certificate func(name string) string) (string, error) {
	files := map[string]string{"ETCD_KEY_FILE": "etcd-key", "ETCD_CERT_FILE": "etcd-cert", "ETCD_CA_CERT_FILE": "etcd-ca"}
	var unknown []error
	text := placeholder.ReplaceAllStringFunc(s.template, func(word string) string {
		name := strings.Trim(word, "_")
		if file, ok := files[name]; ok {
			return certificate(file)
		}
		value, ok := s.words[name]
		if !ok {
			unknown = append(unknown, fmt.Errorf("network configuration (CNI_NETWORK_CONFIG): the placeholder %s is not known", word))
		}
		return value
	})
	if err := errors.Join(unknown...); err != nil {
		return "", err
	}
	return text, s.check(text)
}

// check refuses a configuration that no runtime would take: it would keep the node from ever being ready, and say so only in the runtime's log.
func (s Settings) check(text string) error {
	var conf struct {
		Name, Type string
		Plugins    []struct{ Type string }
	}
	if err := json.Unmarshal([]byte(text), &conf); err != nil {
		return fmt.Errorf("network configuration (CNI_NETWORK_CONFIG) with its placeholders filled in: %w", err)
	}
	list := filepath.Ext(s.Name) == ".conflist"
	switch {
	case conf.Name == "":
		return errors.New(`network configuration (CNI_NETWORK_CONFIG): "name" is missing`)
	case list && len(conf.Plugins) == 0:
		return fmt.Errorf(`network configuration (CNI_NETWORK_CONFIG): "plugins" is missing, which %s as a .conflist wants`, s.Name)
	case !list && conf.Type == "":
		return fmt.Errorf(`network configuration (CNI_NETWORK_CONFIG): "type" is missing; if it is a list of plugins, CNI_CONF_NAME=%s must end with .conflist`, s.Name)
	}
	return nil
}
