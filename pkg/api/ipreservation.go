package api

// IPReservation keeps addresses from being handed out by themselves. Who asks for one of them by name still gets it.
type IPReservation struct {
	Header
	Spec IPReservationSpec `json:"spec"`
}

// IPReservationSpec holds the fields of an IPReservation.
type IPReservationSpec struct {
	ReservedCIDRs []string `json:"reservedCIDRs,omitempty" want:"cidr"` // ranges or addresses
}

// KindOf describes IPReservation.
func (*IPReservation) KindOf() Kind {
	return Kind{Name: "IPReservation", Plural: "ipreservations", Aliases: "reservation reservations"}
}
