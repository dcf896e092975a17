package objects

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
)

// tries bounds how often an update starts anew because somebody else wrote the object.
const tries = 5

// EnsureInitialized makes the objects that every cluster holds where they are missing: ClusterInformation with the ready flag set, and
// the static tiers. All that is missing is written in one transaction.
func (c *Client) EnsureInitialized(ctx context.Context) error {
	wanted := c.initial()
	ranges := make([]store.Range, len(wanted))
	for i, o := range wanted {
		ranges[i].Key = api.KeyOf(o)
	}
	got, _, err := c.Store.Read(ctx, ranges...)
	if err != nil {
		return err
	}
	var txn store.Txn
	for i, o := range wanted {
		c.find(ranges[i].Key)
		if len(got[i]) > 0 {
			continue
		}
		raw, err := api.EncodeObject(o, nil)
		if err != nil {
			return err
		}
		txn.PutRaw(ranges[i].Key, raw, 0)
	}
	if txn.Empty() || c.DryRun {
		return nil
	}
	_, err = c.Store.Commit(ctx, &txn)
	if errors.Is(err, store.ErrConflict) {
		return nil // somebody else does the same
	}
	return err
}

func (c *Client) initial() []api.Object {
	ready := true
	cluster := &api.ClusterInformation{Spec: api.ClusterInformationSpec{
		ClusterGUID: strings.ReplaceAll(c.UUID(), "-", ""), DatastoreReady: &ready,
	}}
	cluster.Metadata.Name = "default"
	out := []api.Object{cluster}
	for _, s := range api.StaticTiers() {
		t := &api.Tier{Spec: api.TierSpec{Order: &s.Order, DefaultAction: s.Action}}
		t.Metadata.Name = s.Name
		out = append(out, t)
	}
	for _, o := range out {
		api.Created(o, c.UUID(), c.Now())
	}
	return out
}

func (c *Client) find(key string) {
	if c.found == nil {
		c.found = map[string]bool{}
	}
	c.found[key] = true
}

// Create stores a new object. Of its metadata the name, namespace, labels and annotations count. The error is an *ExistsError if it is
// there already; what is wrong with it is an *api.InvalidError or *api.UnsupportedError.
func (c *Client) Create(ctx context.Context, given api.Object) error {
	_, err := c.create(ctx, "create", given)
	return err
}

// create returns what is there where the error is an *ExistsError.
func (c *Client) create(ctx context.Context, op string, given api.Object) (store.KV, error) {
	for range tries {
		w, err := c.creation(ctx, op, given)
		if err != nil {
			return store.KV{}, err
		}
		err = c.commit(ctx, w)
		conflict, ok := errors.AsType[*store.ConflictError](err)
		if !ok {
			return store.KV{}, err
		}
		own := slices.IndexFunc(conflict.Current, func(kv store.KV) bool { return kv.Key == w.key })
		if own >= 0 {
			return conflict.Current[own], &ExistsError{Object: api.Identify(given)}
		}
		// Another pool was written since this one was held against them all.
	}
	return store.KV{}, fmt.Errorf("%s %s: %w %d times in a row", op, api.Identify(given), store.ErrConflict, tries)
}

// creation does everything that makes a new object of the given one, but for writing it.
func (c *Client) creation(ctx context.Context, op string, given api.Object) (write, error) {
	o, err := writable(op, given)
	if err != nil {
		return write{}, err
	}
	if err := api.ValidateCreate(o); err != nil {
		return write{}, err
	}
	w := write{key: api.KeyOf(o)}
	if p, ok := o.(*api.IPPool); ok {
		if w.pools, err = c.checkNewPool(ctx, p); err != nil {
			return write{}, err
		}
	}
	if err := c.checkReferences(ctx, o); err != nil {
		return write{}, err
	}
	api.Created(o, c.UUID(), c.Now())
	w.raw, err = api.EncodeObject(o, nil)
	return w, err
}

// writable is the part of a user's object that counts, with its defaults.
func writable(op string, given api.Object) (api.Object, error) {
	if given.KindOf().ReadOnly {
		return nil, &ReadOnlyError{Op: op, Kind: given.KindOf().Name}
	}
	o := api.Clone(given)
	m := o.Meta()
	*m = api.ObjectMeta{Name: m.Name, Namespace: m.Namespace, Labels: m.Labels, Annotations: m.Annotations}
	api.SetDefaults(o)
	return o, nil
}

// write is one change of a key.
type write struct {
	key string
	raw []byte // nil: delete
	rev int64  // that of what is replaced or deleted; 0: the key is new
	// pools is the revision since which no pool may have been written; 0: they do not matter.
	pools int64
}

// commit carries writes out, all or none, or finds out in a dry run whether they would succeed.
func (c *Client) commit(ctx context.Context, writes ...write) error {
	if c.DryRun {
		return c.rehearse(ctx, writes)
	}
	var txn store.Txn
	for _, w := range writes {
		if w.raw == nil {
			txn.Delete(w.key, w.rev)
			continue
		}
		txn.PutRaw(w.key, w.raw, w.rev)
		if w.pools > 0 {
			txn.ExpectBelow((*api.IPPool)(nil).KindOf().Prefix(), w.pools)
		}
	}
	_, err := c.Store.Commit(ctx, &txn)
	return err
}

func (c *Client) rehearse(ctx context.Context, writes []write) error {
	ranges := make([]store.Range, len(writes))
	for i, w := range writes {
		ranges[i].Key = w.key
	}
	got, _, err := c.Store.Read(ctx, ranges...)
	if err != nil {
		return err
	}
	conflict := &store.ConflictError{}
	for i, w := range writes {
		now := store.KV{Key: w.key}
		if len(got[i]) > 0 {
			now = got[i][0]
		}
		if now.Rev != w.rev {
			conflict.Current = append(conflict.Current, now)
		}
	}
	if len(conflict.Current) > 0 {
		return conflict
	}
	return nil
}

// Apply creates an object or, if it is there already, updates it.
func (c *Client) Apply(ctx context.Context, given api.Object) error {
	var current store.KV
	for range tries {
		if current.Rev == 0 {
			var err error
			current, err = c.create(ctx, "apply", given)
			if _, exists := errors.AsType[*ExistsError](err); !exists {
				return err
			}
		}
		err := c.update(ctx, "apply", given, current)
		if absent, ok := errors.AsType[*NotFoundError](err); !ok || absent.Path != "" {
			return err
		}
		current = store.KV{} // deleted meanwhile
	}
	return fmt.Errorf("apply %s: others create and delete it all the time: try again", api.Identify(given))
}

// Update replaces the object of the same name. Labels and annotations are the given ones; uid, creation time and the fields that we do
// not know stay. If the given object has a resourceVersion, it must be the stored one's, else the error is a *ConflictError.
func (c *Client) Update(ctx context.Context, given api.Object) error {
	return c.update(ctx, "replace", given, store.KV{})
}

// update starts from what is known to be stored; a KV without revision is read.
func (c *Client) update(ctx context.Context, op string, given api.Object, current store.KV) error {
	for range tries {
		if current.Rev == 0 {
			got, _, err := c.Store.Read(ctx, store.Range{Key: api.KeyOf(given)})
			if err != nil {
				return err
			}
			if len(got[0]) == 0 {
				return missing(op, given)
			}
			current = got[0][0]
		}
		err := c.replace(ctx, op, given, current)
		conflict, ok := errors.AsType[*store.ConflictError](err)
		if !ok || len(conflict.Current) == 0 {
			return err
		}
		current = conflict.Current[0] // deleted: Rev 0, and the next read says so
	}
	return fmt.Errorf("write %s: %w %d times in a row", api.Identify(given), store.ErrConflict, tries)
}

// Recognize is nil if what is stored of an object has the fields that its kind does not have just as the given one has them: a write keeps
// them. Else it is an *api.InvalidError with those of which that is not so.
func (c *Client) Recognize(ctx context.Context, o api.Object, unknown *api.UnknownFieldsError) error {
	m := o.Meta()
	old, err := c.Get(ctx, o.KindOf(), m.Namespace, m.Name)
	if _, absent := errors.AsType[*NotFoundError](err); err != nil && !absent {
		return err
	}
	return unknown.Beyond(o, old.raw)
}

// missing says that there is nothing to update, or rather what is wrong with the wish.
func missing(op string, given api.Object) error {
	if _, err := writable(op, given); err != nil {
		return err
	}
	if err := api.Permit(api.OpUpdate, given); err != nil {
		return err
	}
	return &NotFoundError{Object: api.Identify(given)}
}

// replace writes the given object over the current one, if that is still there.
func (c *Client) replace(ctx context.Context, op string, given api.Object, current store.KV) error {
	w, err := c.replacement(ctx, op, given, current)
	if err != nil {
		return err
	}
	return c.commit(ctx, w)
}

// replacement does everything that makes the current object the given one, but for writing it.
func (c *Client) replacement(ctx context.Context, op string, given api.Object, current store.KV) (write, error) {
	o, err := writable(op, given)
	if err != nil {
		return write{}, err
	}
	old, err := Decode(o.KindOf(), current)
	if err != nil {
		return write{}, err
	}
	if err := sameRevision(given, old); err != nil {
		return write{}, err
	}
	m, was := o.Meta(), old.Object.Meta()
	m.UID, m.CreationTimestamp, m.DeletionTimestamp, m.ResourceVersion = was.UID, was.CreationTimestamp, was.DeletionTimestamp, was.ResourceVersion
	api.Created(o, c.UUID(), c.Now()) // where whoever stored it left them out
	if err := api.ValidateUpdate(o, old.Object); err != nil {
		return write{}, err
	}
	if err := c.checkReferences(ctx, o); err != nil {
		return write{}, err
	}
	raw, err := api.EncodeObject(o, current.Value)
	return write{key: current.Key, raw: raw, rev: current.Rev}, err
}

// sameRevision refuses an object that was read at another revision than the stored one.
func sameRevision(given api.Object, old Stored) error {
	want := given.Meta().ResourceVersion
	if want == "" {
		return nil
	}
	if _, err := strconv.ParseInt(want, 10, 64); err != nil {
		return &api.InvalidError{Fields: []api.FieldError{{Path: "metadata.resourceVersion", Value: want, Reason: "must be a number"}}}
	}
	if have := old.Object.Meta().ResourceVersion; have != want {
		return &ConflictError{Object: api.Identify(given), Have: have, Want: want}
	}
	return nil
}

// checkReferences wants the objects to be there that o names. Those that were found once are not looked for again.
func (c *Client) checkReferences(ctx context.Context, o api.Object) error {
	var errs []error
	for _, r := range api.References(o) {
		key := r.Kind.Key("", r.Name)
		if c.found[key] {
			continue
		}
		got, _, err := c.Store.Read(ctx, store.Range{Key: key})
		switch {
		case err != nil:
			return err
		case len(got[0]) > 0:
			c.find(key)
		default:
			errs = append(errs, &NotFoundError{Object: identify(r.Kind, "", r.Name), Path: r.Path})
		}
	}
	return errors.Join(errs...)
}

// checkNewPool holds a pool against the other pools and against the blocks that its range holds already. It returns the revision at which it
// saw the other pools.
func (c *Client) checkNewPool(ctx context.Context, p *api.IPPool) (rev int64, err error) {
	all, err := c.List(ctx, p.KindOf(), "")
	if err != nil && all.Rev == 0 {
		return 0, err // pools that cannot be read do not stop a new one
	}
	others := make([]*api.IPPool, 0, len(all.Items))
	for _, s := range all.Items {
		other, ok := s.Object.(*api.IPPool)
		if !ok || other.Metadata.Name == p.Metadata.Name {
			continue
		}
		others = append(others, other)
	}
	if err := p.Overlapping(others); err != nil {
		return 0, err
	}
	if len(others) < len(all.Items) {
		return all.Rev, nil // it is there: its blocks are its own, and the commit says so
	}
	blocks, err := ipam.Etcd{Client: c.Store}.AllBlocks(ctx, p.Spec.CIDR.Addr().Is6())
	if err != nil {
		return 0, err
	}
	for _, b := range blocks {
		if b.Value != nil && p.Spec.CIDR.Overlaps(b.Value.CIDR) && b.Value.CIDR.Bits() != p.Spec.BlockSize {
			return 0, &api.InvalidError{Fields: []api.FieldError{{Path: "spec.blockSize", Value: strconv.Itoa(p.Spec.BlockSize),
				Reason: fmt.Sprintf("IPPool blocksSize conflicts with existing allocations that use a different blockSize: block %v exists", b.Value.CIDR)}}}
		}
	}
	return all.Rev, nil
}
