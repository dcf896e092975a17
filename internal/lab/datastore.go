package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
)

// writeTimeout bounds what the lab itself writes to etcd.
const writeTimeout = 20 * time.Second

// writeJob is what the lab's hidden command writes to etcd, from a namespace that reaches it. What is there already stays as it is.
type writeJob struct {
	Node   *api.Node    `json:"node,omitempty"`   // a host without an agent
	Claim  []bool       `json:"claim,omitempty"`  // an address for it, and with that a block: true is IPv6
	Peer   *api.BGPPeer `json:"peer,omitempty"`   //
	Result writeResult  `json:"result,omitempty"` //
}

// writeResult is what was claimed, in the order of writeJob.Claim: each address with the length of its block.
type writeResult struct {
	Addrs []netip.Prefix `json:"addrs,omitempty"`
}

// joinRouter makes a router a node of the cluster, as far as etcd goes: a Node, and a block with an address of it.
func (l *Lab) joinRouter(ctx context.Context, s *state, r *Router) error {
	n := &api.Node{Spec: api.NodeSpec{BGP: &api.NodeBGP{IPv4Address: api.Prefix{Prefix: netip.PrefixFrom(r.Addr, subnetBits)}}}}
	n.Metadata.Name = r.Spec.Name
	n.Metadata.Labels = map[string]string{"kubernetes.io/hostname": r.Spec.Name, "driven-by": "bird"}
	if r.Spec.AS != nodesAS {
		n.Spec.BGP.ASNumber = &r.Spec.AS
	}
	if r.Spec.Cluster.IsValid() {
		n.Spec.BGP.RouteReflectorClusterID = r.Spec.Cluster.String()
	}
	job := writeJob{Node: n, Claim: []bool{false}}
	if r.Addr6.IsValid() {
		n.Spec.BGP.IPv6Address = api.Prefix{Prefix: netip.PrefixFrom(r.Addr6, subnetBits6)}
		job.Claim = append(job.Claim, true)
	}
	done, err := l.write(ctx, s, r.Holder, r.Spec.Name, job)
	if err != nil {
		return err
	}
	r.Blocks, r.Pods = nil, nil
	for _, a := range done.Addrs {
		r.Pods, r.Blocks = append(r.Pods, a.Addr()), append(r.Blocks, a.Masked())
	}
	return nil
}

// write runs a job where a process of the lab is, since the machine itself does not reach the lab's etcd.
func (l *Lab) write(ctx context.Context, s *state, at process, name string, job writeJob) (out writeResult, err error) {
	ctx, cancel := context.WithTimeout(ctx, patient(writeTimeout))
	defer cancel()
	pl, err := openPlace(at)
	if err != nil {
		return out, fmt.Errorf("enter %s: %w", name, err)
	}
	defer pl.close()
	if s.Options.TLS {
		if err := l.certify(name, at); err != nil {
			return out, err
		}
	}
	text, err := json.Marshal(job)
	if err != nil {
		return out, fmt.Errorf("encode what is to be written: %w", err)
	}
	var said, errs bytes.Buffer
	c := Command{Args: []string{self(s.Bin), "run-write"}, Stdin: bytes.NewReader(text), Stdout: &said, Stderr: &errs}
	if err := c.run(ctx, s, pl, "NODENAME="+name); err != nil {
		return out, fmt.Errorf("write to etcd: %w: %s", err, strings.TrimSpace(errs.String()))
	}
	if err := json.Unmarshal(said.Bytes(), &out); err != nil {
		return out, fmt.Errorf("decode what was written: %w", err)
	}
	return out, nil
}

// runWrite is the hidden command: a job on in, its result on out.
func runWrite(ctx context.Context, in io.Reader, out io.Writer) (err error) {
	var job writeJob
	if err := json.NewDecoder(in).Decode(&job); err != nil {
		return fmt.Errorf("decode what is to be written: %w", err)
	}
	cfg, err := store.FromEnv(os.Getenv)
	if err != nil {
		return err
	}
	c, err := store.New(cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if err := errors.Join(createOnce(ctx, c, job.Node), createOnce(ctx, c, job.Peer)); err != nil {
		return err
	}
	var done writeResult
	for _, v6 := range job.Claim {
		addr, err := claim(ctx, c, job.Node.Metadata.Name, v6)
		if err != nil {
			return err
		}
		done.Addrs = append(done.Addrs, addr)
	}
	return json.NewEncoder(out).Encode(done)
}

// resource is a pointer to a kind of resource.
type resource[T any] interface {
	*T
	api.Object
}

// createOnce creates a resource; nil, and one that exists, are left alone.
func createOnce[T api.Value, P resource[T]](ctx context.Context, c *store.Client, o P) error {
	if o == nil {
		return nil
	}
	api.Created(o, newUID(), time.Now())
	if _, err := store.Create(ctx, c, api.KeyOf(o), (*T)(o)); err != nil && !errors.Is(err, store.ErrConflict) {
		return fmt.Errorf("create %s %s: %w", o.KindOf().Name, o.Meta().Name, err)
	}
	return nil
}

// claim takes an address for a host that has no agent, and with it a block, as a first pod there would. What it took before stays its.
func claim(ctx context.Context, c *store.Client, node string, v6 bool) (addr netip.Prefix, err error) {
	handle := fmt.Sprintf("muslin-lab.%s.%t", node, v6)
	err = ipam.Retry(ctx, func(int) error {
		source := ipam.Etcd{Client: c}
		facts, err := source.Facts(ctx, node)
		if err != nil {
			return err
		}
		plan := ipam.NewPlan(source, node, facts, time.Now())
		held, err := store.Get[api.Handle](ctx, c, api.HandleKey(handle))
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		have, err := plan.Held(ctx, held)
		if err != nil {
			return err
		}
		if len(have) > 0 {
			addr = have[0]
			return nil
		}
		addr, err = plan.Assign(ctx, ipam.Request{Handle: handle, Attrs: map[string]string{api.AttrNode: node}, V6: v6, Use: api.UseWorkload})
		if err != nil {
			return err
		}
		_, err = c.Commit(ctx, plan.Txn())
		return err
	})
	if err != nil {
		return addr, fmt.Errorf("claim a block for %s: %w", node, err)
	}
	return addr, nil
}
