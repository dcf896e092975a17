package ctl

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/muslin-cni/muslin/pkg/api"
)

// about is the root's help: what holds for every verb.
func about(program, config string) string {
	return fmt.Sprintf(`Manage the networks of pods: their resources, addresses and nodes, in the etcd that nodes and calicoctl use too.

etcd is found by a configuration file: the one that --config names, else %[2]s if it is there. Without one the
environment says where it is: ETCD_ENDPOINTS, ETCD_CA_CERT_FILE, ETCD_CERT_FILE, ETCD_KEY_FILE, ETCD_USERNAME, ETCD_PASSWORD.

Results go to standard output, and everything else to standard error. The exit code is 0 if all that was asked for was done, else 1.

A link to this program named kubectl-muslin makes it a plugin: kubectl muslin get ippools. "%[1]s completion --help" says how the shell
completes verbs, kinds and names.`, program, config)
}

// kindsTable lists what kinds may be called.
func kindsTable() string {
	var b strings.Builder
	for _, k := range api.Kinds() {
		if !k.Hidden {
			fmt.Fprintf(&b, "  %-30s %s\n", k.Name, strings.Join(k.Words()[1:], " "))
		}
	}
	return b.String()
}

// examplesBelow are those of commands that other packages make, by their paths below the program's name.
func examplesBelow() map[string][]string {
	return map[string][]string{
		"ipam show":                {"ipam show", "ipam show --show-blocks", "ipam show --ip=10.244.0.5"},
		"ipam check":               {"ipam check --show-problem-ips", "ipam check -o report.json"},
		"ipam release":             {"ipam release --ip=10.244.0.5", "ipam release --from-report=monday.json --from-report=tuesday.json"},
		"ipam configure":           {"ipam configure --strictaffinity=true --max-blocks-per-host=4"},
		"ipam verify":              {"ipam verify", "ipam verify -o json --except no-leak"},
		"ipam split":               {"ipam split 4 --name=default-ipv4-ippool", "ipam split 2 --cidr=10.244.0.0/16"},
		"datastore migrate lock":   {"datastore migrate lock"},
		"datastore migrate unlock": {"datastore migrate unlock"},
		"datastore migrate export": {"datastore migrate export > cluster.txt", "datastore migrate export --backup > backup.txt"},
		"datastore migrate import": {"datastore migrate import -f cluster.txt", "datastore migrate import -f cluster.txt --config=new-etcd.cfg"},
		"node status":              {"node status"},
		"node paths":               {"node paths", "node paths --all", "node paths -o json"},
		"node diags":               {"node diags --output-dir=/root"},
		"node checksystem":         {"node checksystem"},
		"node adopt":               {"node adopt node-1"},
		"node drops":               {"node drops", "node drops --follow", "node drops --all -o json"},
		"policy explain":           {"policy explain --from=default/client --to=default/web --port=80", "policy explain --from=web-0 --to=10.244.0.5 --protocol=icmp"},
		"doctor":                   {"doctor", "doctor --strict --only=etcd,certificates,expiry", "doctor -o json"},
		"cluster diags":            {"cluster diags --output-dir=/root"},
	}
}

// addExamples gives every command below parent that has none its examples.
func (s *session) addExamples(parent *cobra.Command, above string) {
	all := examplesBelow()
	for _, c := range parent.Commands() {
		path := strings.TrimSpace(above + " " + c.Name())
		if lines := all[path]; len(lines) > 0 && c.Example == "" {
			c.Example = s.examples(lines...)
		}
		s.addExamples(c, path)
	}
}
