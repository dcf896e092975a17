package policy

import (
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/muslin-cni/muslin/pkg/api"
)

func TestLimitsAreReadFromTheEndpoint(t *testing.T) {
	ef, odd := uint8(46), uint8(64)
	for name, c := range map[string]struct {
		stored  api.QoSControls
		plugin  string
		want    Limits
		problem string
	}{
		"nothing": {},
		"all": {
			stored: api.QoSControls{
				IngressBandwidth: 8_000_000, IngressBurst: 16_000_000, IngressPeakrate: 16_000_000, IngressPacketRate: 100, IngressPacketBurst: 7, IngressMaxConnections: 10,
				EgressBandwidth: 80_000_000, EgressPacketRate: 1000, EgressMaxConnections: 20, DSCP: &ef,
			},
			want: Limits{
				Ingress: Limit{Connections: 10, Packets: Rate{100, 7}, Bytes: Rate{1_000_000, 1_000_000}, Peak: Rate{2_000_000, 0}},
				Egress:  Limit{Connections: 20, Packets: Rate{1000, 100}, Bytes: Rate{10_000_000, 0}},
				Marked:  true, DSCP: 46,
			},
		},
		"bursts below what the kernel passes on in one piece": {
			stored: api.QoSControls{IngressBandwidth: 80_000, IngressBurst: 8, EgressPacketRate: 10},
			want:   Limits{Ingress: Limit{Bytes: Rate{10_000, 128<<10 - 10_000}}, Egress: Limit{Packets: Rate{10, 5}}},
		},
		"what a plugin keeps": {
			stored: api.QoSControls{IngressBandwidth: 8_000_000, EgressBandwidth: 8_000_000, EgressMaxConnections: 1}, plugin: "ingress",
			want: Limits{Egress: Limit{Connections: 1, Bytes: Rate{1_000_000, 0}}},
		},
		"more than a kernel counts": {
			stored: api.QoSControls{IngressBandwidth: math.MaxInt64, EgressPacketRate: math.MaxInt64, EgressMaxConnections: math.MaxInt64},
		},
		"bursts beyond what a kernel counts": {
			stored: api.QoSControls{IngressBandwidth: 8_000_000, IngressBurst: math.MaxInt64, EgressPacketRate: 10, EgressPacketBurst: math.MaxInt64},
			want:   Limits{Ingress: Limit{Bytes: Rate{1_000_000, math.MaxUint32}}, Egress: Limit{Packets: Rate{10, math.MaxUint32}}},
		},
		"below nothing":     {stored: api.QoSControls{EgressMaxConnections: -1}, problem: "egressMaxConnections: -1 is no limit"},
		"no value for DSCP": {stored: api.QoSControls{DSCP: &odd}, problem: "dscp: 64 is above 63"},
	} {
		t.Run(name, func(t *testing.T) {
			w := &api.WorkloadEndpoint{}
			w.Metadata.Name, w.Metadata.Namespace, w.Spec.Node = "w", "ns", "n1"
			w.Metadata.Annotations = map[string]string{api.AnnotationPluginLimits: c.plugin}
			w.Spec.QoSControls = &c.stored
			m := Compute("n1", Delta{Objects: []Change{{Key: "w", Object: w}}})
			if diff := cmp.Diff(c.want, m.Endpoints[EndpointKey{Workload, "ns", "w"}].Limits); diff != "" {
				t.Errorf("want (-), got (+):\n%s", diff)
			}
			if len(m.Problems) > 1 || (c.problem != "") != (len(m.Problems) == 1 && strings.Contains(m.Problems[0].Text, c.problem)) {
				t.Errorf("problems %v, want %q", m.Problems, c.problem)
			}
		})
	}
}

func TestChangedLimitsAreAnUpdate(t *testing.T) {
	e := New("n1")
	apply := func(most int64) Update {
		w := &api.WorkloadEndpoint{}
		w.Metadata.Name, w.Metadata.Namespace, w.Spec.Node = "w", "ns", "n1"
		w.Spec.QoSControls = &api.QoSControls{EgressMaxConnections: most}
		return e.Apply(Delta{Objects: []Change{{Key: "w", Object: w}}})
	}
	apply(1)
	if u := apply(1); !u.Empty() {
		t.Errorf("the same limit: %+v", u)
	}
	u := apply(2)
	if got := u.Endpoints[EndpointKey{Workload, "ns", "w"}]; got == nil || got.Limits.Egress.Connections != 2 {
		t.Errorf("another limit: %+v", u)
	}
}
