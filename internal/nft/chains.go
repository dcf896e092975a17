package nft

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/muslin-cni/muslin/internal/nftable"
)

// Chain is a chain of anybody's, as far as it concerns others.
type Chain struct {
	Family string // ip, ip6, inet, arp, bridge or netdev
	Table  string
	Name   string
	Hook   nftable.Hook // of a base chain; "": packets come here only by a jump
	Drop   bool         // a base chain's policy: what comes to its end is dropped
	Rules  int
}

// Chains lists the chains of all tables of all families, those of iptables-nft and of others too.
func (c *Conn) Chains(ctx context.Context) ([]Chain, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for range listAttempts {
		out, err := c.chains(ctx)
		if err == nil {
			return out, nil
		}
		if !errors.Is(err, unix.EINTR) {
			return nil, fmt.Errorf("list nftables' chains: %w", err)
		}
	}
	return nil, fmt.Errorf("list nftables' chains: %w", errChanged)
}

func (c *Conn) chains(ctx context.Context) (out []Chain, err error) {
	if err := c.everywhere(ctx, unix.NFT_MSG_GETCHAIN, func(family uint8, body []byte) { out = append(out, chainOf(family, body)) }); err != nil {
		return nil, err
	}
	type place struct{ family, table, chain string }
	rules := map[place]int{}
	err = c.everywhere(ctx, unix.NFT_MSG_GETRULE, func(family uint8, body []byte) {
		rules[place{familyName(family), text(find(body, unix.NFTA_RULE_TABLE)), text(find(body, unix.NFTA_RULE_CHAIN))}]++
	})
	for i, c := range out {
		out[i].Rules = rules[place{c.Family, c.Table, c.Name}]
	}
	return out, err
}

// everywhere is dump for the objects of all tables and families.
func (c *Conn) everywhere(ctx context.Context, typ uint16, take func(family uint8, body []byte)) error {
	b := buffer{seq: c.seq}
	b.raw(unix.NFNL_SUBSYS_NFTABLES<<8|typ, unix.NLM_F_DUMP, unix.NFPROTO_UNSPEC, 0, func() {})
	return c.exchange(ctx, &b, func(body []byte) error {
		take(body[0], body[nfgenLen:])
		return nil
	})
}

func chainOf(family uint8, body []byte) Chain {
	out := Chain{Family: familyName(family)}
	for a := range attrs(body) {
		switch a.typ {
		case unix.NFTA_CHAIN_TABLE:
			out.Table = a.string()
		case unix.NFTA_CHAIN_NAME:
			out.Name = a.string()
		case unix.NFTA_CHAIN_HOOK:
			out.Hook = baseOf(a.value).Hook
		case unix.NFTA_CHAIN_POLICY:
			const drop = 0 // NF_DROP
			out.Drop = a.u32() == drop
		}
	}
	return out
}

func familyName(family uint8) string {
	name, known := map[uint8]string{
		unix.NFPROTO_INET: "inet", unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6",
		unix.NFPROTO_ARP: "arp", unix.NFPROTO_BRIDGE: "bridge", unix.NFPROTO_NETDEV: "netdev",
	}[family]
	if !known {
		return fmt.Sprintf("family %d", family)
	}
	return name
}
