package cni

import (
	"crypto/rand"
	"fmt"

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
		var m kernel.MAC
		rand.Read(m[:]) // never fails (Go 1.24)
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
