package reconcile

import "github.com/muslin-cni/muslin/internal/kernel"

// Routes returns the routes that the kernel is known to hold. The map is good until the next call of a method; do not modify it.
func (r *Reconciler) Routes() map[kernel.RouteKey]kernel.Route { return r.routes.confirmed }

// RoutesListed tells whether the kernel's routes have been listed: before that, Routes are not all that there are.
func (r *Reconciler) RoutesListed() bool { return r.routes.listed }
