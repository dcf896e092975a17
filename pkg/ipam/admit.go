package ipam

// Admit makes the transaction rest on what Assign's rests on but for addresses, for a caller that brings its own: the cluster is ready,
// the node is registered, and its name is still whose it was. The error is a *Refusal.
func (p *Plan) Admit() error {
	if err := p.facts.ready(p.node); err != nil {
		return err
	}
	p.depend(p.facts.Node.Key, p.facts.Node.Rev)
	p.AsHolder()
	p.depend(ClusterKey(), p.facts.Cluster.Rev)
	return nil
}
