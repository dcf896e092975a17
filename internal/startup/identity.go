package startup

import (
	"context"
	"errors"
	"fmt"

	"github.com/muslin-cni/muslin/pkg/api"
	"github.com/muslin-cni/muslin/pkg/ipam"
	"github.com/muslin-cni/muslin/pkg/store"
)

// holderTries bounds how often the Node is written anew when others write it or the record at the same time.
const holderTries = 10

// named is a node's name as etcd knows it: the Node, and whose it is, both at one revision.
type named struct {
	node   store.Entry[api.Node]
	record store.Entry[api.NodeIdentity]
}

func readNamed(ctx context.Context, c *store.Client, node string) (n named, err error) {
	nodeKey, recordKey := api.NodeKey(node), api.IdentityKey(node)
	got, _, err := c.Read(ctx, store.Range{Key: nodeKey}, store.Range{Key: recordKey})
	if err != nil {
		return n, err
	}
	if n.node, err = store.One[api.Node](nodeKey, got[0]); err != nil {
		return n, err
	}
	n.record, err = store.One[api.NodeIdentity](recordKey, got[1])
	return n, err
}

// uid is that of the Node; "" if there is none.
func (n named) uid() string {
	if !n.node.Exists() {
		return ""
	}
	return n.node.Value.Metadata.UID
}

// free tells whether a machine may work under the name: nobody has it, or the machine itself, or the Node that another had it with is
// gone, which is how an operator says that the other machine is.
func (n named) free(machine string) bool {
	r := n.record
	return !r.Exists() || r.Value.MachineID == machine || !n.node.Exists() || r.Value.NodeUID != n.uid()
}

// holdName refuses to start under a name that is another machine's, before anything is written for the node.
func (s *starter) holdName(ctx context.Context) error {
	if s.Machine == "" {
		return errors.New("this machine has no id: set MUSLIN_MACHINE_ID_FILE")
	}
	n, err := readNamed(ctx, s.Store, s.node)
	if err != nil {
		return unreadableRecord(n, err)
	}
	return s.mayHold(n)
}

// mayHold is an *ipam.Refusal with ipam.ErrNotHolder where the name is another machine's.
func (s *starter) mayHold(n named) error {
	if n.free(s.Machine) {
		return nil
	}
	return ipam.Holds(n.record, s.node, s.Machine)
}

// unreadableRecord adds what to do about a record that cannot be read. It stops the node: whose the name is cannot be told.
func unreadableRecord(n named, err error) error {
	var bad *store.UnreadableError
	if errors.As(err, &bad) && bad.Key == n.record.Key {
		return fmt.Errorf("%w: see that no other host has this name, then delete the key", err)
	}
	return err
}

// ensureNode is ensure for our own Node; only with create one is made that does not exist. The record of whose it is changes in the same
// transaction: a machine never allocates under a Node that is another's, and never makes one while the name is.
func (s *starter) ensureNode(ctx context.Context, create bool, change func(n *api.Node) bool) error {
	for range holderTries {
		err := s.tryNode(ctx, create, change)
		if !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	return fmt.Errorf("write node %s: %w %d times in a row", s.node, store.ErrConflict, holderTries)
}

func (s *starter) tryNode(ctx context.Context, create bool, change func(n *api.Node) bool) error {
	had, err := readNamed(ctx, s.Store, s.node)
	if err != nil {
		return unreadableRecord(had, err)
	}
	if err := s.mayHold(had); err != nil {
		return err
	}
	next, exists := had.node.Value, had.node.Exists()
	if !exists && !create {
		return nil
	}
	if !exists {
		next = &api.Node{}
		next.Metadata.Name = s.node
		api.Created(next, s.UUID(), s.Now())
	}
	nameless := next.Metadata.UID == ""
	if nameless {
		next.Metadata.UID = s.UUID() // written by hand: without one, nobody could tell this Node from the next
	}
	var t store.Txn
	if change(next) || nameless || !exists {
		store.Put(&t, had.node, next)
	}
	want := api.NodeIdentity{MachineID: s.Machine, NodeUID: next.Metadata.UID}
	if !had.record.Exists() || *had.record.Value != want {
		store.Put(&t, had.record, &want)
	}
	if t.Empty() {
		return nil
	}
	t.Expect(had.node.Key, had.node.Rev)
	t.Expect(had.record.Key, had.record.Rev)
	if _, err := s.Store.Commit(ctx, &t); err != nil {
		return fmt.Errorf("write node %s: %w", s.node, err)
	}
	s.sayHolder(had, want)
	return nil
}

func (s *starter) sayHolder(had named, now api.NodeIdentity) {
	switch {
	case !had.record.Exists():
		s.Log.Info("the node's name is this machine's now", "node", s.node, "machine", now.MachineID)
	case had.record.Value.MachineID != now.MachineID:
		s.Log.Warn("took over the node's name: the Node that another machine had it with is gone",
			"node", s.node, "machine", now.MachineID, "was", had.record.Value.MachineID, "node_uid_was", had.record.Value.NodeUID)
	case had.record.Value.NodeUID != now.NodeUID:
		s.Log.Info("the node was deleted and made again", "node", s.node, "node_uid", now.NodeUID, "was", had.record.Value.NodeUID)
	}
}

// Adopt gives the node's name to a machine, whoever has it: the operator's word that the other one is gone. From then on that one allocates
// nothing more under the name, and leaves its kernel as it is. A record that cannot be read is written over. The error is store.ErrNotFound
// where there is no Node of that name: then the name is free, and the machine's agent takes it at its start.
func Adopt(ctx context.Context, c *store.Client, node, machine string) error {
	for range holderTries {
		had, err := readNamed(ctx, c, node)
		var bad *store.UnreadableError
		if err != nil && !(errors.As(err, &bad) && bad.Key == had.record.Key) {
			return fmt.Errorf("adopt node %s: %w", node, err)
		}
		if !had.node.Exists() {
			return fmt.Errorf("adopt node %s: Node %w: the name is free, start the agent", node, store.ErrNotFound)
		}
		if err != nil { // nothing of it is to be kept
			had.record = store.Entry[api.NodeIdentity]{Key: had.record.Key, Rev: had.record.Rev}
		}
		var t store.Txn
		t.Expect(had.node.Key, had.node.Rev)
		store.Put(&t, had.record, &api.NodeIdentity{MachineID: machine, NodeUID: had.uid()})
		_, err = c.Commit(ctx, &t)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, store.ErrConflict):
			return fmt.Errorf("adopt node %s: %w", node, err)
		}
	}
	return fmt.Errorf("adopt node %s: %w %d times in a row", node, store.ErrConflict, holderTries)
}
