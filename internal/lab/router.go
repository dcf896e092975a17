package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/pkg/api"
)

// RouterKind says which daemons a router runs.
type RouterKind string

// The kinds of routers, both of Debian's packages.
const (
	BIRD RouterKind = "bird" // bird2
	FRR  RouterKind = "frr"  // frr: zebra and bgpd
)

const (
	nodesAS     api.ASN = 64512 // of nodes, unless etcd says otherwise
	routersAS   api.ASN = 65000 // of a router that is told none
	fabricName          = "fabric"
	firstRouter         = 201 // hosts' numbers of routers, after the nodes' and before the gateway's
	lastRouter          = 250
	maxIfName           = 15 // IFNAMSIZ - 1: the fabric's end has the router's name
	holdDefault         = 9 * time.Second
	holdLeast           = 3 * time.Second // RFC 4271 section 4.2
	holdMost            = 65535 * time.Second
	routerReady         = 20 * time.Second // for its daemons to answer
)

// RouterSpec says what BGP router to add.
type RouterSpec struct {
	Name     string         `json:"name"` // unique among nodes and routers
	Kind     RouterKind     `json:"kind"`
	Subnet   int            `json:"subnet"`             // from 1; 0: 1
	AS       api.ASN        `json:"as"`                 // 0: 65000, or 64512 for a Calico node
	Peers    []RouterPeer   `json:"peers,omitempty"`    // none: every node, also those that come later
	Password string         `json:"password,omitempty"` // TCP MD5, of all sessions
	Announce []netip.Prefix `json:"announce,omitempty"` // networks of its own; it has the first address of each
	Cluster  netip.Addr     `json:"cluster,omitzero"`   // not zero: it reflects routes to its peers of the same AS, under this id
	Hold     time.Duration  `json:"hold,omitempty"`     // 0: nine seconds, or BIRD's default for a Calico node

	// CalicoNode makes it a node of the cluster that BIRD drives, configured as Calico configures it: a Node and an address block are in etcd,
	// it takes part in the mesh unless Peers are given, and has the block's first address that was free. It has no policy and makes no tunnels: with an
	// IP-in-IP pool, tunl0 and the routes into it are for the caller to make, as Calico's own BIRD would.
	CalicoNode bool `json:"calicoNode,omitempty"`
}

// RouterPeer is who a router has a session with, in every family that both have.
type RouterPeer struct {
	Host string  `json:"host"` // a node, a router, "fabric", or an address
	AS   api.ASN `json:"as"`   // 0: 64512, or what the lab knows of the router
}

// Router is a BGP router of a lab.
type Router struct {
	Spec    RouterSpec     `json:"spec"`
	Addr    netip.Addr     `json:"addr"`             // of eth0
	Addr6   netip.Addr     `json:"addr6,omitzero"`   // in a dual-stack lab
	Blocks  []netip.Prefix `json:"blocks,omitempty"` // of a Calico node
	Pods    []netip.Addr   `json:"pods,omitempty"`   // addresses in Blocks that a Calico node has itself, as if they were its pods'
	Holder  process        `json:"holder"`
	Daemons []process      `json:"daemons,omitempty"` // empty while they are stopped
	Ran     bool           `json:"ran,omitempty"`     // they ran before: what the kernel holds is theirs
}

// AddRouter adds a BGP router and returns it when its daemons run; sessions come up in their own time. What a node shall know of it is for the
// operator to write: a BGPPeer. Where it fails the lab has the routers that it had.
func (l *Lab) AddRouter(ctx context.Context, spec RouterSpec) (Router, error) {
	var added Router
	err := l.update(ctx, func(s *state) error {
		if err := spec.complete(s); err != nil {
			return err
		}
		number, err := s.freeRouterNumber(spec.Subnet)
		if err != nil {
			return err
		}
		r := Router{Spec: spec, Addr: underlay(spec.Subnet, number)}
		if s.Options.DualStack {
			r.Addr6 = underlay6(spec.Subnet, number)
		}
		if err := l.bringRouter(ctx, s, &r); err != nil {
			return errors.Join(fmt.Errorf("add router %s: %w", spec.Name, err), endRouter(context.WithoutCancel(ctx), &r))
		}
		added = r
		return l.configureRouters(ctx, s)
	})
	return added, err
}

// RemoveRouter takes a router away, as if its power were cut. What etcd says of a Calico node stays for the operator.
func (l *Lab) RemoveRouter(ctx context.Context, name string) error {
	return l.update(ctx, func(s *state) error {
		r, err := s.router(name)
		if err != nil {
			return err
		}
		if r.Spec.Name == fabricName {
			return errors.New("the fabric's own BGP goes with the lab: `muslin-lab stop fabric` ends it until `muslin-lab start fabric`")
		}
		if err := endRouter(ctx, r); err != nil {
			return fmt.Errorf("remove router %s: %w", name, err)
		}
		s.Routers = slices.DeleteFunc(s.Routers, func(r Router) bool { return r.Spec.Name == name })
		return l.configureRouters(ctx, s)
	})
}

// Routers lists the routers in the order in which they were added; the fabric's own speaker, if it has one, is the first.
func (l *Lab) Routers() ([]Router, error) {
	s, err := l.load()
	if err != nil {
		return nil, err
	}
	var out []Router
	for _, r := range s.allRouters() {
		out = append(out, *r)
	}
	return out, nil
}

// StartRouter starts a router's daemons where they do not run, and returns when they answer. Daemons that ran before restart gracefully.
func (l *Lab) StartRouter(ctx context.Context, name string) error {
	return l.onRouter(ctx, name, l.startRouter)
}

// StopRouter asks a router's daemons to end, which withdraws their routes, and waits for that. Those that stay are killed after ten seconds.
func (l *Lab) StopRouter(ctx context.Context, name string) error {
	return l.onRouter(ctx, name, func(ctx context.Context, _ *state, r *Router) error { return endDaemons(ctx, r, unix.SIGTERM) })
}

// KillRouter is kill -9 on a router's daemons: peers may keep its routes (RFC 4724), and its kernel keeps what it has.
func (l *Lab) KillRouter(ctx context.Context, name string) error {
	return l.onRouter(ctx, name, func(ctx context.Context, _ *state, r *Router) error { return endDaemons(ctx, r, unix.SIGKILL) })
}

func (l *Lab) onRouter(ctx context.Context, name string, f func(context.Context, *state, *Router) error) error {
	return l.update(ctx, func(s *state) error {
		r, err := s.router(name)
		if err != nil {
			return err
		}
		return f(ctx, s, r)
	})
}

// allRouters are all that speak BGP beside the nodes.
func (s *state) allRouters() (out []*Router) {
	if s.FabricRouter != nil {
		out = append(out, s.FabricRouter)
	}
	for i := range s.Routers {
		out = append(out, &s.Routers[i])
	}
	return out
}

func (s *state) router(name string) (*Router, error) {
	for _, r := range s.allRouters() {
		if r.Spec.Name == name {
			return r, nil
		}
	}
	return nil, fmt.Errorf("router %q does not exist: `muslin-lab fabric list` shows those that do", name)
}

// freeRouterNumber is the lowest host number on a subnet that no router has.
func (s *state) freeRouterNumber(subnet int) (int, error) {
	for number := firstRouter; number <= lastRouter; number++ {
		if !slices.ContainsFunc(s.Routers, func(r Router) bool { return r.Addr == underlay(subnet, number) }) {
			return number, nil
		}
	}
	return 0, fmt.Errorf("subnet %d has %d routers already, which is the most: remove one", subnet, lastRouter-firstRouter+1)
}

// complete names what in the spec cannot work, and fills in what it leaves open.
func (r *RouterSpec) complete(s *state) error {
	if r.Subnet == 0 {
		r.Subnet = 1
	}
	if r.AS == 0 {
		r.AS = routersAS
		if r.CalicoNode {
			r.AS = nodesAS
		}
	}
	if r.Hold == 0 && !r.CalicoNode {
		r.Hold = holdDefault
	}
	return errors.Join(r.validateName(s), r.validateKind(), r.validateCalicoNode(s), r.validateRest(s))
}

func (r *RouterSpec) validateName(s *state) error {
	if len(r.Name) > maxIfName || !regexp.MustCompile(`^[a-z]([-a-z0-9]*[a-z0-9])?$`).MatchString(r.Name) {
		return fmt.Errorf("router name %q: want lower case letters, digits and '-', a letter first, at most %d", r.Name, maxIfName)
	}
	for _, taken := range []string{fabricName, "outside", "etcd", "lo"} {
		if r.Name == taken {
			return fmt.Errorf("router name %q is the lab's own: choose another", r.Name)
		}
	}
	if strings.HasPrefix(r.Name, "node-") || strings.HasPrefix(r.Name, "br-") {
		return fmt.Errorf("router name %q: names that begin with node- and br- are the lab's own: choose another", r.Name)
	}
	if _, err := s.router(r.Name); err == nil {
		return fmt.Errorf("router %s exists already: choose another name or `muslin-lab fabric rm-router %s`", r.Name, r.Name)
	}
	return nil
}

func (r *RouterSpec) validateKind() error {
	switch {
	case r.Kind != BIRD && r.Kind != FRR:
		return fmt.Errorf("router kind %q: want %s or %s", r.Kind, BIRD, FRR)
	case r.CalicoNode && r.Kind != BIRD:
		return errors.New("a Calico node is driven by bird, not by frr")
	}
	for _, program := range r.Kind.programs() {
		if _, err := findProgram(program, searchPath("")); err != nil && !exists(program) {
			return fmt.Errorf("%s is not installed: `apt-get install %s`", program, map[RouterKind]string{BIRD: "bird2", FRR: "frr"}[r.Kind])
		}
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// programs are those that a router of this kind needs.
func (k RouterKind) programs() []string {
	if k == FRR {
		return []string{frrFolder + "zebra", frrFolder + "bgpd", "vtysh"}
	}
	return []string{"bird", "birdc"}
}

func (r *RouterSpec) validateCalicoNode(s *state) error {
	switch {
	case !r.CalicoNode:
		return nil
	case !s.Options.BGP:
		return errors.New("a Calico node that BIRD drives speaks BGP, and this lab's nodes do not: bring the lab up with --bgp")
	case !slices.Contains([]Mode{Direct, IPIP, IPIPCrossSubnet}, s.Options.Mode) || s.Options.DualStack && s.Options.mode(true) != Direct:
		return errors.New("a Calico node that BIRD alone drives has no VXLAN: bring the lab up with --mode direct, or with an IP-in-IP mode and make its tunl0 and the routes into it")
	case len(r.Announce) > 0:
		return errors.New("a Calico node announces its block and nothing else")
	}
	return nil
}

func (r *RouterSpec) validateRest(s *state) error {
	var errs []error
	if r.Subnet < 1 || r.Subnet > s.Options.Subnets {
		errs = append(errs, fmt.Errorf("subnet %d: this lab has 1 to %d", r.Subnet, s.Options.Subnets))
	}
	if strings.ContainsAny(r.Password, "\"\\ \t\n;") || len(r.Password) > 80 {
		errs = append(errs, errors.New("password: want at most 80 characters, without blanks, quotes, backslashes and semicolons"))
	}
	if r.Cluster.IsValid() && !r.Cluster.Is4() {
		errs = append(errs, fmt.Errorf("cluster id %v: want the form of an IPv4 address", r.Cluster))
	}
	if r.Hold != 0 && (r.Hold < holdLeast || r.Hold > holdMost || r.Hold%time.Second != 0) {
		errs = append(errs, fmt.Errorf("hold time %v: want whole seconds, at least %v", r.Hold, holdLeast))
	}
	for _, p := range r.Announce {
		if p != p.Masked() || p.Addr().Is6() && !s.Options.DualStack {
			errs = append(errs, fmt.Errorf("announce %v: want a network of a family of this lab, without host bits", p))
		}
	}
	for _, p := range r.Peers {
		if _, err := s.locate(p); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// bringRouter makes what r says, from its namespaces to its daemons, and adds it to s.
func (l *Lab) bringRouter(ctx context.Context, s *state, r *Router) error {
	held, cancel := context.WithTimeout(ctx, patient(holderTimeout))
	defer cancel()
	c, err := l.holder(s, r.Spec.Name).start(held)
	r.Holder = c.process
	if err != nil {
		return err
	}
	if err := plugRouter(s, r); err != nil {
		return fmt.Errorf("plug into fabric: %w", err)
	}
	if r.Spec.CalicoNode {
		if err := l.joinRouter(ctx, s, r); err != nil {
			return err
		}
	}
	if err := setUpRouter(r); err != nil {
		return err
	}
	if err := l.startRouter(ctx, s, r); err != nil {
		return err
	}
	s.Routers = append(s.Routers, *r)
	return nil
}

func plugRouter(s *state, r *Router) error {
	fabric, err := openPlace(s.Fabric)
	if err != nil {
		return err
	}
	defer fabric.close()
	h, err := fabric.netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	return plugNode(h, s.Options, Node{Name: r.Spec.Name, Subnet: r.Spec.Subnet, Addr: r.Addr, Addr6: r.Addr6, Holder: r.Holder})
}

// setUpRouter makes the host a router, and gives it the addresses that others are to reach through it.
func setUpRouter(r *Router) error {
	pl, err := openPlace(r.Holder)
	if err != nil {
		return err
	}
	defer pl.close()
	if err := pl.sysctls(map[string]string{"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1", "net/ipv4/fib_multipath_hash_policy": "1"}); err != nil {
		return fmt.Errorf("make it a router: %w", err)
	}
	h, err := pl.netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find link lo: %w", err)
	}
	own := make([]netip.Prefix, 0, len(r.Pods)+len(r.Spec.Announce))
	for _, a := range r.Pods {
		own = append(own, netip.PrefixFrom(a, a.BitLen()))
	}
	for _, p := range r.Spec.Announce {
		first := p.Addr()
		if !p.IsSingleIP() {
			first = first.Next()
		}
		own = append(own, netip.PrefixFrom(first, p.Bits()))
	}
	return addAddrs(h, lo, own)
}

// endRouter ends the router's processes, and with them its namespaces.
func endRouter(ctx context.Context, r *Router) error {
	ctx, cancel := context.WithTimeout(ctx, patient(stopTimeout))
	defer cancel()
	return errors.Join(endDaemons(ctx, r, unix.SIGKILL), r.Holder.end(ctx, unix.SIGKILL))
}

// endDaemons ends the daemons in the opposite order of their start.
func endDaemons(ctx context.Context, r *Router, sig unix.Signal) error {
	var lates []error
	for len(r.Daemons) > 0 {
		last := len(r.Daemons) - 1
		late, err := r.Daemons[last].endWithin(ctx, stopTimeout, sig)
		if err != nil {
			return fmt.Errorf("end daemons of %s: %w", r.Spec.Name, err)
		}
		lates, r.Daemons = append(lates, late), r.Daemons[:last]
	}
	return errors.Join(lates...)
}

// startRouter starts the daemons that do not run, and records them in r.
func (l *Lab) startRouter(ctx context.Context, s *state, r *Router) error {
	if len(r.Daemons) > 0 && !slices.ContainsFunc(r.Daemons, func(p process) bool { return !p.alive() }) {
		return nil
	}
	if err := endDaemons(ctx, r, unix.SIGKILL); err != nil { // what is left of them
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patient(routerReady))
	defer cancel()
	pl, err := openPlace(r.Holder)
	if err != nil {
		return fmt.Errorf("enter %s: %w", r.Spec.Name, err)
	}
	defer pl.close()
	if _, err := writeConfig(s, r); err != nil {
		return err
	}
	for _, d := range r.daemons() {
		if err := removeFile(r.path(d.socket)); err != nil {
			return err
		}
		c, err := daemon{args: d.args, env: markedEnv(s, roleRouter), log: l.logPath(r.Spec.Name), in: pl}.start(ctx)
		if err != nil {
			return err
		}
		r.Daemons = append(r.Daemons, c.process)
		if err := c.waitSocket(ctx, r.path(d.socket)); err != nil {
			return errors.Join(fmt.Errorf("start %s of %s: %w%s", filepath.Base(d.args[0]), r.Spec.Name, err, tail(l.logPath(r.Spec.Name))), endDaemons(context.WithoutCancel(ctx), r, unix.SIGKILL))
		}
	}
	r.Ran = true
	return nil
}

// routerDaemon is a program of a router and the socket on which it answers.
type routerDaemon struct {
	args   []string
	socket string
}

func (r *Router) daemons() []routerDaemon {
	if r.Spec.Kind == FRR {
		return frrDaemons()
	}
	return birdDaemons(r.Ran)
}

// path is where a file of the router is seen from the machine.
func (r *Router) path(inside string) string {
	return filepath.Join("/proc", fmt.Sprint(r.Holder.PID), "root", inside)
}

// writeConfig writes what the router's daemons read, and reports whether it is other than before.
func writeConfig(s *state, r *Router) (changed bool, err error) {
	file, text := birdConfigFile, birdConfig(s, r)
	if r.Spec.Kind == FRR {
		file, text = frrConfigFile, frrConfig(s, r)
	}
	at := r.path(file)
	if old, err := os.ReadFile(at); err == nil && string(old) == text {
		return false, nil
	}
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		return false, fmt.Errorf("make folder of %s: %w", r.Spec.Name, err)
	}
	if err := os.WriteFile(at, []byte(text), 0o600); err != nil {
		return false, fmt.Errorf("write configuration of %s: %w", r.Spec.Name, err)
	}
	return true, nil
}

// configureRouters has the routers follow who is in the lab. Sessions that stay the same are not touched.
func (l *Lab) configureRouters(ctx context.Context, s *state) error {
	var errs []error
	for _, r := range s.allRouters() {
		changed, err := writeConfig(s, r)
		if err == nil && changed && len(r.Daemons) > 0 {
			err = reload(ctx, s, r)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// reload has the running daemons read their configuration. FRR's adds to what it has: sessions with nodes that are gone stay there, and down.
func reload(ctx context.Context, s *state, r *Router) error {
	pl, err := openPlace(r.Holder)
	if err != nil {
		return fmt.Errorf("enter %s: %w", r.Spec.Name, err)
	}
	defer pl.close()
	args := []string{"birdc", "configure"}
	if r.Spec.Kind == FRR {
		args = []string{"vtysh", "-f", frrConfigFile}
	}
	var out strings.Builder
	ctx, cancel := context.WithTimeout(ctx, patient(routerReady))
	defer cancel()
	if err := (Command{Args: args, Stdout: &out, Stderr: &out}).run(ctx, s, pl, "NODENAME="+r.Spec.Name); err != nil {
		return fmt.Errorf("configure %s anew: %w: %s", r.Spec.Name, err, out.String())
	}
	return nil
}
