package cni

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"

	"github.com/muslin-cni/muslin/internal/attach"
	"github.com/muslin-cni/muslin/internal/kernel"
)

// hwAddrAnnotation lets a pod choose its MAC.
const hwAddrAnnotation = "cni.projectcalico.org/hwAddr"

// The bits of a MAC's first octet (IEEE 802-2014, 8.2.2).
const (
	groupBit = 1 << 0 // a group's address, not one station's
	localBit = 1 << 1 // locally administered
)

// chooseMAC is the MAC that the pod's annotation asks for, else a random, locally administered one.
func chooseMAC(annotations map[string]string) (kernel.MAC, error) {
	asked, ok := annotations[hwAddrAnnotation]
	if !ok {
		// The runtime's own generator: to open another one costs a process that lives as briefly as this more than the rest of what it works out.
		var m kernel.MAC
		copy(m[:], binary.BigEndian.AppendUint64(nil, rand.Uint64()))
		m[0] = m[0]&^groupBit | localBit
		return m, nil
	}
	m, err := kernel.ParseMAC(asked)
	if err == nil && (m == kernel.MAC{} || m[0]&groupBit != 0) {
		err = fmt.Errorf("MAC %q is not one station's", asked)
	}
	if err != nil {
		return kernel.MAC{}, failure(attach.CodeBadConfig, err, "correct the pod's annotation "+hwAddrAnnotation)
	}
	return m, nil
}
