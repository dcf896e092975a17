// Command etcdfloor is etcd's own client and nothing else: the cost below which no operator's command that is a process of its own
// can go. It talks to the one endpoint in ETCD_ENDPOINTS.
//
//	etcdfloor get KEY     print the key's value
//	etcdfloor list PREFIX read all that is below it, in pages
//	etcdfloor put FILE    write each line's key and value, which a tab separates, one after the other
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "etcdfloor:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 2 {
		return errors.New("usage: etcdfloor get KEY | etcdfloor list PREFIX | etcdfloor put FILE")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{os.Getenv("ETCD_ENDPOINTS")}, Logger: zap.NewNop()})
	if err != nil {
		return err
	}
	do := map[string]func(context.Context, *clientv3.Client, string) error{"get": get, "list": list, "put": put}[args[0]]
	if do == nil {
		return fmt.Errorf("no such verb: %s", args[0])
	}
	return errors.Join(do(ctx, c, args[1]), c.Close())
}

func get(ctx context.Context, c *clientv3.Client, key string) error {
	got, err := c.Get(ctx, key)
	if err != nil {
		return err
	}
	if len(got.Kvs) == 0 {
		return fmt.Errorf("nothing at %s", key)
	}
	_, err = fmt.Printf("%s\n", got.Kvs[0].Value)
	return err
}

// page is how many keys are read at a time.
const page = 1000

func list(ctx context.Context, c *clientv3.Client, prefix string) error {
	end := clientv3.GetPrefixRangeEnd(prefix)
	for from := prefix; ; {
		got, err := c.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(page))
		if err != nil || !got.More {
			return err
		}
		from = string(got.Kvs[len(got.Kvs)-1].Key) + "\x00"
	}
}

func put(ctx context.Context, c *clientv3.Client, file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		if _, err := c.Put(ctx, key, value); err != nil {
			return err
		}
	}
	return nil
}
