package bgp

import (
	"time"

	"github.com/osrg/gobgp/v4/api"

	"github.com/muslin-cni/muslin/internal/peering"
)

const (
	holdTime     = 240 * time.Second // BIRD's, which Calico leaves alone
	connectRetry = 5 * time.Second
	maxRestart   = 4095 // seconds: the field has twelve bits (RFC 4724 section 3)
	maxTTL       = 255
	sendPaths    = 16 // of one prefix, to a peer that takes more than one (RFC 7911)
	// deferral is how long a restarted speaker waits for all its peers before it sends what it has. Those that are gone for good
	// must not keep the others waiting.
	deferral = 15 * time.Second
)

// peer is a session in GoBGP's terms.
func (s *Server) peer(p peering.Session) *api.Peer {
	keepalive := p.Keepalive
	if keepalive == 0 {
		keepalive = holdTime / 3
	}
	out := &api.Peer{
		Conf: &api.PeerConf{
			NeighborAddress: p.Peer.String(), PeerAsn: uint32(p.PeerAS), LocalAsn: uint32(p.LocalAS), AuthPassword: p.Password,
			AllowOwnAsn: uint32(p.AllowOwnAS), Description: p.Name, AdminDown: s.rests[p.Peer].on,
		},
		Transport: &api.Transport{RemotePort: uint32(p.Port), PassiveMode: p.Passive},
		Timers: &api.Timers{Config: &api.TimersConfig{
			HoldTime: seconds(max(holdTime, 3*keepalive)), KeepaliveInterval: seconds(keepalive),
			ConnectRetry: seconds(connectRetry), IdleHoldTimeAfterReset: seconds(connectRetry),
		}},
		GracefulRestart: &api.GracefulRestart{
			Enabled: true, RestartTime: uint32(min(seconds(p.Restart), maxRestart)), DeferralTime: uint32(seconds(deferral)),
			LocalRestarting: s.opts.Restarting && s.run.first,
		},
		AfiSafis: families(p),
	}
	if p.Source.IsValid() {
		out.Transport.LocalAddress = p.Source.String()
	}
	if p.ClusterID.IsValid() {
		out.RouteReflector = &api.RouteReflector{RouteReflectorClient: true, RouteReflectorClusterId: p.ClusterID.String()}
	}
	switch {
	case p.TTLHops > 0:
		out.TtlSecurity = &api.TtlSecurity{Enabled: true, TtlMin: maxTTL + 1 - uint32(p.TTLHops)}
	case !p.Internal():
		out.EbgpMultihop = &api.EbgpMultihop{Enabled: true, MultihopTtl: maxTTL}
	}
	return out
}

func seconds(d time.Duration) uint64 { return uint64(max(d, 0) / time.Second) }

// families are what a session carries: routes of its own family, as Calico has two sessions for two, or of both.
func families(p peering.Session) []*api.AfiSafi {
	switch {
	case p.Hop6.IsValid():
		return []*api.AfiSafi{afiSafi(api.Family_AFI_IP), afiSafi(api.Family_AFI_IP6)}
	case p.Peer.Is6():
		return []*api.AfiSafi{afiSafi(api.Family_AFI_IP6)}
	default:
		return []*api.AfiSafi{afiSafi(api.Family_AFI_IP)}
	}
}

func afiSafi(afi api.Family_Afi) *api.AfiSafi {
	return &api.AfiSafi{
		Config:            &api.AfiSafiConfig{Family: &api.Family{Afi: afi, Safi: api.Family_SAFI_UNICAST}, Enabled: true},
		MpGracefulRestart: &api.MpGracefulRestart{Config: &api.MpGracefulRestartConfig{Enabled: true}},
		AddPaths:          &api.AddPaths{Config: &api.AddPathsConfig{Receive: true, SendMax: sendPaths}},
	}
}
