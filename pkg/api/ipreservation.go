package api

// IPReservation is addresses that are not handed out to who does not ask for them by name.
type IPReservation struct {
	Header
	Spec IPReservationSpec `json:"spec"`
}

// IPReservationSpec holds the fields of an IPReservation.
type IPReservationSpec struct {
	ReservedCIDRs []string `json:"reservedCIDRs,omitempty"` // ranges or single addresses, of both families
}

// KindOf describes IPReservation.
func (*IPReservation) KindOf() Kind { return Kind{"IPReservation", "ipreservations", false} }
