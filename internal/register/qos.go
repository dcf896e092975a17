package register

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/pkg/api"
)

// The annotations that limit a pod's traffic. Each of the first kind holds a quantity as Kubernetes writes it (10M, 1Gi); see api.QoSControls for the
// units. The second is what the plugin bandwidth heeds, which the network configurations that Muslin comes with chain. It counts where the first does not say it, and is
// left to that plugin: what two keep, each with bursts of its own, gets less than either would give.
const (
	annotationQoS       = "qos.projectcalico.org/"
	annotationBandwidth = "kubernetes.io/%s-bandwidth"
	annotationDSCP      = annotationQoS + "dscp"
)

// readQoS has the limits written down on the endpoint, and which of them are the plugin's.
func readQoS(w *wishes, _ attach.Request, pod Pod) error {
	q := api.QoSControls{}
	for name, field := range map[string]*int64{
		"ingressBandwidth": &q.IngressBandwidth, "egressBandwidth": &q.EgressBandwidth, "ingressBurst": &q.IngressBurst, "egressBurst": &q.EgressBurst,
		"ingressPeakrate": &q.IngressPeakrate, "egressPeakrate": &q.EgressPeakrate, "ingressMinburst": &q.IngressMinburst, "egressMinburst": &q.EgressMinburst,
		"ingressPacketRate": &q.IngressPacketRate, "egressPacketRate": &q.EgressPacketRate,
		"ingressPacketBurst": &q.IngressPacketBurst, "egressPacketBurst": &q.EgressPacketBurst,
		"ingressMaxConnections": &q.IngressMaxConnections, "egressMaxConnections": &q.EgressMaxConnections,
	} {
		a := pod.own(annotationQoS + name)
		if direction, ok := strings.CutSuffix(name, "Bandwidth"); ok && !a.set {
			if a = pod.own(fmt.Sprintf(annotationBandwidth, direction)); a.set {
				w.plugged = append(w.plugged, direction)
			}
		}
		if err := a.quantity(field); err != nil {
			return err
		}
	}
	slices.Sort(w.plugged)
	a := pod.own(annotationDSCP)
	if a.set {
		v, ok := parseDSCP(a.text)
		if !ok {
			return a.wrong(fmt.Sprintf("%q is no value for the DSCP field", a.text), "write a number from 0 to 63, or a name such as EF or AF11")
		}
		q.DSCP = &v
	}
	if q != (api.QoSControls{}) {
		w.qos = &q
	}
	return nil
}

func (a annotation) quantity(into *int64) error {
	if !a.set {
		return nil
	}
	v, err := resource.ParseQuantity(strings.TrimSpace(a.text))
	if err != nil || v.Value() <= 0 {
		return a.wrong(fmt.Sprintf("%q is no quantity above 0", a.text), "write it as 10M")
	}
	*into = v.Value()
	return nil
}

// parseDSCP reads a number or a name: DF, EF (RFC 3246), CS0 to CS7 (RFC 2474), AF11 to AF43 (RFC 2597), VA (RFC 5865).
func parseDSCP(text string) (uint8, bool) {
	text = strings.ToUpper(strings.TrimSpace(text))
	if n, err := strconv.ParseUint(text, 10, 8); err == nil {
		return uint8(n), n < 64
	}
	if v, ok := map[string]uint8{"DF": 0, "EF": 46, "VA": 44}[text]; ok {
		return v, true
	}
	in := func(c, from, to byte) bool { return c >= from && c <= to }
	switch {
	case len(text) == 3 && text[:2] == "CS" && in(text[2], '0', '7'):
		return (text[2] - '0') << 3, true
	case len(text) == 4 && text[:2] == "AF" && in(text[2], '1', '4') && in(text[3], '1', '3'):
		return (text[2]-'0')<<3 + (text[3]-'0')<<1, true
	}
	return 0, false
}
