package config

import (
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/muslin-cni/muslin/pkg/api"
)

// etcdVariables are those that package store reads, each with CALICO_ in front too.
func etcdVariables() []Setting {
	var out []Setting
	for _, v := range [][3]string{
		{"ETCD_ENDPOINTS", "", "etcd's URLs, with commas between them"},
		{"ETCD_DISCOVERY_SRV", "", "domain whose SRV records name them"},
		{"ETCD_CA_CERT_FILE", "", "file of the CA of etcd's certificates"},
		{"ETCD_CERT_FILE", "", "file of our certificate"},
		{"ETCD_KEY_FILE", "", "file of its key"},
		{"ETCD_USERNAME", "", "etcd's user"},
		{"ETCD_PASSWORD", "", "its password"},
		{"ETCD_AUTHORITY", "", "old form of ETCD_ENDPOINTS: host:port"},
		{"ETCD_SCHEME", "http", "http or https, with ETCD_AUTHORITY"},
		{"DATASTORE_TYPE", "etcdv3", "etcdv3 is the one there is"},
	} {
		out = append(out, Setting{Name: v[0], Env: v[0], Default: v[1], Meaning: v[2]})
	}
	return out
}

// others are variables that are heeded by whoever they concern, and not shown by help: tests' and the runtime's.
func others() []string {
	return []string{
		"KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "KUBERNETES_SERVICE_PORT_HTTPS", "HOSTNAME",
		"MUSLIN_LAB", "MUSLIN_LAB_ROLE", "MUSLIN_LAB_DIR",
	}
}

// withoutMeaning are variables of Calico's that are known and change nothing here, with the reason.
func withoutMeaning() map[string]string {
	const oneProgram = "the agent is one program, and reads it from elsewhere: "
	const noTypha = "there is no Typha"
	return map[string]string{
		"WAIT_FOR_DATASTORE":           "the agent always waits for etcd",
		"CALICO_LIBNETWORK_ENABLED":    "there is no plugin for Docker",
		"CALICO_DISABLE_FILE_LOGGING":  "the agent logs to a file only where LogSeverityFile says so",
		"CALICO_DISABLE_FELIX":         "the dataplane is the agent's one part",
		"CALICO_MANAGE_CNI":            "the plugin needs no credentials of the agent's making",
		"CALICO_CNI_SERVICE_ACCOUNT":   "the plugin needs no credentials of the agent's making",
		"CALICO_ADVERTISE_CLUSTER_IPS": "it moved to BGPConfiguration",
		"USE_POD_CIDR":                 "addresses come from pools, not from the podCIDR of Kubernetes",
		"FELIX_ETCDADDR":               oneProgram + "ETCD_ENDPOINTS",
		"FELIX_ETCDSCHEME":             oneProgram + "ETCD_SCHEME",
		"FELIX_TYPHAADDR":              noTypha,
		"FELIX_TYPHAK8SSERVICENAME":    noTypha,
		"FELIX_TYPHAK8SNAMESPACE":      noTypha,
		"FELIX_TYPHACAFILE":            noTypha,
		"FELIX_TYPHACERTFILE":          noTypha,
		"FELIX_TYPHAKEYFILE":           noTypha,
		"FELIX_TYPHACN":                noTypha,
		"FELIX_TYPHAURISAN":            noTypha,
	}
}

// NodeSettings are what the environment alone sets, in the order of help.
func NodeSettings() []Setting {
	var out []Setting
	for _, v := range new(Node).variables() {
		out = append(out, Setting{Name: v.name, Env: v.name, Default: v.fallback, Meaning: v.meaning + " (" + v.want + ")"})
	}
	return append(out, etcdVariables()...)
}

// Unheeded looks through an environment ("NAME=value") for variables under our names that change nothing: known holds those that are known to be
// without meaning here, with the reason, and unknown those that nobody knows, with the name that was perhaps meant. Variables that are
// set to "" are passed over.
func Unheeded(environ []string) (known, unknown []string) {
	heeded, idle := map[string]bool{}, withoutMeaning()
	for _, s := range append(NodeSettings(), FelixSettings()...) {
		heeded[s.Env], heeded["FELIX_"+s.Name] = true, true
	}
	for _, s := range etcdVariables() {
		heeded["CALICO_"+s.Env] = true
	}
	for _, name := range others() {
		heeded[name] = true
	}
	for _, name := range calicosFelix() {
		if _, there := idle[name]; !there {
			idle[name] = "a setting of Calico's agent that Muslin's does not have"
		}
	}
	for _, pair := range slices.Sorted(slices.Values(environ)) {
		name, text, _ := strings.Cut(pair, "=")
		why, isIdle := idle[name]
		switch {
		case text == "" || heeded[name]:
		case isIdle:
			known = append(known, name+": "+why)
		case ours.MatchString(name) && !serviceLink.MatchString(name):
			unknown = append(unknown, name+suggestion(name, heeded))
		}
	}
	return known, unknown
}

var (
	// ours matches names that somebody meant for us.
	ours = regexp.MustCompile(`^(CALICO_|FELIX_|MUSLIN_|ETCD_|IP6?(V[46])?$|IP6?_|IPV[46]_|AUTODETECT)`)
	// serviceLink matches what Kubernetes puts into a pod's environment for each Service, such as one whose name begins with calico.
	serviceLink = regexp.MustCompile(`_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT|PORT_[0-9]+_(TCP|UDP|SCTP)(_[A-Z]+)?)$`)
)

// calicosFelix are the variables of all fields of FelixConfiguration, durations under their older names too.
func calicosFelix() []string {
	var out []string
	eachField(api.FelixConfigurationSpec{}, func(name string, _ reflect.Value) {
		v := "FELIX_" + strings.ToUpper(name)
		out = append(out, v, v+"SECS", v+"MILLIS")
	})
	return out
}

// suggestion is the known name that differs least, if that is little; of equally near ones the first in the alphabet.
func suggestion(name string, known map[string]bool) string {
	best, least := "", len(name)/4+1
	for k := range known {
		if d := distance(name, k); d < least || d == least && best != "" && k < best {
			best, least = k, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(" (did you mean %s?)", best)
}

// distance is how many letters must be put in, taken out or changed to make a of b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before := row[0] // of the row above, one to the left
		row[0] = i + 1
		for j := range len(b) {
			change := before
			if a[i] != b[j] {
				change++
			}
			before = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
