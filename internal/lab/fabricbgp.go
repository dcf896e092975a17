package lab

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/muslin-cni/muslin/pkg/api"
)

// fabricRoutes tells whether the fabric must know pods' routes for them to reach each other: they leave nodes as they are, between subnets.
func (o Options) fabricRoutes() bool {
	return o.BGP && !o.NoAgents && o.Subnets > 1 && (o.Mode == Direct || o.DualStack && o.mode(true) == Direct)
}

// startFabricBGP makes the router between the subnets one that learns pods' routes by BGP, as the routers of such a network do, and every
// node its peer. The daemon is BIRD, in the fabric's own namespaces. It is a route reflector, and not a peer of another AS, to which every
// node would pass on what it has learned of the others: the fabric could not tell whose a block is.
func (l *Lab) startFabricBGP(ctx context.Context, s *state) error {
	if !s.Options.fabricRoutes() {
		return nil
	}
	if s.FabricRouter == nil {
		r := &Router{Holder: s.Fabric, Addr: netip.MustParseAddr(etcdAddr)}
		r.Spec = RouterSpec{Name: fabricName, Kind: BIRD, AS: nodesAS, Cluster: r.Addr, Hold: holdDefault}
		if s.Options.DualStack {
			r.Addr6 = netip.MustParseAddr(fabricAddr6)
		}
		s.FabricRouter = r
	}
	if err := l.startRouter(ctx, s, s.FabricRouter); err != nil {
		return fmt.Errorf("start BGP in the fabric: %w", err)
	}
	for name, addr := range map[string]netip.Addr{"fabric": s.FabricRouter.Addr, "fabric-ipv6": s.FabricRouter.Addr6} {
		if !addr.IsValid() {
			continue
		}
		peer := &api.BGPPeer{Spec: api.BGPPeerSpec{PeerIP: addr.String(), ASNumber: nodesAS}}
		peer.Metadata.Name = name
		if _, err := l.write(ctx, s, s.Fabric, fabricName, writeJob{Peer: peer}); err != nil {
			return err
		}
	}
	l.progress("the fabric reflects routes by BGP")
	return nil
}
