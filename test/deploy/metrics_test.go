package deploy

import (
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Reasons for which a metric of Calico's agent has no counterpart.
const (
	noGraph   = "policy and routes are computed in one piece, and how long that takes is part of felix_int_dataplane_apply_time_seconds"
	noMessage = "there are no messages between two halves of the agent"
	noProcess = "ipsets and routes are written by netlink, and iptables only when rules change: muslin_kernel_changes_total counts what was written, felix_int_dataplane_failures what failed"
)

// calicoMetrics are the metrics that dashboards for Calico's agent and controllers read, and why one is not there; "": it is, and means the same.
var calicoMetrics = map[string]string{
	"felix_active_local_endpoints": "", "felix_active_local_policies": "", "felix_active_local_selectors": "", "felix_cluster_num_host_endpoints": "",
	"felix_cluster_num_hosts": "", "felix_cluster_num_policies": "", "felix_cluster_num_profiles": "", "felix_cluster_num_tiers": "", "felix_cluster_num_workload_endpoints": "",
	"felix_calc_graph_output_events": noGraph, "felix_calc_graph_update_time_seconds": noGraph, "felix_calc_graph_updates_processed": noGraph,
	"felix_exec_time_micros": noProcess, "felix_host": "",
	"felix_int_dataplane_addr_msg_batch_size": noMessage, "felix_int_dataplane_apply_time_seconds": "", "felix_int_dataplane_failures": "",
	"felix_int_dataplane_iface_msg_batch_size": noMessage, "felix_int_dataplane_initial_resync_time_seconds": "", "felix_int_dataplane_messages": noMessage,
	"felix_int_dataplane_msg_batch_size": noMessage,
	"felix_ipset_calls":                  noProcess, "felix_ipset_errors": noProcess, "felix_ipset_lines_executed": noProcess, "felix_ipsets_calico": "", "felix_ipsets_total": "",
	"felix_iptables_chains": "", "felix_iptables_lines_executed": noProcess, "felix_iptables_restore_calls": noProcess, "felix_iptables_restore_errors": noProcess,
	"felix_iptables_rules": "", "felix_iptables_save_calls": noProcess, "felix_iptables_save_errors": noProcess,
	"felix_log_errors": "", "felix_logs_dropped": "", "felix_resync_state": "",
	"felix_resyncs_started":        "after a break the feed goes on where it was; muslin_datastore_lag_seconds says how long it was cut off",
	"felix_route_table_num_ifaces": "", "felix_route_table_num_routes": "", "felix_route_table_partial_resync_seconds": noProcess, "felix_route_table_resync_seconds": noProcess,

	"ipam_allocations_borrowed": "", "ipam_allocations_borrowed_per_node": "", "ipam_allocations_gc_candidates": "", "ipam_allocations_gc_reclamations": "",
	"ipam_allocations_in_use": "", "ipam_allocations_per_node": "", "ipam_blocks": "", "ipam_blocks_per_node": "", "ipam_ippool_size": "",
}

// What our own dashboard and an operator need beside them: the time of ADDs as a whole and by stage, addresses, how far behind etcd a node is, what was
// written, and what is wrong.
var ownMetrics = []string{
	"muslin_request_seconds", "muslin_add_stage_seconds", "muslin_node_addresses_in_use", "muslin_node_addresses_free", "muslin_node_blocks", "muslin_datastore_lag_seconds",
	"muslin_datastore_revision", "muslin_datastore_connected", "muslin_kernel_changes_total", "muslin_problems", "muslin_controllers_leader",
}

func TestMetricsOfCalicosDashboardsAreThereOrItIsSaidWhyNot(t *testing.T) {
	all := exported(t)
	want := slices.Clone(ownMetrics)
	for name, lacks := range calicoMetrics {
		if lacks == "" {
			want = append(want, name)
		} else if all[name] {
			t.Errorf("%s is there, and the reason why it is not: %s", name, lacks)
		}
	}
	slices.Sort(want)
	got := slices.DeleteFunc(slices.Sorted(maps.Keys(all)), func(name string) bool { return !slices.Contains(want, name) })
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}
