package reconcile

import "github.com/muslin-cni/muslin/internal/kernel"

// Routes returns the routes that the kernel is known to hold. The map is not modified afterwards; do not modify it either.
func (r *Reconciler) Routes() map[kernel.RouteKey]kernel.Route { return r.routes.confirmed }
