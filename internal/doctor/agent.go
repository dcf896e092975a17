package doctor

func agent(v View) []Finding {
	var l list
	a := v.Agent.Value
	switch {
	case v.Agent.Err != nil:
		l.unknown("", v.Agent.Err)
		return l
	case !a.Runs:
		l.add(Error, "muslin-node", "start it (systemctl start muslin-node, or its DaemonSet's pod), and look at its log",
			"does not run: no pod can start; what it has put into the kernel stays and works")
		return l
	case a.Socket != nil:
		l.add(Error, "muslin-node", "look at its log: it waits for etcd, or cannot program the kernel", "runs, but does not serve pods yet: %v", a.Socket)
		l.blame(v, "etcd", "identity", "leftovers")
		return l
	}
	if a.Serves != nil {
		l.add(Error, "muslin-node", "", "takes no pods: %v", a.Serves)
		l.blame(v, "etcd", "identity")
	}
	if a.Self == nil {
		l.add(Warning, "muslin-node", "restart it with the version of this command, or use the command of its own", "is older than this command: it does not say how it fares")
		return l
	}
	if v.Node.Err == nil && a.Self.Node != v.Node.Value {
		l.add(Warning, "muslin-node", "set the same NODENAME for both", "works for node %s, and this command takes the host for %s", a.Self.Node, v.Node.Value)
	}
	for _, p := range a.Self.Problems {
		l.add(Warning, "muslin-node", "", "says: %s", p)
	}
	if len(l) == 0 {
		l.add(OK, "muslin-node", "", "version %s serves node %s", a.Self.Version, a.Self.Node)
	}
	return l
}
